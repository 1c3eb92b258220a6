"""Several prompts of one base model made into one.

``concat`` puts them one after the other, such as a language's prompt and a task's (what kinit-sk's
adapter-prompt-evaluation does with soft language prompts); ``mean`` and ``interpolate`` average vectors that stand at
the same position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.prompt.metadata import scored_documents
from lm_eval_spt.prompt.soft_prompt import SoftPrompt

Mode = Literal["concat", "mean", "interpolate"]


def compose(prompts: Sequence[SoftPrompt], mode: Mode, weight: float | None = None) -> SoftPrompt:
    """Return one prompt made of several.

    Args:
        prompts: two or more, of one base model and one placement. With the placement ``both`` the vectors before the
            text and those after it are composed separately. Deep prefixes, whose keys belong to a position, are not
            put one after the other.
        mode: ``concat``: all vectors, in the order given; ``mean``: the mean of prompts of one length;
            ``interpolate``: (1 - weight) * first + weight * second.
        weight: of the second prompt, 0.5 by default; any number, beyond 0 and 1 it extrapolates. Only for
            ``interpolate``.

    Returns:
        A prompt whose metadata holds the mode and the parts' names and digests under ``composed``. Of the parts'
        metadata it keeps the base model, and the tasks and source languages of all.

    Raises:
        UserError: fewer than two prompts, or prompts that do not go together.
    """
    if len(prompts) < 2 or (mode == "interpolate" and len(prompts) > 2):
        expected = "exactly two" if mode == "interpolate" else "two or more"
        raise UserError(f"{len(prompts)} prompts were given, expected {expected} for the mode {mode!r}")
    if weight is not None and mode != "interpolate":
        raise UserError(f"a weight was given ({weight:g}), but the mode {mode!r} takes none: use 'interpolate'")
    _check_together(prompts)
    if mode == "concat" and prompts[0].kind == "kv":
        raise UserError(
            "the mode 'concat' does not go with deep prefixes, whose keys belong to a position: use 'mean' or "
            "'interpolate'"
        )
    if mode != "concat":
        _check_same(prompts, "virtual tokens", [prompt.length for prompt in prompts], "use the mode 'concat'")
        _check_same(prompts, "virtual tokens before the text", [prompt.num_prefix_tokens for prompt in prompts])

    if mode == "concat":
        before = torch.cat([prompt.vectors[: prompt.num_prefix_tokens] for prompt in prompts])
        after = torch.cat([prompt.vectors[prompt.num_prefix_tokens :] for prompt in prompts])
        vectors, num_prefix_tokens = torch.cat([before, after]), len(before)
    else:
        weights = [1 / len(prompts)] * len(prompts)
        if mode == "interpolate":
            weight = 0.5 if weight is None else weight
            weights = [1 - weight, weight]
        vectors = _weighted_sum([prompt.vectors for prompt in prompts], weights)
        num_prefix_tokens = prompts[0].num_prefix_tokens

    composed: dict[str, Any] = {
        "mode": mode,
        "prompts": [{"name": prompt.name, "digest": prompt.digest} for prompt in prompts],
    }
    if mode == "interpolate":
        composed["weight"] = weight
    metadata: dict[str, Any] = {"placement": prompts[0].placement, "composed": composed}
    if prompts[0].placement == "both":
        metadata["num_prefix_tokens"] = num_prefix_tokens
    for key in ("base_model", "base_model_revision", "embedding_fingerprint", "task_type"):
        metadata[key] = next((prompt.metadata[key] for prompt in prompts if prompt.metadata.get(key)), None)
    for key in ("gguf_file", "gguf_sha256"):
        metadata |= next(({key: prompt.metadata[key]} for prompt in prompts if prompt.metadata.get(key)), {})
    for key in ("tasks", "source_languages"):
        metadata[key] = list(dict.fromkeys(value for prompt in prompts for value in prompt.metadata.get(key) or []))
    label_counts = [prompt.metadata.get("label_counts") for prompt in prompts]
    if label_counts[0] and all(counts == label_counts[0] for counts in label_counts):
        metadata["label_counts"] = label_counts[0]
    if counts := scored_documents(prompt.metadata for prompt in prompts):
        metadata["scored_documents"] = counts
    if (add_bos_token := _add_bos_token(prompts[0])) is not None:  # the model class encodes texts by it
        metadata["hyperparameters"] = {"add_bos_token": add_bos_token}
    return SoftPrompt(vectors, metadata, "+".join(prompt.name for prompt in prompts))


def _weighted_sum(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted sum of tensors of one shape, computed in float64."""
    return sum(part.double() * weight for part, weight in zip(parts, weights, strict=True))  # type: ignore[return-value]


def _check_together(prompts: Sequence[SoftPrompt]) -> None:
    """Raise UserError unless the prompts have one placement and, where they record it, one base model."""
    _check_same(prompts, "the kind", [prompt.kind for prompt in prompts], "embeddings and deep prefixes do not mix")
    sizes = [prompt.size if len(prompt.size) > 1 else prompt.size[0] for prompt in prompts]
    _check_same(prompts, "vector size", sizes, "they have different base models")
    identities = ["embedding_fingerprint", "base_model"]
    for first, other in ((prompts[0], other) for other in prompts[1:]):
        # A base model can have several names; its fingerprint decides where both prompts record one.
        known = next((key for key in identities if first.metadata.get(key) and other.metadata.get(key)), None)
        if known:
            values = [first.metadata[known], other.metadata[known]]
            _check_same([first, other], known.replace("_", " "), values, "prompts of different base models do not mix")
    _check_same(prompts, "placement", [prompt.placement for prompt in prompts])
    _check_same(prompts, "add_bos_token", [_add_bos_token(prompt) for prompt in prompts])


def _add_bos_token(prompt: SoftPrompt) -> bool | None:
    return (prompt.metadata.get("hyperparameters") or {}).get("add_bos_token")


def _check_same(prompts: Sequence[SoftPrompt], what: str, values: Sequence[Any], advice: str = "") -> None:
    for prompt, value in zip(prompts, values, strict=True):
        if value != values[0]:
            raise UserError(
                f"{prompts[0].name!r} has {what} {values[0]!r} and {prompt.name!r} has {value!r}: "
                f"{advice or 'compose prompts that agree'}"
            )
