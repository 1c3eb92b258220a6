"""Composing prompts: the vectors by plain arithmetic, the record of the parts, and what does not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_spt import cli
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.prompt.compose import compose
from lm_eval_spt.prompt.ensemble import Ensemble
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.paths import ROOT


def prompt(length: int = 3, name: str = "a", seed: int = 0, size: int = 4, **metadata: Any) -> SoftPrompt:
    vectors = torch.randn(length, size, generator=torch.Generator().manual_seed(seed))
    known = {"base_model": "me/base", "embedding_fingerprint": "f" * 16, "placement": "suffix"}
    return SoftPrompt(vectors, known | metadata, name)


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    placement=st.sampled_from(["prefix", "suffix"]),
    weight=st.floats(-1, 2),
)
def test_vectors_are_put_together_by_plain_arithmetic(lengths, placement, weight):
    parts = [prompt(n, name=f"p{i}", seed=i, placement=placement) for i, n in enumerate(lengths)]
    joined = compose(parts, "concat")
    assert joined.vectors.tolist() == [row for part in parts for row in part.vectors.tolist()]
    assert joined.placement == placement
    same = [prompt(lengths[0], name=f"p{i}", seed=i) for i in range(len(lengths))]
    expected = torch.stack([part.vectors for part in same]).mean(0)
    assert torch.allclose(compose(same, "mean").vectors, expected, atol=1e-6)
    first, second = same[0].vectors, same[1].vectors
    between = compose(same[:2], "interpolate", weight)
    assert torch.allclose(between.vectors, first + weight * (second - first), atol=1e-5)
    assert torch.equal(compose(same[:2], "interpolate", 0).vectors, first)
    assert torch.equal(compose(same[:2], "interpolate", 1).vectors, second)


def test_what_stands_before_and_after_the_text_is_joined_apart():
    first = prompt(3, seed=0, placement="both", num_prefix_tokens=1)
    second = prompt(4, name="b", seed=1, placement="both", num_prefix_tokens=3)
    joined = compose([first, second], "concat")
    expected = torch.cat([first.vectors[:1], second.vectors[:3], first.vectors[1:], second.vectors[3:]])
    assert torch.equal(joined.vectors, expected) and joined.num_prefix_tokens == 4
    assert compose([first, first], "mean").digest == first.digest


def test_the_record_names_the_parts_and_keeps_what_they_share():
    hyperparameters = {"add_bos_token": False, "lr": 1.0}
    first = prompt(tasks=["t_eng"], source_languages=["eng_Latn"], hyperparameters=hyperparameters)
    second = prompt(name="b", seed=1, tasks=["t_arb", "t_eng"], source_languages=["arb_Arab"])
    second = SoftPrompt(second.vectors, second.metadata | {"hyperparameters": {"add_bos_token": False}}, "b")
    composed = compose([first, second], "interpolate", 0.25)
    assert composed.metadata["composed"] == {
        "mode": "interpolate",
        "weight": 0.25,
        "prompts": [{"name": "a", "digest": first.digest}, {"name": "b", "digest": second.digest}],
    }
    assert composed.metadata["base_model"] == "me/base" and composed.metadata["embedding_fingerprint"] == "f" * 16
    assert composed.metadata["tasks"] == ["t_eng", "t_arb"]
    assert composed.metadata["source_languages"] == ["eng_Latn", "arb_Arab"]
    assert composed.metadata["hyperparameters"] == {"add_bos_token": False}


def test_what_has_seen_test_documents_stays_known():
    seen = prompt(scored_documents={"training": 3, "validation": 0})
    more = prompt(name="b", seed=1, scored_documents={"training": 2, "validation": 5})
    for mode in ("mean", "concat"):
        composed = compose([seen, prompt(name="c", seed=2), more], mode)
        assert composed.metadata["scored_documents"] == {"training": 3, "validation": 5}
    ensemble = Ensemble((seen, prompt(name="c", seed=2)))
    assert ensemble.metadata["scored_documents"] == {"training": 3, "validation": 0}
    clean = [prompt(), prompt(name="c", seed=2)]
    assert "scored_documents" not in compose(clean, "mean").metadata | Ensemble(tuple(clean)).metadata
    with pytest.raises(UserError, match="scored_documents .* expected an object of whole numbers"):
        prompt(scored_documents={"training": "many"})


def test_a_prompt_that_does_not_name_its_base_is_taken_at_its_word():
    unnamed = SoftPrompt(torch.ones(2, 4), {"placement": "suffix"}, "unnamed")
    for pair in ([prompt(2), unnamed], [unnamed, prompt(2)]):
        assert compose(pair, "mean").metadata["base_model"] == "me/base"


BAD = {
    "one prompt": ([prompt()], "mean", None, "1 prompts were given, expected two or more"),
    "three to interpolate": ([prompt()] * 3, "interpolate", None, "3 prompts were given, expected exactly two"),
    "a weight for the mean": ([prompt()] * 2, "mean", 0.5, "the mode 'mean' takes none"),
    "sizes": ([prompt(), prompt(size=5, name="b")], "concat", None, "'a' has vector size 4 and 'b' has 5"),
    "fingerprints": (
        [prompt(), prompt(name="b", embedding_fingerprint="0" * 16)],
        "concat",
        None,
        f"embedding fingerprint {'f' * 16!r} and 'b' has {'0' * 16!r}: prompts of different base models do not mix",
    ),
    "names": (
        [prompt(embedding_fingerprint=None), prompt(name="b", base_model="you/base")],
        "concat",
        None,
        "base model 'me/base' and 'b' has 'you/base'",
    ),
    "placements": ([prompt(), prompt(name="b", placement="prefix")], "concat", None, "placement 'suffix' and 'b' has"),
    "lengths": ([prompt(), prompt(2, name="b")], "mean", None, "virtual tokens 3 and 'b' has 2: use the mode 'concat'"),
    "splits": (
        [prompt(placement="both", num_prefix_tokens=before, name=f"b{before}") for before in (1, 2)],
        "mean",
        None,
        "before the text 1 and 'b2' has 2",
    ),
    "BOS tokens": (
        [prompt(), prompt(name="b", hyperparameters={"add_bos_token": True})],
        "mean",
        None,
        "add_bos_token None and 'b' has True",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_go_together_is_said_in_one_line(case):
    prompts, mode, weight, message = BAD[case]
    with pytest.raises(UserError) as caught:
        compose(prompts, mode, weight)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_writes_a_prompt_that_scores(tmp_path: Path, capsys):
    shipped = [str(ROOT / "prompts" / f"mini_eng_suffix{length}.safetensors") for length in (16, 50)]
    output = tmp_path / "joined.safetensors"
    arguments = ["compose", *shipped, "--output", str(output)]
    assert cli.main(arguments) == 0
    assert "66 virtual tokens, vectors of size 256, placement suffix" in capsys.readouterr().out
    joined = SoftPrompt.load(output)
    assert [part["name"] for part in joined.metadata["composed"]["prompts"]] == [Path(name).stem for name in shipped]
    assert SPTLM(prompt=str(output), device="cpu").prompt.length == 66

    before = output.read_bytes()
    assert cli.main(arguments) == 1
    assert "already exists" in capsys.readouterr().err
    assert cli.main([*arguments, "--mode", "interpolate", "--force"]) == 1
    assert "virtual tokens 16 and" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert cli.main(["compose", *shipped, "--output", str(tmp_path / "x.bin")]) == 1
    assert "ends in .safetensors" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--weight", "nan"])
    assert "expected a number" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["joined.safetensors"]
