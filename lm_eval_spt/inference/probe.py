"""Finding out what a model can do, by trying it on a few of the run's own texts.

Every way that will give answers is compared with the plain pass: one text, one call of the model's own `forward`, no
cache, padding, mask or positions. What differs is not used, and the next slower way is tried. The texts are the
longest of the run, the shortest and one between them, in one batch: windows, chunks, RoPE that changes with length and
states that drift show at the lengths that occur, and not before.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.inference import transformers_internals
from lm_eval_spt.inference.capabilities import (
    FAILURES,
    Capabilities,
    Layout,
    capabilities,
    evaluation_mode,
    set_capabilities,
)
from lm_eval_spt.inference.deep_prefix import is_deep, key_values_in
from lm_eval_spt.inference.forward import forward_tree, loglikelihoods, prefill
from lm_eval_spt.inference.scoring import TokenPair, free_memory, score
from lm_eval_spt.inference.token_tree import ScoringRequest
from lm_eval_spt.inference.transformers_internals import device_of
from lm_eval_spt.inference.virtual_tokens import is_virtual, model_inputs, pad_left

logger = logging.getLogger(__name__)

ABSOLUTE, RELATIVE = 1e-4, 1e-5
"""How far a log-likelihood in float32 may be from that of the plain pass, the latter times its own size."""

ROUNDINGS = 4
"""How far log-likelihoods in half precision may be from those of the plain pass, in the root of the mean square, as a
multiple of what rounding alone does to them. On two real models in bfloat16 the ratio was 0.1 to 1.9, in 48 trials."""

GRADIENT = 1e-3
"""How far a gradient in float32 may be from that of the plain pass, as a share of its largest entry."""

HALF_GRADIENT = 0.2
"""The same in half precision, unless more than a :data:`ROUNDINGS`-th of it is due to rounding."""

COPY_ON_CPU, COPY_ON_GPU = 5e10, 5e12
"""Operations, two for a weight and token and each of three readings, up to which a copy in float32 is tried."""

HALF = (torch.float16, torch.bfloat16)

LAYOUTS: tuple[Layout, ...] = ("tree", "padded", "rows")

_KEY = "lm_eval_spt_probed"


@dataclass(frozen=True)
class _Tried:
    """What a model can do with prompts of one kind, tried on texts of up to so many tokens; gradients as well."""

    tokens: int
    gradient: bool
    known: Capabilities


def probe(
    model: PreTrainedModel, requests: Sequence[TokenPair], vectors: Tensor | None = None, *, gradient: bool = False
) -> Capabilities:
    """Return what a model can do with the texts of a run, and store it with the model.

    A model that has been tried on texts of that length is not tried again, unless with a prompt of another kind: none,
    virtual tokens, or a deep prefix.

    Args:
        model: a causal LM in evaluation mode.
        requests: the run's (context, continuation) as token ids, the prompt's virtual tokens marked.
        vectors: `[P, d]`, the soft prompt, if any; or a deep prefix.
        gradient: whether gradients of the vectors are wanted.

    Raises:
        UserError: the model can not be run at all, or its log-likelihoods are not numbers.
    """
    samples = _samples(model, requests)
    if not samples:
        return capabilities(model)
    tokens = max(len(context) + len(continuation) for context, continuation in samples)
    kind = "deep prefix" if is_deep(vectors) else "virtual tokens" if _has_virtual(samples) else "no prompt"
    by_kind: dict[str, _Tried] = vars(model).setdefault(_KEY, {})
    tried = by_kind.get(kind)
    if tried is None or tokens > tried.tokens or gradient > tried.gradient:
        with evaluation_mode(model):
            known = _find(model, samples, vectors, gradient)
            if known.split:
                set_capabilities(model, known)
                known = replace(known, plain_head=_is_plain_product(model))
        tried = by_kind[kind] = _Tried(tokens, gradient, known)
    set_capabilities(model, tried.known)
    return tried.known


def _find(model: PreTrainedModel, samples: Sequence[TokenPair], vectors: Tensor | None, gradient: bool) -> Capabilities:
    """Return what a model can do with the samples.

    In half precision, rounding hides what is small, such as two tokens too many in a window. So a copy in float32 is
    tried where that takes no longer than about half a second; it is enough, then, that the model itself stays within
    its rounding.
    """
    tokens = sum(len(context) + len(continuation) for context, continuation in samples)
    if (exact := _in_float32(model, tokens)) is not None:
        known = _Probe(exact, samples, vectors, gradient).find()
        del exact
        longest = [sample for sample in samples if sample[0] == samples[0][0]]
        if _Probe(model, longest, vectors, gradient).confirm(known):
            return known
    return _Probe(model, samples, vectors, gradient).find()


def _in_float32(model: PreTrainedModel, tokens: int) -> PreTrainedModel | None:
    """Return a copy of a model in half precision to read so many tokens with.

    None for other models, and where it is quantised, spread over devices, or too large for time or memory.
    """
    weights, device = [*model.parameters(), *model.buffers()], device_of(model)
    half = any(weight.dtype in HALF for weight in weights)
    if not half or getattr(model, "is_quantized", False) or any(weight.device != device for weight in weights):
        return None
    size = sum(weight.numel() for weight in weights)
    if 6 * size * tokens > (COPY_ON_CPU if device.type == "cpu" else COPY_ON_GPU) or 4 * size > free_memory(device) / 2:
        return None
    try:
        return copy.deepcopy(model).float()
    except FAILURES:
        return None


def forget(model: PreTrainedModel) -> None:
    """Forget what is known of a model, because it was changed."""
    set_capabilities(model, Capabilities())
    vars(model).pop(_KEY, None)


def plain_loglikelihood(
    model: PreTrainedModel, context: list[int], continuation: list[int], vectors: Tensor | None
) -> Tensor:
    """Return a continuation's log-likelihood from one pass over one sequence: no cache, padding, mask or positions."""
    transformers_internals.forget_longer_texts(model)
    ids = torch.tensor([context + continuation[:-1]], device=device_of(model))
    logits = transformers_internals.last_logits(model, model_inputs(model, ids, vectors), len(continuation))[0]
    logprobs = logits.float().log_softmax(dim=-1)
    return logprobs[range(len(continuation)), continuation].sum()


def _samples(model: PreTrainedModel, requests: Sequence[TokenPair]) -> list[TokenPair]:
    """Return the longest and the shortest context of a run with some continuations, and the middle one with its first.

    A context that goes beyond every length that the model's configuration names is cut to two tokens more than these:
    longer texts show nothing else.
    """
    continuations: dict[tuple[int, ...], list[list[int]]] = {}
    for context, continuation in requests:
        if continuation:
            continuations.setdefault(tuple(context), []).append(continuation)
    by_length = sorted(continuations, key=len)
    if not by_length:
        return []
    longest = max(transformers_internals.named_lengths(model), default=0) + 2
    samples = []
    for tokens in dict.fromkeys([by_length[-1], by_length[len(by_length) // 2], by_length[0]]):
        chosen = _branching(tokens, continuations[tokens])
        if tokens not in (by_length[-1], by_length[0]):
            chosen = chosen[:1]
        longer = max(map(len, chosen)) - max(
            map(len, continuations[tokens])
        )  # the model may read no more than the run's
        surplus = max(longer, len(tokens) + max(map(len, chosen)) - longest if longest > 2 else 0)
        samples += [(_cut(list(tokens), surplus), continuation) for continuation in chosen]
    return samples


def _branching(context: Sequence[int], continuations: Sequence[list[int]]) -> list[list[int]]:
    """Return a context's first continuation, its longest, and one that branches off from that at once."""
    first, longest = continuations[0], max(continuations, key=len)
    other = next((token for token in (*context, *first) if not is_virtual(token) and token != longest[0]), None)
    if len(longest) < 2:
        longest = [*longest, longest[0]]
    branch = [] if other is None else [[other, *longest[1:]]]
    return [list(chosen) for chosen in dict.fromkeys(map(tuple, (first, longest, *branch)))]


def _has_virtual(samples: Sequence[TokenPair]) -> bool:
    return any(is_virtual(token) for context, _ in samples for token in context)


def _cut(context: list[int], surplus: int) -> list[int]:
    """Leave out the first `surplus` tokens of the text, but no virtual token and not the text's last."""
    before = next((place for place, token in enumerate(context) if not is_virtual(token)), len(context))
    text = sum(not is_virtual(token) for token in context)
    return context[:before] + context[before + max(0, min(surplus, text - 1)) :]


class _Probe:
    """The comparison of a model with itself.

    Args:
        model, vectors, gradient: as for :func:`probe`.
        samples: what to try it on.
    """

    def __init__(
        self, model: PreTrainedModel, samples: Sequence[TokenPair], vectors: Tensor | None, gradient: bool
    ) -> None:
        self._model, self._samples = model, samples
        self._vectors = None if vectors is None else vectors.detach().to(device_of(model))
        self._has_virtual = _has_virtual(samples)
        self._gradient = gradient and (self._has_virtual or is_deep(vectors))
        self._problems: list[str] = []
        self._by_context: dict[tuple[int, ...], list[list[int]]] = {}
        for context, continuation in samples:
            self._by_context.setdefault(tuple(context), []).append(continuation)
        self._expected, self._expected_gradient = self._plain()
        half = next(model.parameters()).dtype in HALF
        self._rounding = self._measured_rounding(times=3) if half else None
        self._tolerance = HALF_GRADIENT if half else GRADIENT
        self._well_measured = not half

    def find(self) -> Capabilities:
        """Return the fastest way that agrees with the plain pass."""
        known = Capabilities(longest=transformers_internals.rope_length(self._model))
        if is_deep(self._vectors) and not self._agrees(known, self._behind_keys_and_values):
            raise UserError(
                f"{type(self._model).__name__} takes no deep prefix, because it gives other numbers behind keys and "
                f"values than behind the text that has them ({self._problems[-1]}): use a prompt of embeddings"
            )
        fastest = replace(known, layout="tree", split=True, cache=True)
        # Masks and positions are given to decoders alone.
        takes_masks = transformers_internals.takes_masks(self._model)
        if takes_masks and self.confirm(fastest):
            return fastest
        for split, layout in product((True, False), LAYOUTS if takes_masks else LAYOUTS[-1:]):
            if (split or layout == "rows") and self._agrees(replace(known, layout=layout, split=split), self._scored):
                known = replace(known, layout=layout, split=split)
                break
        else:
            split = self._agrees(replace(known, split=True), self._scored)
            known = replace(known, split=split)
        if known.layout in ("tree", "padded"):
            known = replace(known, cache=self.confirm(replace(known, cache=True)))
        if known.layout != "tree" or not known.cache:
            logger.warning("%s is read in a slower way: %s", type(self._model).__name__, _in_words(known))
            logger.info("why: %s", "; ".join(self._problems))
        return known

    def confirm(self, known: Capabilities) -> bool:
        """Tell whether the model gives the numbers of the plain pass, read as `known` says."""
        ways = [self._scored, self._read_on] if known.cache else [self._scored]
        return all(self._agrees(known, way) for way in ways)

    # -- the plain pass ------------------------------------------------------------------------------------------------

    def _plain(self) -> tuple[Tensor, Tensor | None]:
        """Return the log-likelihoods `[samples]` of the plain pass, and the gradient of their sum `[P, d]`."""
        vectors = self._leaf()
        try:
            with torch.set_grad_enabled(self._gradient):
                values = torch.stack([plain_loglikelihood(self._model, *sample, vectors) for sample in self._samples])
            gradient = None
            if self._gradient and vectors is not None:
                (gradient,) = torch.autograd.grad(values.sum(), [vectors])
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            name, reason = type(self._model).__name__, (str(error).strip() or type(error).__name__).splitlines()[0]
            needed = " with a soft prompt, which it has to take as inputs_embeds," if self._has_virtual else ""
            needed += " behind a deep prefix" if is_deep(self._vectors) else ""
            raise UserError(f"{name} can not be run{needed} on a text ({reason}): use another base model") from error
        if not values.isfinite().all():
            raise not_finite(self._model)
        return values.detach(), gradient

    def _leaf(self) -> Tensor | None:
        if self._vectors is None or not self._gradient:
            return self._vectors
        return self._vectors.clone().requires_grad_()

    @torch.no_grad()
    def _measured_rounding(self, times: int) -> float:
        """Return how far a log-likelihood moves when every embedding moves by half of its last binary digit.

        It is the root of the mean square over the longest and the shortest text, each moved so many times. Every
        rounding behind the embeddings comes out differently then, as when the same is computed in another order.
        """
        model, device = self._model, device_of(self._model)
        generator = torch.Generator().manual_seed(0)
        moved = []
        for number in {0, len(self._samples) - 1}:
            (context, continuation), expected = self._samples[number], self._expected[number]
            ids = torch.tensor([context + continuation[:-1]], device=device)
            inputs = model_inputs(model, ids.expand(times, -1), self._vectors)
            if (tokens := inputs.pop("input_ids", None)) is not None:
                embeds = model.get_input_embeddings()(tokens)
                inputs |= {"inputs_embeds": embeds, **transformers_internals.per_layer_inputs(model, tokens, embeds)}
            embeds = inputs["inputs_embeds"]
            signs = torch.randint(0, 2, embeds.shape, generator=generator).to(device) * 2 - 1
            step = torch.finfo(embeds.dtype).eps / 2
            inputs["inputs_embeds"] = (embeds.float() * (1 + step * signs)).to(embeds.dtype)
            try:
                logits = transformers_internals.last_logits(model, inputs, len(continuation))
            except FAILURES:
                return 0.0125 * float(self._expected.abs().max())
            logprobs = logits.float().log_softmax(dim=-1)
            moved.append(logprobs[:, range(len(continuation)), continuation].sum(dim=1) - expected)
        return float(_root_mean_square(torch.cat(moved)))

    def _measured_gradient_rounding(self) -> float:
        """Return how far the gradient moves when every virtual token moves by half of its last binary digit.

        As a share of the gradient's largest entry, the mean of three tries.
        """
        if self._expected_gradient is None or self._vectors is None:
            return 0.0
        generator, vectors = torch.Generator().manual_seed(0), self._vectors
        step = torch.finfo(self._model.dtype).eps / 2
        moved = []
        for _ in range(3):
            signs = torch.randint(0, 2, vectors.shape, generator=generator).to(vectors) * 2 - 1
            self._vectors = vectors * (1 + step * signs)
            _, gradient = self._plain()
            assert gradient is not None
            moved.append((gradient - self._expected_gradient).abs().max())
        self._vectors = vectors
        return float(torch.stack(moved).mean() / self._expected_gradient.abs().max().clamp(min=1e-30))

    # -- the ways ------------------------------------------------------------------------------------------------------

    def _agrees(self, candidate: Capabilities, way: Callable[[], tuple[Tensor, Tensor | None]]) -> bool:
        """Tell whether the model, taken to be able to do what `candidate` says, gives the numbers of the plain pass."""
        before = capabilities(self._model)
        set_capabilities(self._model, candidate)
        try:
            values, gradient = way()
            problem = self._difference(values, gradient)
            if problem and not self._well_measured:  # a few samples may show too little
                self._rounding = max(self._rounding or 0.0, self._measured_rounding(times=10))
                self._tolerance = max(self._tolerance, ROUNDINGS * self._measured_gradient_rounding())
                self._well_measured = True
                problem = self._difference(values, gradient)
        except FAILURES as error:
            problem = f"{type(error).__name__}: {error}".splitlines()[0]
        finally:
            set_capabilities(self._model, before)
        if problem:
            self._problems.append(f"{candidate.layout}{' with a cache' if candidate.cache else ''}: {problem}")
        return not problem

    def _difference(self, values: Tensor, gradient: Tensor | None) -> str:
        """Return in words how the numbers differ from those of the plain pass, or '' where they do not."""
        differences = (values.to(self._expected) - self._expected).abs()
        beyond = differences - (ABSOLUTE + RELATIVE * self._expected.abs())
        if self._rounding is not None:
            beyond = _root_mean_square(beyond.clamp(min=0)) - ROUNDINGS * self._rounding
        if not (beyond <= 0).all():
            return f"log-likelihoods differ by up to {float(differences.max()):.2g}"
        if self._expected_gradient is not None and gradient is not None:
            size = float(self._expected_gradient.abs().max())
            error = float((gradient - self._expected_gradient).abs().max())
            if not error <= self._tolerance * size + 1e-7:
                return f"gradients differ by {error / max(size, 1e-30):.1%}"
        return ""

    def _scored(self) -> tuple[Tensor, Tensor | None]:
        """Score the samples as a run does; where gradients are wanted, with the gradient of a training step."""
        if self._gradient:
            requests = [ScoringRequest(list(context), chosen) for context, chosen in self._by_context.items()]
            return self._learned(lambda vectors: forward_tree(self._model, requests, vectors))
        answers = dict(score(self._model, self._samples, self._vectors, 2**20))
        return torch.tensor([answers[number][0] for number in range(len(self._samples))]), None

    def _behind_keys_and_values(self) -> tuple[Tensor, None]:
        """Read a text's end behind the keys and values of its beginning: behind a deep prefix it is the same.

        Where RoPE changes with a text's length, keys of its beginning are others, and long texts are left out.

        Returns:
            What is expected of the samples, each as far off as this reading is from that in one pass.
        """
        assert self._vectors is not None
        values, longest = self._expected.clone(), capabilities(self._model).longest
        for number, (context, continuation) in enumerate(self._samples):
            size = min(self._vectors.shape[3], len(context) - 1)
            if not size or (longest is not None and len(context) + len(continuation) > longest):
                continue
            with torch.no_grad():
                beginning = torch.tensor([context[:size]], device=device_of(self._model))
                cache = transformers_internals.plain_cache(self._model, {"input_ids": beginning})
                behind = plain_loglikelihood(self._model, context[size:], continuation, key_values_in(cache))
                whole = plain_loglikelihood(self._model, context, continuation, None)
            values[number] += behind - whole
        return values, None

    def _read_on(self) -> tuple[Tensor, Tensor | None]:
        """Read the texts into one cache, and the prompt behind them and the answers from there.

        Both kinds of cache are tried: one with space for what follows, as many suffix prompts share it, and one that
        gradients can go through.
        """
        known = capabilities(self._model)
        texts, requests, short = [], [], []
        for context, chosen in self._by_context.items():
            fits = known.reads_on(len(context) + max(map(len, chosen)))
            short += [fits] * len(chosen)
            if not fits:
                continue
            text = len(context)
            while text > 1 and is_virtual(context[text - 1]):
                text -= 1
            text = min(text, len(context) - 1)
            texts.append(list(context[:text]))
            requests.append(ScoringRequest(list(context[text:]), chosen))
        if not texts or not all(texts):
            return self._expected, None  # contexts of one token: there is nothing to read on from
        ids, mask = (tensor.to(device_of(self._model)) for tensor in pad_left(texts))
        with torch.no_grad():
            past = prefill(self._model, ids, mask, self._vectors)
            space = past.preallocate(sum(len(r.context) + sum(map(len, r.continuations)) for r in requests))
            states = forward_tree(self._model, requests, self._vectors, past=space.fork())
            values, _ = loglikelihoods(self._model, states)
        behind = any(is_virtual(token) for request in requests for token in request.context)
        if self._gradient and behind and not any(is_virtual(token) for text in texts for token in text):
            learned, gradient = self._learned(
                lambda vectors: forward_tree(self._model, requests, vectors, past=past.fork())
            )
            expected = self._expected[short]
            values = torch.where((learned - expected).abs() > (values - expected).abs(), learned, values)
            return self._expected.masked_scatter(torch.tensor(short), values), gradient if all(short) else None
        return self._expected.masked_scatter(torch.tensor(short), values), None

    def _learned(self, run: Callable[[Tensor | None], Any]) -> tuple[Tensor, Tensor | None]:
        """Return log-likelihoods and the gradient of their sum."""
        vectors = self._leaf()
        with torch.enable_grad():
            values, _ = loglikelihoods(self._model, run(vectors))
            (gradient,) = torch.autograd.grad(values.sum(), [vectors] if vectors is not None else [])
        return values.detach(), gradient


def _root_mean_square(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


@torch.no_grad()
def _is_plain_product(model: PreTrainedModel) -> bool:
    """Tell whether the model's own logits are hidden states times the head's weights, and nothing else.

    Hidden states that point along the head's largest rows make the largest logits: a cap would show there.
    """
    weight = transformers_internals.head_weight(model)
    if weight is None or not weight.is_floating_point() or weight.device.type != "cpu":
        return False  # elsewhere the head's product is not used by itself
    tolerance = max(1e-4, 2 * torch.finfo(weight.dtype).eps)
    norms = weight.norm(dim=1)
    evenly = torch.arange(8) * len(weight) // 8
    rows = weight[torch.cat([norms.topk(min(8, len(norms))).indices, evenly])]
    hidden = torch.cat([100 * torch.nn.functional.normalize(rows, dim=1), rows])
    try:
        return torch.allclose(transformers_internals.logits(model, hidden), hidden @ weight.T, tolerance, 1e-4)
    except FAILURES:
        return False


def not_finite(model: PreTrainedModel, what: str = "log-likelihoods") -> UserError:
    """Return the error to raise where what a model computes are not numbers."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    if dtype == "float16":
        advice = "load the model with dtype=bfloat16 or float32"
    elif transformers_internals.attention_of(model) == "flex_attention":
        advice = "load the model with attn_implementation=sdpa, as flex_attention does that on some processors"
    else:
        advice = "check the model's weights"
    return UserError(f"{type(model).__name__} in {dtype} gives {what} that are not numbers: {advice}")


def check_logits(model: PreTrainedModel, logits: Tensor) -> Tensor:
    """Return `logits`, of any shape, as they are.

    Raises:
        UserError: some are NaN or plus infinity. Minus infinity, with which a model rules a token out, is a number.
    """
    if bool(logits.isnan().any()) or bool(logits.isposinf().any()):
        raise not_finite(model, "logits")
    return logits


class FiniteLogits(LogitsProcessor):
    """Lets no NaN become a token that is generated: greedy decoding would take it for the largest logit.

    Args:
        model: generates.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return `scores` `[batch, vocabulary]` as they are, or raise as :func:`check_logits` does."""
        return check_logits(self._model, scores)


def _in_words(known: Capabilities) -> str:
    layouts = {
        "tree": "continuations share their context",
        "padded": "each continuation with its context",
        "rows": "each continuation with its context, padded on the right",
        "equal": "each continuation with its context, without padding",
    }
    return layouts[known.layout] + (", without reading on from a cache" if not known.cache else "")
