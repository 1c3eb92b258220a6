"""The parts in which training reads documents: the fastest ones, and of no matter for what is learned."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_spt.train import loop
from lm_eval_spt.train.examples import Example
from lm_eval_spt.train.parts import parts_of
from tests.helpers.training import run


def example(width: int, contexts: int = 1) -> Example:
    """An example with contexts of its own for some of its choices, and a longest text of `width` tokens."""
    return Example(tuple(((number,) * (width - 1), (0,)) for number in range(contexts)) + (((0,), (1,)),), 0)


def cost(parts: list[list[Example]], pass_tokens: int) -> int:
    rows = [[{context for context, _ in each.pairs} for each in part] for part in parts]
    widths = [max(len(context) + 1 for contexts in part for context in contexts) for part in rows]
    return sum(sum(map(len, part)) * width + pass_tokens for part, width in zip(rows, widths, strict=True))


@given(
    st.lists(st.tuples(st.integers(2, 40), st.integers(1, 3)), min_size=1, max_size=7),
    st.integers(1, 8),
    st.integers(0, 100),
)
def test_no_other_parts_are_faster(sizes, most, pass_tokens):
    examples = [example(*size) for size in sizes]
    parts = parts_of(examples, most, pass_tokens)
    assert sorted(map(id, examples)) == sorted(id(each) for part in parts for each in part)
    assert max(map(len, parts)) <= most
    ordered = sorted(examples, key=lambda each: max(len(context) for context, _ in each.pairs))
    found = []
    for cuts in (cut for count in range(len(ordered)) for cut in combinations(range(1, len(ordered)), count)):
        pieces = [ordered[a:b] for a, b in zip((0, *cuts), (*cuts, len(ordered)), strict=True)]
        if max(map(len, pieces)) <= most:
            found.append(cost(pieces, pass_tokens))
    assert cost(parts, pass_tokens) == min(found)


@pytest.mark.parametrize("changes", [{"tune": "all"}, {"placement": "prefix", "batch_size": 16}], ids=str)
def test_a_run_in_parts_learns_what_one_in_whole_batches_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    logs, sizes = [], []
    for name, pass_tokens in (("parts", 0), ("whole", 10**9)):
        for limit in ("PASS_TOKENS", "PASS_TOKENS_ON_CPU"):
            monkeypatch.setattr(loop, limit, pass_tokens)
        calls: list[int] = []

        def watched(*arguments, calls=calls):
            parts = parts_of(*arguments)
            calls.append(len(parts))
            return parts

        monkeypatch.setattr(loop, "parts_of", watched)
        logs.append(run(tmp_path / f"{name}.safetensors", lr=1e-3, **changes)[1])
        sizes.append(sum(calls))
    assert sizes[0] > sizes[1]
    for ours, whole in zip(*logs, strict=True):
        for kind in ("training", "validation"):
            assert ours[kind].get("loss", 0) == pytest.approx(whole[kind].get("loss", 0), rel=1e-3, abs=1e-5)
