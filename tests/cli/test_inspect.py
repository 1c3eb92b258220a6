"""``lm-eval-spt inspect``: what it prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from lm_eval_spt import cli
from lm_eval_spt.prompt import inspection
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.cli.conftest import TOKENS, run
from tests.helpers.models import build_model


def test_inspect_prints_provenance_and_norms(prompt_file: Path) -> None:
    result = run("inspect", prompt_file)
    assert result.returncode == 0 and result.stderr == ""
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if line)
    assert lines["digest"] == SoftPrompt.load(prompt_file).digest
    assert (lines["length"], lines["hidden_size"], lines["placement"]) == ("3", "256", "prefix")
    assert (lines["base_model"], lines["tasks"], lines["hyperparameters.lr"]) == ("mini", "first, second", "0.5")
    norms = SoftPrompt.load(prompt_file).vectors.norm(dim=1).tolist()
    assert [float(lines[index]) for index in "012"] == pytest.approx(norms, rel=1e-3)


def test_inspect_finds_the_tokens_that_vectors_were_made_of(prompt_file: Path, mini_model: PreTrainedModel) -> None:
    result = run("inspect", prompt_file, "--base-model", "mini", "--neighbours", "2", "--json")
    assert result.returncode == 0 and result.stderr == ""
    report = json.loads(result.stdout)
    assert [[len(tokens), tokens[0]["id"]] for tokens in report["nearest_tokens"]] == [[2, token] for token in TOKENS]
    assert [tokens[0]["cosine"] for tokens in report["nearest_tokens"]] == pytest.approx([1, 1, 1], abs=1e-4)
    norms = mini_model.get_input_embeddings().weight.norm(dim=1)
    assert report["vocabulary_norms"]["median"] == pytest.approx(norms.median().item(), rel=1e-4)
    assert report["vocabulary_norms"]["mean"] == pytest.approx(norms.mean().item(), rel=1e-4)


def test_inspect_shows_tokens_as_text(prompt_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(prompt_file), "--base-model", "mini"]) == 0
    rows = capsys.readouterr().out.splitlines()[-3:]
    # The first one is the byte A3, part of many characters, which byte-level vocabularies write as a pound sign.
    for text, row in zip(["<£>", " contra", "ρεία"], rows, strict=True):
        nearest, *others = re.findall(r"  ('.+?') (\d\.\d\d)", row)
        assert nearest == (repr(text), "1.00") and len(others) == 4


def test_inspect_shows_control_characters_of_a_foreign_file_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SoftPrompt(torch.ones(1, 2), {"note": "\x1b[2J\n\u202e"}).save(tmp_path / "p.safetensors")
    assert cli.main(["inspect", str(tmp_path / "p.safetensors")]) == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output and r"\x1b[2J\n\u202e" in output


@pytest.mark.parametrize("family", ["xglm", "gemma3_text"])
def test_neighbours_are_compared_with_scaled_embeddings(family: str) -> None:
    """These families multiply embeddings by sqrt(d) on the way out of the module: norms must include it."""
    embedding = build_model(family).get_input_embeddings()
    vectors = 0.5 * embedding(torch.tensor(TOKENS)).detach()
    ids, cosines, norms = inspection.nearest_tokens(vectors, embedding, 1)
    assert ids.flatten().tolist() == TOKENS
    torch.testing.assert_close(cosines.flatten(), torch.ones(3))
    scale = embedding.weight.shape[1] ** 0.5
    torch.testing.assert_close(norms, embedding.weight.detach().norm(dim=1) * scale, rtol=1e-3, atol=1e-3)


def test_neighbours_match_an_exhaustive_search() -> None:
    embedding = torch.nn.Embedding(inspection.VOCABULARY_CHUNK + 50, 4)
    vectors = torch.randn(3, 4)
    similarity = torch.cosine_similarity(vectors[:, None], embedding.weight.detach()[None], dim=2)
    ids, cosines, _ = inspection.nearest_tokens(vectors, embedding, 7)
    assert torch.equal(ids, similarity.argsort(dim=1, descending=True)[:, :7])
    torch.testing.assert_close(cosines, similarity.gather(1, ids))
    small = torch.nn.Embedding(5, 4)
    assert inspection.nearest_tokens(vectors, small, 7)[0].sort().values.tolist() == [[0, 1, 2, 3, 4]] * 3
