"""The fingerprint of a base model's embeddings, against a plain restatement."""

from __future__ import annotations

import hashlib

import pytest
import torch

from lm_eval_spt.prompt.fingerprint import embedding_fingerprint


def embedding_of(weight: torch.Tensor) -> torch.nn.Embedding:
    return torch.nn.Embedding.from_pretrained(weight)


@pytest.mark.parametrize("rows", [3, 512, 1300])
def test_fingerprint_is_a_hash_of_the_signs_of_evenly_spread_rows(rows: int) -> None:
    weight = torch.randn(rows, 5)
    count = min(rows, 512)
    signs = [value < 0 for i in range(count) for value in weight[i * rows // count].tolist()]
    bits = "".join("1" if sign else "0" for sign in signs).ljust(-(-len(signs) // 8) * 8, "0")
    expected = hashlib.sha256(f"[{rows}, 5]".encode() + int(bits, 2).to_bytes(len(bits) // 8, "big")).hexdigest()[:16]
    assert embedding_fingerprint(embedding_of(weight)) == expected


def test_fingerprint_does_not_depend_on_the_dtype() -> None:
    weight = torch.randn(600, 8) * torch.logspace(-40, 3, 8)  # float16 underflows, bfloat16 rounds
    weight[5] = 0
    prints = {embedding_fingerprint(embedding_of(weight.to(t))) for t in (torch.float32, torch.float16, torch.bfloat16)}
    assert len(prints) == 1


def test_fingerprint_tells_models_apart() -> None:
    weight = torch.randn(600, 64) * 0.02
    tuned = weight + torch.randn_like(weight) * 1e-4  # some steps with a small learning rate
    others = [tuned, torch.randn(600, 64), weight[:599], torch.cat([weight, torch.zeros(1, 64)])]
    assert len({embedding_fingerprint(embedding_of(w)) for w in [weight, *others]}) == 5
