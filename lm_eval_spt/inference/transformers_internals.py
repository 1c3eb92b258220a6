"""What this package knows of the insides of transformers' causal LMs: all of it is here.

A causal LM is two parts, a decoder (tokens to hidden states) and a vocabulary head (hidden states to logits). They are
run apart here, because the head of a multilingual model is as large as its decoder and is needed at few positions.
The names that this relies on are listed in ``tests/inference/test_transformers_internals.py``.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.offloading import input_device
from lm_eval_spt.inference import products

SLOW_GELUS = ("BloomGelu", "NewGELUActivation")
"""transformers' classes that :class:`FastGELU` takes the place of."""


def device_of(model: PreTrainedModel) -> torch.device:
    """Return where the model expects its input."""
    return input_device(model.get_input_embeddings())


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the part of a causal LM that turns tokens into hidden states, adapters (PEFT) included."""
    causal = _without_wrapper(model)
    decoder = causal.get_decoder()
    if isinstance(decoder, PreTrainedModel) and decoder is not causal:
        return decoder
    # Llama 4 and Mllama name themselves, the ModernBERT decoder names its head.
    embedding = causal.get_input_embeddings()
    parts = (part for part in causal.children() if isinstance(part, PreTrainedModel))
    return next((part for part in parts if part.get_input_embeddings() is embedding), decoder)


def _without_wrapper(model: PreTrainedModel) -> PreTrainedModel:
    """Return the causal LM inside a PeftModel, whose layers are adapted in place; any other model as it is."""
    wrapper: Any = model
    return wrapper.get_base_model() if hasattr(wrapper, "get_base_model") else model


def hidden_states(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    mask: Tensor,
    positions: Tensor,
    *,
    visible: Tensor | None = None,
    key_positions: Tensor | None = None,
    cache: DynamicCache | None = None,
) -> Tensor:
    """Run the decoder over new tokens.

    Args:
        model: a causal LM.
        inputs: `input_ids` `[batch, new]` or `inputs_embeds` `[batch, new, d]`.
        mask: `[batch, past + new]`, 1 for a token and 0 for padding.
        positions: `[batch, new]`, where in its text each token stands.
        visible: boolean `[batch, new, past + new]`, what each new token may look at; needed where that is not simply
            everything before it.
        key_positions: `[batch, past + new]`, with `visible`: where in its text each key stands.
        cache: keys and values of the past; extended in place.

    Returns:
        `[batch, new, d]`, what the vocabulary head takes.
    """
    decoder = decoder_of(model)
    arguments: dict[str, Any] = {**inputs, "attention_mask": mask}
    if _has_parameter(type(decoder).forward, "position_ids"):
        arguments["position_ids"] = positions + _first_position(decoder)
    with ExitStack() as stack:
        if visible is not None:
            assert key_positions is not None
            arguments["attention_mask"] = _attention_masks(model, visible, positions, key_positions)
            stack.enter_context(_alibi_of(decoder, key_positions))
        arguments[cache_argument(decoder)] = cache
        output = decoder(**arguments, use_cache=cache is not None, return_dict=True)
    return output.last_hidden_state


def cache_argument(decoder: nn.Module) -> str:
    """Return how a decoder's `forward` calls its keys and values: transformers 5.24 began to rename the argument."""
    return "cache" if _has_parameter(type(decoder).forward, "cache") else "past_key_values"


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return the logits `[rows, vocabulary]` of hidden states `[rows, d]`.

    The model's own `forward` runs, with a decoder that returns `hidden`: whatever an architecture does to its logits
    (scales, caps) is done.
    """
    decoder, causal = decoder_of(model), _without_wrapper(model)
    with _replaced(decoder, "forward", lambda *_, **__: _DecoderOutput(last_hidden_state=hidden[None])):
        ids = torch.zeros(1, 1, dtype=torch.long, device=device_of(model))
        computed: Tensor = causal(input_ids=ids, use_cache=False, return_dict=True).logits[0]
    if len(computed) != len(hidden):
        raise RuntimeError(f"{type(causal).__name__} does not take its hidden states from {type(decoder).__name__}")
    return computed


class _DecoderOutput(BaseModelOutputWithPastAndCrossAttentions):
    """A decoder's output with nothing in it but hidden states, whatever an architecture asks it for.

    Mixture-of-experts models look for the router's logits, recurrent ones for their state.
    """

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def plain_hidden_states(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Return the decoder's output `[batch, time, d]`, with nothing given to it but the tokens."""
    output: Tensor = decoder_of(model)(**inputs, use_cache=False, return_dict=True).last_hidden_state
    return output


def plain_cache(model: PreTrainedModel, inputs: dict[str, Tensor]) -> DynamicCache:
    """Return the keys and values of tokens, with nothing given to the decoder but them and an empty cache."""
    cache, decoder = DynamicCache(), decoder_of(model)
    decoder(**inputs, **{cache_argument(decoder): cache}, use_cache=True, return_dict=True)
    return cache


def plain_logits(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Return the logits `[batch, time, vocabulary]` of the model's own `forward`, given nothing but the tokens."""
    output: Tensor = model(**inputs, use_cache=False, return_dict=True).logits
    return output


def last_logits(model: PreTrainedModel, inputs: dict[str, Tensor], count: int) -> Tensor:
    """Return the logits `[batch, count, vocabulary]` of the last tokens, from the model's own `forward`."""
    causal: Any = _without_wrapper(model)
    keep = {"logits_to_keep": count} if causal._supports_logits_to_keep() else {}
    output: Tensor = model(**inputs, **keep, use_cache=False, return_dict=True).logits
    return output[:, -count:]


def decoder_inputs(model: PreTrainedModel, targets: Tensor) -> Tensor:
    """Return what an encoder-decoder model's decoder reads to predict `targets` `[batch, time]`: them, one later.

    Raises:
        UserError: transformers does not say how the model shifts them.
    """
    shifted: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shifted is None or getattr(model.config, "decoder_start_token_id", None) is None:
        raise UserError(
            f"{type(model).__name__} does not say with which token its answers start: use T5, mT5 or another "
            "encoder-decoder model whose configuration has a decoder_start_token_id"
        )
    inputs: Tensor = shifted(targets)
    return inputs


def head_weight(model: PreTrainedModel) -> Tensor | None:
    """Return the weights `[vocabulary, d]` of the vocabulary head where it is one frozen linear layer without a bias.

    Whether logits are hidden states times these, and nothing else, is for :mod:`lm_eval_spt.inference.probe` to find
    out: some architectures scale or cap them.
    """
    head: Any = _without_wrapper(model).get_output_embeddings()
    if type(head) not in (nn.Linear, products.FastLinear) or head.bias is not None:
        return None
    return None if head.weight.requires_grad and torch.is_grad_enabled() else head.weight.detach()


def _first_position(decoder: nn.Module) -> int:
    """Return the position of a text's first token: RoBERTa and its kin count from behind that of padding."""
    embedding: Any = getattr(getattr(decoder, "embeddings", None), "position_embeddings", None)
    padding = getattr(embedding, "padding_idx", None)
    return 0 if padding is None else padding + 1


# -- what depends on ids -----------------------------------------------------------------------------------------------


def per_layer_inputs(model: PreTrainedModel, ids: Tensor, embeds: Tensor) -> dict[str, Tensor]:
    """Return what a decoder needs beside the embeddings of its tokens: in Gemma 3n and 4 an input for every layer.

    Text gets that of its tokens. A virtual token is no token of the vocabulary: it gets zeros, and adds nothing to
    what those models compute from its embedding.

    Args:
        model: a language model.
        ids: `[batch, time]`, negative for virtual tokens.
        embeds: `[batch, time, d]`.
    """
    decoder: Any = decoder_of(model) if not model.config.is_encoder_decoder else None
    if not hasattr(decoder, "get_per_layer_inputs") or not getattr(decoder, "hidden_size_per_layer_input", 0):
        return {}
    takes_embeds = _has_parameter(type(decoder).get_per_layer_inputs, "inputs_embeds")
    text = ids.clamp(min=0)
    inputs: Tensor = decoder.get_per_layer_inputs(text, embeds) if takes_embeds else decoder.get_per_layer_inputs(text)
    return {"per_layer_inputs": inputs.masked_fill((ids < 0)[:, :, None, None], 0)}


@contextmanager
def generation_from_embeddings(model: PreTrainedModel) -> Iterator[None]:
    """Within this context ``generate`` takes embeddings from every causal LM whose ``forward`` does.

    It refuses models whose own method to prepare its steps does not name them, and gives inputs for every layer, which
    are those of the text, to later steps, too. There the new token's own are wanted.
    """
    causal = _without_wrapper(model)
    prepare: Any = causal.prepare_inputs_for_generation

    # `generate` allows the arguments that are named here and, because of `kwargs`, by that name, those of `forward`.
    def prepared(
        input_ids: Tensor,
        inputs_embeds: Tensor | None = None,
        per_layer_inputs: Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        embedded = {
            "inputs_embeds": inputs_embeds,
            "per_layer_inputs": per_layer_inputs if is_first_iteration else None,
        }
        kwargs |= {name: given for name, given in embedded.items() if given is not None}
        inputs: dict[str, Any] = prepare(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        return inputs

    with _replaced(causal, "prepare_inputs_for_generation", prepared):
        yield


@contextmanager
def generation_from_scratch(model: PreTrainedModel, inputs: Callable[[Tensor], dict[str, Tensor]]) -> Iterator[None]:
    """Within this context every step of ``generate`` is a plain pass over all tokens, without a cache.

    Args:
        model: a causal LM.
        inputs: given the tokens `[batch, time]` so far, returns what ``forward`` reads.
    """

    def prepared(input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        keep = {name: value for name, value in kwargs.items() if name == "logits_to_keep"}
        return {**inputs(input_ids), **keep, "use_cache": False}

    with _replaced(_without_wrapper(model), "prepare_inputs_for_generation", prepared):
        yield


@contextmanager
def guidance_in_plain_passes(model: PreTrainedModel, seen: int) -> Iterator[None]:
    """Within this context ``guidance_scale`` of ``generate`` reads its unconditional text anew at every step.

    That is the last token of the text and the new ones, without a prompt. transformers goes on from a cache, which does
    not follow the beams of a search and which recurrent models call by another name: they would forget the text.

    Args:
        model: a causal LM.
        seen: how many tokens of text `generate` is given.
    """
    processor = UnbatchedClassifierFreeGuidanceLogitsProcessor
    before = processor.get_unconditional_logits

    def unconditional(_: Any, input_ids: Tensor) -> Tensor:
        forget_longer_texts(model)
        return last_logits(model, {"input_ids": input_ids[:, seen - 1 :]}, 1)

    processor.get_unconditional_logits = unconditional  # type: ignore[method-assign]
    try:
        yield
    finally:
        processor.get_unconditional_logits = before  # type: ignore[method-assign]


# -- lengths at which a model changes ----------------------------------------------------------------------------------


def named_lengths(model: PreTrainedModel) -> list[int]:
    """Return the lengths that the configuration names: of windows, of chunks, of the texts that RoPE was made for."""
    found: set[int] = set()

    def look(settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            if isinstance(value, Mapping):
                look(value)
            elif type(value) is int and any(word in name for word in ("window", "chunk", "original_max_position")):
                found.add(value)

    look(model.config.get_text_config().to_dict())
    return sorted(length for length in (*found, *filter(None, [rope_length(model)])) if length > 0)


def rope_length(model: PreTrainedModel) -> int | None:
    """Return the length beyond which RoPE depends on the longest text of a batch; None where it never does.

    ``longrope`` (Phi-3) then takes other frequencies, ``dynamic`` NTK scaling computes them anew.
    """
    lengths = [length for module in _ropes(model) if (length := _length_of_rope(module)) is not None]
    return min(lengths, default=None)


def forget_longer_texts(model: PreTrainedModel) -> None:
    """Have dynamic NTK scaling forget the longest text that it has met: its frequencies would stay for shorter ones."""
    for rope in _ropes(model):
        if not any("dynamic" in kind for kind in _kinds_of_rope(rope)):
            continue
        rope.max_seq_len_cached = rope.original_max_seq_len
        for prefix in ("", *(f"{layer_type}_" for layer_type in getattr(rope, "layer_types", ()))):
            if hasattr(rope, f"{prefix}original_inv_freq"):
                original = getattr(rope, f"{prefix}original_inv_freq").to(getattr(rope, f"{prefix}inv_freq").device)
                rope.register_buffer(f"{prefix}inv_freq", original, persistent=False)
            if prefix and hasattr(rope, f"{prefix}max_seq_len_cached"):
                setattr(rope, f"{prefix}max_seq_len_cached", rope.original_max_seq_len)


def _ropes(model: PreTrainedModel) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "rope_type")]


def _kinds_of_rope(rope: Any) -> list[str]:
    kinds = rope.rope_type.values() if isinstance(rope.rope_type, Mapping) else [rope.rope_type]
    return [str(kind) for kind in kinds]


def _length_of_rope(rope: Any) -> int | None:
    kinds = _kinds_of_rope(rope)
    lengths = [int(rope.original_max_seq_len)] if any("dynamic" in kind for kind in kinds) else []
    if "longrope" in kinds:
        parameters = rope.config.rope_parameters
        each = [parameters, *(value for value in parameters.values() if isinstance(value, Mapping))]
        lengths += [int(part[key]) for part in each if (key := "original_max_position_embeddings") in part]
    return min(lengths, default=None)


# -- keys and values ---------------------------------------------------------------------------------------------------


def cache_of(states: Iterable[tuple[Tensor, Tensor]]) -> DynamicCache:
    """Return a cache of these keys and values of each layer, `[batch, heads, time, head_dim]`, without copying them."""
    cache = DynamicCache()
    for index, (keys, values) in enumerate(states):
        cache.update(keys[:, :, :0], values[:, :, :0], index)  # makes the layer
        layer: Any = cache.layers[index]
        layer.keys, layer.values = keys, values
    return cache


def keys_and_values(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Return each layer's keys and values, `[batch, heads, time, head_dim]`."""
    return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr, misc]


class PreallocatedLayer(DynamicLayer):
    """A layer's keys and values, with space behind them for what is read next: nothing is copied to add to them.

    Every reader writes into the same space, one after the other; none may want a gradient.

    Args:
        keys, values: `[batch, heads, time + space, head_dim]`.
        time: how many are there already.
    """

    def __init__(self, keys: Tensor, values: Tensor, time: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._all_keys, self._all_values, self._time = keys, values, time
        self.keys, self.values = keys[:, :, :time], values[:, :, :time]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values `[batch, heads, new, head_dim]` behind the others; returns all of them."""
        end = self._time + key_states.shape[2]
        self._all_keys[:, :, self._time : end] = key_states
        self._all_values[:, :, self._time : end] = value_states
        self.keys, self.values = self._all_keys[:, :, :end], self._all_values[:, :, :end]
        return self.keys, self.values

    def fork(self) -> PreallocatedLayer:
        """Return the same for another reader."""
        return PreallocatedLayer(self._all_keys, self._all_values, self._time)


def preallocate(cache: DynamicCache, tokens: int) -> DynamicCache:
    """Return a copy of a cache with space for so many more tokens: its layers are :class:`PreallocatedLayer`."""
    grown = DynamicCache()
    for states in keys_and_values(cache):
        (batch, heads, time, width), first = states[0].shape, states[0]
        keys, values = (first.new_empty(batch, heads, time + tokens, width) for _ in states)
        keys[:, :, :time], values[:, :, :time] = states
        grown.layers.append(PreallocatedLayer(keys, values, time))
    return grown


# -- attention ---------------------------------------------------------------------------------------------------------


def attention_of(model: PreTrainedModel) -> str | None:
    """Return which implementation of attention a model uses, such as ``sdpa``."""
    return getattr(model.config, "_attn_implementation", None)


def takes_masks(model: PreTrainedModel) -> bool:
    """Tell whether attention can be given masks of any shape.

    Flex attention is compiled for its own kind of masks; on a processor it reads others beyond their end, which ends
    the process.
    """
    return attention_of(model) != "flex_attention"


def sliding_window(model: PreTrainedModel) -> int | None:
    """Return how far back (some of) the model's layers look, or None where all look at everything."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    return getattr(config, "sliding_window", None)


def attention_chunk(model: PreTrainedModel) -> int | None:
    """Return the length of the chunks beyond which (some of) the model's layers do not look, or None (Llama 4)."""
    config = model.config.get_text_config()
    chunked = "chunked_attention" in (getattr(config, "layer_types", None) or ())
    return config.attention_chunk_size if chunked else None


def looks_nearby(model: PreTrainedModel) -> bool:
    """Tell whether (some of) the model's layers look at less than everything before a token."""
    return sliding_window(model) is not None or attention_chunk(model) is not None


def _attention_masks(
    model: PreTrainedModel, visible: Tensor, positions: Tensor, key_positions: Tensor
) -> Tensor | dict[str, Tensor]:
    """Return what the attention scores get added, `[batch, 1, new, past + new]`; by kind of layer where there are two.

    Windows and chunks count positions in the text here, where the model's own masks count slots of the batch.
    """
    kinds: set[str] = {"full_attention", *(getattr(model.config.get_text_config(), "layer_types", None) or ())}
    window, chunk = sliding_window(model), attention_chunk(model)
    queries, keys = positions[:, :, None], key_positions[:, None, :]
    near = visible & (queries - keys < window) if window is not None else visible
    if len(kinds) == 1 or (window is None and chunk is None):
        return _additive(near, model.dtype)
    masks = dict.fromkeys(kinds, _additive(visible, model.dtype))
    if window is not None:
        masks |= dict.fromkeys((kind for kind in kinds if "sliding" in kind), _additive(near, model.dtype))
    if chunk is not None:
        masks["chunked_attention"] = _additive(visible & (queries // chunk == keys // chunk), model.dtype)
    return masks


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


@contextmanager
def _alibi_of(decoder: PreTrainedModel, key_positions: Tensor) -> Iterator[None]:
    """Within this context BLOOM's attention bias follows positions in the text, not slots of the batch."""
    if not hasattr(decoder, "build_alibi_tensor"):
        yield
        return
    build: Any = decoder.build_alibi_tensor

    def alibi(_: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
        slopes = build(key_positions.new_ones(1, 2), heads, torch.float32)[:, 0, 1]
        bias = slopes[None, :, None] * key_positions[:, None, :]
        return bias.reshape(-1, 1, bias.shape[-1]).to(dtype)

    with _replaced(decoder, "build_alibi_tensor", alibi):
        yield


# -- memory ------------------------------------------------------------------------------------------------------------


def layers_and_width(model: PreTrainedModel) -> tuple[int, int]:
    """Return how many layers a model has, and the size of its hidden states.

    BLT's configuration names them for each of its parts alone: layers are counted then, and the embeddings measured.
    """
    config, weight = model.config.get_text_config(), model.get_input_embeddings().weight
    counted = sum(isinstance(module, GradientCheckpointingLayer) for module in model.modules())
    layers = getattr(config, "num_hidden_layers", None) or max(1, counted)
    return int(layers), int(getattr(config, "hidden_size", None) or weight.shape[1])  # type: ignore[index]


@contextmanager
def activation_checkpointing(model: PreTrainedModel) -> Iterator[None]:
    """Within this context layers keep their input alone for the backward pass, and compute the rest again in it.

    transformers offers the same for models in training mode only, in which a frozen model would draw dropout.
    """

    with ExitStack() as stack:
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                again = partial(checkpoint, layer.forward, use_reentrant=False)
                stack.enter_context(_replaced(layer, "forward", again))
        yield


# -- GGUF files --------------------------------------------------------------------------------------------------------


def tell_version_of_gguf() -> None:
    """Let transformers know the version of the package gguf, which it does not find out on Python 3.10."""
    import gguf

    if not hasattr(gguf, "__version__"):
        gguf.__version__ = importlib.metadata.version("gguf")  # type: ignore[attr-defined]


# -- what is changed in a model, once, when it is loaded ---------------------------------------------------------------


def prepare(model: PreTrainedModel) -> None:
    """Give a model faster layers that compute the same, and gradients where bitsandbytes would lose them."""
    products.use_fast_products(model)
    head = _without_wrapper(model).get_output_embeddings()
    if isinstance(head, nn.Linear) and _in_one_piece not in head._forward_pre_hooks.values():
        head.register_forward_pre_hook(_in_one_piece)
    for module in model.modules():
        if type(module).__name__ in SLOW_GELUS:
            module.__class__ = FastGELU
    _let_gradients_through(model)


def _in_one_piece(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Put the hidden states of some tokens, a slice of all, side by side for the vocabulary head.

    Otherwise PyTorch copies a frozen head's weights in bfloat16, at every call, and not the few states. It looks at
    strides even where there is one row, which for `contiguous` is in one piece anyhow.
    """
    return tuple(given.clone(memory_format=torch.contiguous_format) for given in inputs)


class FastGELU(nn.Module):
    """The tanh form of GELU in one kernel; spelled out in Python it passes four times over a layer's widest tensor."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return GELU of `inputs`, of any shape."""
        return nn.functional.gelu(inputs, approximate="tanh")


def _let_gradients_through(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew at their first use on a processor with AVX512-BF16.

    What it multiplies them by then has no gradient with respect to its input: those of a prompt would be wrong, with no
    more than a warning.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


# -- replacing -----------------------------------------------------------------------------------------------------


@contextmanager
def _replaced(module: nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Within this context `module` has another method; one that it had of its own (accelerate's) comes back."""
    before = vars(module).get(name)
    vars(module)[name] = method
    try:
        yield
    finally:
        if before is None:
            del vars(module)[name]
        else:
            vars(module)[name] = before


@lru_cache(maxsize=8)
def _has_parameter(function: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(function).parameters
