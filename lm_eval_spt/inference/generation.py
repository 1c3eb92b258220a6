"""Generation after prompted texts, with transformers' own ``generate``.

The model reads the prompt's vectors among the embeddings of the text. Everything that looks at the text (penalties for
what was said already, stopping criteria) gets the ids of the text and of the new tokens: as with PEFT, the prompt is
none of them. Padding is never among them either: where something looks at the text, texts of one length share a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.logits_process import EncoderRepetitionPenaltyLogitsProcessor

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.inference import probe, transformers_internals
from lm_eval_spt.inference.capabilities import FAILURES
from lm_eval_spt.inference.deep_prefix import is_deep
from lm_eval_spt.inference.encoder_decoder import reads_padded
from lm_eval_spt.inference.transformers_internals import (
    device_of,
    generation_from_embeddings,
    generation_from_scratch,
    guidance_in_plain_passes,
)
from lm_eval_spt.inference.virtual_tokens import is_virtual, model_inputs, pad_left, pad_right

logger = logging.getLogger(__name__)

Stopping = Callable[[int, int], StoppingCriteriaList]
"""Makes the stopping criteria of a batch: given the number of ids before the new tokens, and the number of rows."""

LOOK_AT_TEXT = (
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "min_length",
    "no_repeat_ngram_size",
    "repetition_penalty",
)
"""Settings of ``generate`` to which padding would be text."""

Layout = Literal["padded", "equal", "recomputed"]
"""How contexts become the rows of a batch, from the fastest way to the slowest:

``padded``      padded on the left, with a mask
``equal``       without padding: rows of one length share a batch
``recomputed``  the same without a cache: every step reads everything anew
"""

SMALL = 1e-4
"""How far logits may be from those of a plain pass, as a share of their spread, if rounding does not move them more."""

_KEY = "lm_eval_spt_generates"


def generate(
    model: PreTrainedModel,
    contexts: Sequence[Sequence[int]],
    vectors: Tensor | None,
    *,
    max_new_tokens: int,
    pad_token_id: int | None,
    stopping: Stopping,
    **settings: Any,
) -> list[Tensor]:
    """Return what a model says after each context.

    Args:
        model: a causal LM or an encoder-decoder LM, in evaluation mode.
        contexts: token ids, the prompt's virtual tokens marked.
        vectors: `[P, d]`, the soft prompt, if any; or a deep prefix.
        max_new_tokens: how many tokens at most, in each row.
        pad_token_id: what stands behind the end of a row that is done before the others of its batch.
        stopping: makes the stopping criteria.
        **settings: ``generate``'s own.

    Returns:
        For each context a tensor of ids: the new tokens of a causal LM, all tokens of an encoder-decoder's decoder.

    Raises:
        UserError: the model can not generate with these settings, or its logits are not numbers.
    """
    answers: list[Tensor] = [torch.empty(0)] * len(contexts)
    if model.config.is_encoder_decoder and _setting(model, settings, "guidance_scale") not in (None, 1):
        raise UserError(
            f"guidance_scale: transformers has no unconditional text for {type(model).__name__}, an encoder-decoder "
            "model; leave it out"
        )
    limits = {"max_new_tokens": max_new_tokens, "pad_token_id": pad_token_id}
    try:
        for layout, batch in _batches(model, contexts, vectors, max_new_tokens, settings):
            rows = [contexts[number] for number in batch]
            tokens, seen = _call(model, rows, vectors, layout, stopping, {**settings, **limits})
            for number, row in zip(batch, tokens, strict=True):
                answers[number] = row[seen:]
    except UserError:
        raise
    except (AttributeError, IndexError, NotImplementedError, TypeError, ValueError) as error:
        name, prompted = type(model).__name__, " after a soft prompt" if vectors is not None else ""
        raise UserError(f"{name} can not generate{prompted} with the settings {settings}: {_reason(error)}") from error
    return answers


def _call(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    vectors: Tensor | None,
    layout: Layout,
    stopping: Stopping | None,
    settings: dict[str, Any],
) -> tuple[Any, int]:
    """Return what ``generate`` returns for one batch, and how many ids of the text stand before the new tokens."""
    device, causal = device_of(model), not model.config.is_encoder_decoder
    # An encoder's positions are counted from the left: BART's would move with the padding.
    ids, mask = (tensor.to(device) for tensor in (pad_left if causal else pad_right)(rows))
    texts = [[token for token in row if not is_virtual(token)] for row in rows]
    text = pad_left(texts, settings.get("pad_token_id") or 0)[0].to(device)
    seen = text.shape[1] if causal else 0

    def whole(tokens: Tensor) -> dict[str, Tensor]:
        contexts = ids.repeat_interleave(len(tokens) // len(ids), dim=0)  # several beams go on from one context
        return model_inputs(model, torch.cat([contexts, tokens[:, seen:]], dim=1), vectors)

    if layout == "recomputed":
        inputs = {"input_ids": text, "attention_mask": torch.ones_like(text)}
        steps = generation_from_scratch(model, whole)
    else:
        if is_deep(vectors):  # what has been read before the padding; `generate` makes no room in it for several beams
            beams = max(int(_setting(model, settings, name) or 1) for name in ("num_beams", "num_return_sequences"))
            inputs = model_inputs(model, ids.repeat(beams, 1), vectors)
            mask = torch.nn.functional.pad(mask, (vectors.shape[3], 0), value=1)
        else:
            inputs = model_inputs(model, ids, vectors)
        inputs |= {"attention_mask": mask, **({"input_ids": text} if causal else {})}
        steps = generation_from_embeddings(model)
    transformers_internals.forget_longer_texts(model)
    generate_tokens: Any = model.generate
    with torch.no_grad(), steps, guidance_in_plain_passes(model, seen):
        output = generate_tokens(
            **inputs,
            stopping_criteria=stopping(seen, len(rows)) if stopping else None,
            **_adapted(model, settings, text),
        )
    return output, seen


def _adapted(model: PreTrainedModel, settings: dict[str, Any], text: Tensor) -> dict[str, Any]:
    """Return the settings with those replaced that ``generate`` would apply to embeddings instead of the text's ids.

    It also counts the embeddings, and so the prompt, towards ``min_length``.
    """
    adapted = {"use_cache": True, **settings}
    ids: Any = text
    processors = LogitsProcessorList()
    if (penalty := _setting(model, adapted, "encoder_repetition_penalty")) not in (None, 1.0):
        processors.append(EncoderRepetitionPenaltyLogitsProcessor(penalty, ids))
        adapted["encoder_repetition_penalty"] = None
    if size := _setting(model, adapted, "encoder_no_repeat_ngram_size"):
        processors.append(EncoderNoRepeatNGramLogitsProcessor(size, ids))
        adapted["encoder_no_repeat_ngram_size"] = None
    least = _setting(model, adapted, "min_length")
    if least and not model.config.is_encoder_decoder and not _setting(model, adapted, "min_new_tokens"):
        adapted.pop("min_length", None)
        adapted["min_new_tokens"] = max(least - text.shape[1], 0)
    processors.append(probe.FiniteLogits(model))
    return {**adapted, "logits_processor": processors}


def _setting(model: PreTrainedModel, settings: dict[str, Any], name: str) -> Any:
    """Return what was asked for, else what the model's generation configuration says."""
    return settings[name] if name in settings else getattr(model.generation_config, name, None)


# -- which texts share a batch -----------------------------------------------------------------------------------------


def _batches(
    model: PreTrainedModel,
    contexts: Sequence[Sequence[int]],
    vectors: Tensor | None,
    max_new_tokens: int,
    settings: dict[str, Any],
) -> list[tuple[Layout, list[int]]]:
    """Return which contexts are generated for together, by their numbers, and how.

    All together, unless padding would change an answer: then those of equal length. RoPE that is another for longer
    texts is the wrong one for what is in the cache when an answer gets that long.
    """
    switch = transformers_internals.rope_length(model)
    layout = _layout(model, contexts, vectors, switch, _setting(model, settings, "guidance_scale") or 1)
    equal: dict[int, list[int]] = {}
    for number, context in enumerate(contexts):
        equal.setdefault(len(context), []).append(number)
    looks_at_text = any(_setting(model, settings, name) not in (None, 0, 1) for name in LOOK_AT_TEXT)
    if layout == "padded" and not looks_at_text and (switch is None or max(equal) + max_new_tokens <= switch):
        return [(layout, list(range(len(contexts))))]
    return [
        ("recomputed" if switch is not None and length <= switch < length + max_new_tokens else layout, batch)
        for length, batch in equal.items()
    ]


def _layout(
    model: PreTrainedModel,
    contexts: Sequence[Sequence[int]],
    vectors: Tensor | None,
    switch: int | None,
    guidance: float,
) -> Layout:
    """Return the fastest layout in which ``generate`` goes on from a context as a plain pass over all tokens does.

    It is tried at a model's first contexts with each kind of prompt, and without: two steps for two rows. It is tried
    again beyond the length at which RoPE changes, and with guidance, whose passes some recurrent models mix up
    with the text's.
    """
    if model.config.is_encoder_decoder:
        # The encoder is given the mask, and the decoder's rows all begin with one token.
        return "padded" if reads_padded(model) else "equal"
    shortest, longest = min(contexts, key=len), max(contexts, key=len)
    known: dict[tuple[str, bool, bool], Layout] = vars(model).setdefault(_KEY, {})
    kind = "none" if vectors is None else "deep" if is_deep(vectors) else "embeddings"
    key = (kind, switch is not None and len(longest) > switch, guidance != 1)
    if key not in known:
        shorter = shortest if len(shortest) < len(longest) else longest[1:] or longest
        trials: dict[Layout, list[Sequence[int]]] = {"padded": [shorter, longest], "equal": [longest, longest[::-1]]}
        known[key] = "recomputed"
        for layout, rows in trials.items():
            if (difference := _difference_from_plain(model, rows, vectors, layout, guidance)) is None:
                known[key] = layout
                break
            name = type(model).__name__
            logger.info("%s generates in a slower way than %r, in which %s", name, layout, difference)
    return known[key]


def _difference_from_plain(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], vectors: Tensor | None, layout: Layout, guidance: float
) -> str | None:
    """Return what is wrong with two steps of ``generate``, against plain passes; None where nothing is."""
    recorded = {"return_dict_in_generate": True, "output_logits": True}
    steps = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False, "num_beams": 1, "guidance_scale": guidance}
    try:
        output, seen = _call(model, rows, vectors, layout, None, recorded | steps)
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        return f"it fails: {_reason(error)}"
    shares, moved = [], []
    for number, (row, first) in enumerate(zip(rows, output.sequences[:, seen].tolist(), strict=True)):
        plain = _plain_logits(model, [*row, first], vectors)
        with _moved_embeddings(model):
            near = _plain_logits(model, [*row, first], vectors)
        spread = (plain - plain.mean(dim=-1, keepdim=True)).norm()
        generated = torch.stack([step[number] for step in output.logits]).to(plain)
        shares.append(float((generated - plain).norm() / spread))
        moved.append(float((near - plain).norm() / spread))
    allowed = max(SMALL, 2 * max(moved))
    return None if all(share <= allowed for share in shares) else f"logits are off by {max(shares):.1%}"


def _plain_logits(model: PreTrainedModel, tokens: Sequence[int], vectors: Tensor | None) -> Tensor:
    """Return the logits `[2, vocabulary]` of the last two tokens of one text, in float32."""
    transformers_internals.forget_longer_texts(model)
    ids = torch.tensor([tokens], device=device_of(model))
    with torch.no_grad():
        return transformers_internals.last_logits(model, model_inputs(model, ids, vectors), 2)[0].float()


@contextmanager
def _moved_embeddings(model: PreTrainedModel) -> Iterator[None]:
    """Within this context every embedding of a text is off by half of its last binary digit.

    How far logits move with it is what rounding can do to them in the precision of this model.
    """
    generator = torch.Generator().manual_seed(0)

    def move(_: Any, __: Any, embeds: Tensor) -> Tensor:
        signs = torch.randint(0, 2, embeds.shape, generator=generator).to(embeds.device) * 2 - 1
        return (embeds.float() * (1 + _precision(model) / 2 * signs)).to(embeds.dtype)

    handle = model.get_input_embeddings().register_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _precision(model: PreTrainedModel) -> float:
    """Return the precision of the numbers that a model computes with, as a share of their size."""
    kind = device_of(model).type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
    return torch.finfo(dtype).eps
