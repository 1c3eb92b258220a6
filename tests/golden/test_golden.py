"""Log-likelihoods that are stored: whatever shifts them, a dependency or a change here, is noticed."""

from __future__ import annotations

import json

import pytest

from tests.golden.numbers import mini_numbers, tiny_numbers
from tests.helpers.models import FAMILIES
from tests.helpers.paths import ROOT

CLOSE = {"abs": 1e-4, "rel": 1e-5}


def stored(name: str) -> dict:
    return json.loads((ROOT / "tests" / "golden" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_give_the_stored_numbers(family, fast, tokenizer):
    expected, found = stored("tiny")[family], tiny_numbers(family, tokenizer, fast)
    assert found.keys() == expected.keys()
    for prompt, values in found.items():
        assert values == pytest.approx(expected[prompt], **CLOSE), prompt
    assert expected["none"] != pytest.approx(expected["prefix"], abs=0.1)
    assert expected["prefix"] != pytest.approx(expected["suffix"], abs=0.1)


def test_the_embedded_model_gives_the_stored_numbers():
    expected, found = stored("mini"), mini_numbers()
    update = "where that is meant: python -m tests.golden mini"
    assert found["fingerprint"] == expected["fingerprint"], f"the embedded model is another one; {update}"
    assert {"made_with", *found} == set(expected), f"other prompts ship; {update}"
    for prompt in set(found) - {"fingerprint"}:
        for kind in ("choices", "rolling"):
            assert found[prompt][kind] == pytest.approx(expected[prompt][kind], **CLOSE), (prompt, kind, update)
        assert found[prompt]["generation"] == expected[prompt]["generation"], (prompt, update)
