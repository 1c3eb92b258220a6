"""Look into a soft prompt: its record, the norms of its vectors, and the vocabulary tokens nearest to them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import normalize

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.prompt import file_format
from lm_eval_spt.prompt.fingerprint import embedding_fingerprint
from lm_eval_spt.prompt.soft_prompt import SoftPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARY_CHUNK = 16384  # embedding rows held in float32 at a time


def report(prompt: SoftPrompt) -> dict[str, Any]:
    """Return a prompt's identity, record and norms as a JSON object."""
    norms = file_format.by_position(prompt.vectors).norm(dim=1).tolist()
    by_layer = {}
    if prompt.kind == "kv":
        keys, values = prompt.vectors.norm(dim=-1).flatten(2).mean(dim=-1).unbind(dim=1)
        by_layer = {"norms_by_layer": {"keys": keys.tolist(), "values": values.tolist()}}
    return {
        "name": prompt.name,
        "digest": prompt.digest,
        "length": prompt.length,
        **{key: value for key, value in file_format.sizes(prompt.vectors).items() if key != "num_virtual_tokens"},
        "placement": prompt.placement,
        "metadata": prompt.metadata,
        **by_layer,
        "norms": {"min": min(norms), "mean": statistics.fmean(norms), "max": max(norms), "per_vector": norms},
    }


def nearest_vocabulary(
    prompt: SoftPrompt,
    embedding: torch.nn.Embedding,
    tokenizer: PreTrainedTokenizerBase,
    base_model: str,
    count: int,
) -> dict[str, Any]:
    """Return the part of the report that needs the base model: norms of its vocabulary, tokens nearest to each vector.

    Args:
        prompt: the prompt.
        embedding: the base model's input-embedding module, on the CPU.
        tokenizer: the base model's.
        base_model: its name, for error messages.
        count: how many tokens per vector.

    Raises:
        UserError: the prompt was trained for another model, or is a deep prefix.
    """
    if prompt.kind == "kv":
        raise UserError(f"the prompt {prompt.name!r} is a deep prefix: no token of the vocabulary is near to it")
    prompt.check_fits((embedding.weight.shape[1],), embedding_fingerprint(embedding), base_model)
    ids, cosines, norms = nearest_tokens(prompt.vectors, embedding, count)
    return {
        "vocabulary_norms": {"mean": norms.mean().item(), "median": norms.median().item()},
        "nearest_tokens": [
            [
                {"id": token_id, "token": _token_text(tokenizer, token_id), "cosine": cosine}
                for token_id, cosine in zip(row_ids, row_cosines, strict=True)
            ]
            for row_ids, row_cosines in zip(ids.tolist(), cosines.tolist(), strict=True)
        ],
    }


def nearest_tokens(
    vectors: torch.Tensor, embedding: torch.nn.Embedding, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the vocabulary tokens that point in the direction of each vector.

    They are compared with the embedding module's outputs, not with its weight: some models scale between the two.

    Args:
        vectors: `[P, d]`.
        embedding: the base model's input-embedding module, vocabulary V.
        count: how many tokens per vector; no more than V are returned.

    Returns:
        Token ids `[P, count]`, nearest first; their cosine similarities `[P, count]`; the norm of every token's
        embedding `[V]`.
    """
    cosines, norms = [], []
    with torch.inference_mode():
        for ids in torch.arange(len(embedding.weight)).split(VOCABULARY_CHUNK):
            rows = embedding(ids).float()
            norms.append(rows.norm(dim=1))
            cosines.append(normalize(vectors, dim=1) @ normalize(rows, dim=1).T)
        best = torch.cat(cosines, dim=1).topk(min(count, len(embedding.weight)), dim=1)
    return best.indices, best.values, torch.cat(norms)


def _token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """A token's text, or its vocabulary entry in <> where it is only a part of a character."""
    text = str(tokenizer.decode([token_id]))
    if text and "\N{REPLACEMENT CHARACTER}" not in text:
        return text
    # Embeddings can outnumber tokens: many models pad their vocabulary.
    return f"<{tokenizer.convert_ids_to_tokens(token_id) or token_id}>"


def as_text(report: dict[str, Any]) -> Iterator[str]:
    """The report as lines in aligned columns."""
    norms = report["norms"]
    listed = ("metadata", "norms", "norms_by_layer", "vocabulary_norms", "nearest_tokens")
    facts = {key: value for key, value in report.items() if key not in listed} | {
        key: value for key, value in _flattened(report["metadata"]) if key not in report
    }
    facts["norms"] = "  ".join(f"{key} {norms[key]:.4g}" for key in ("min", "mean", "max"))
    if "vocabulary_norms" in report:
        facts["vocabulary norms"] = "  ".join(f"{key} {value:.4g}" for key, value in report["vocabulary_norms"].items())
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        line = f"{key:{width}}  {value}"
        yield line if line.isprintable() else repr(line)  # a file from elsewhere could hold control characters

    yield ""
    nearest = report.get("nearest_tokens", [[]] * report["length"])
    yield "vector      norm" + ("  nearest tokens (cosine similarity)" if any(nearest) else "")
    for index, (norm, tokens) in enumerate(zip(norms["per_vector"], nearest, strict=True)):
        listing = "".join(f"  {token['token']!r} {token['cosine']:.2f}" for token in tokens)
        yield f"{index:6d}  {norm:8.4g}{listing}"
    if by_layer := report.get("norms_by_layer"):
        yield ""
        yield " layer  keys, mean norm  values"
        for layer, pair in enumerate(zip(by_layer["keys"], by_layer["values"], strict=True)):
            yield f"{layer:6d}  {pair[0]:15.4g}  {pair[1]:6.4g}"


def _flattened(metadata: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values of nested objects, the keys joined by dots."""
    for key, value in metadata.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield prefix + key, ", ".join(map(str, value))
        else:
            yield prefix + key, value
