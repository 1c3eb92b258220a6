"""The same answers however they are asked for: drawn settings against one unpadded pass, restated by hand."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.models import random_prompt
from tests.helpers.scoring import CLOSE, restated, values

TOKENS = st.integers(4, 20479)
WAYS = ("as it is", "through a file", "through a PEFT folder")


def stored(prompt: SoftPrompt, way: str, folder: Path) -> SoftPrompt:
    """The prompt after a journey through files."""
    if way == "through a file":
        prompt.save(folder / "p.safetensors")
        return SoftPrompt.from_pretrained(folder / "p.safetensors")
    if way == "through a PEFT folder" and prompt.placement == "prefix":
        prompt.to_peft(folder / "adapter")
        return SoftPrompt.from_pretrained(folder / "adapter")
    return prompt


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_setting_gives_the_number_of_one_plain_pass(tiny_models, tokenizer, data):
    """Batch size, order, ranks, scorer and the prompt's way through files are drawn, and so is what is asked."""
    model = tiny_models[data.draw(st.sampled_from(sorted(tiny_models)), "family")]
    placement = data.draw(st.sampled_from(["prefix", "suffix"]), "placement")
    prompt = random_prompt(model, data.draw(st.integers(1, 12), "prompt length"), placement)
    asked = []
    for _ in range(data.draw(st.integers(1, 4), "contexts")):
        context = data.draw(st.lists(TOKENS, min_size=1, max_size=40), "context")
        choices = data.draw(st.lists(st.lists(TOKENS, min_size=1, max_size=5), min_size=1, max_size=6), "choices")
        asked += [(None, context, choice) for choice in choices]
    order = data.draw(st.permutations(range(len(asked))), "order")
    ranks = data.draw(st.sampled_from([1, 2, 4]), "ranks")
    options = {
        "batch_size": data.draw(st.sampled_from([1, 2, 3, 16, "auto"]), "batch size"),
        "fast": data.draw(st.booleans(), "fast"),
    }
    # The harness's own loop takes requests that the model reads as the same tokens for single-token choices of one
    # context, and gives wrong numbers where they are not.
    lengths: dict[tuple[int, ...], set[int]] = {}
    for _, context, continuation in asked:
        lengths.setdefault((*context, *continuation[:-1]), set()).add(len(continuation))
    assume(options["fast"] or all(len(found) == 1 for found in lengths.values()))
    with tempfile.TemporaryDirectory() as folder:
        loaded = stored(prompt, data.draw(st.sampled_from(WAYS), "way"), Path(folder))
    assert loaded.digest == prompt.digest

    lm = SPTLM(pretrained=model, tokenizer=tokenizer, prompt=loaded, **options)
    found = {}
    for rank in range(ranks):  # as the harness shares requests out
        share = order[rank::ranks]
        answers = values(lm._loglikelihood_tokens([asked[number] for number in share], disable_tqdm=True))
        found |= dict(zip(share, answers, strict=True))
    for number, (_, context, continuation) in enumerate(asked):
        expected, _ = restated(model, context, continuation, prompt)
        assert found[number] == pytest.approx(expected, **CLOSE)
