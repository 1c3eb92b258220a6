"""The command line ``lm-eval-spt`` as its users meet it: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lm_eval_spt import cli
from lm_eval_spt.inference.base_model import model_path
from lm_eval_spt.prompt import inspection
from lm_eval_spt.prompt.fingerprint import embedding_fingerprint
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.models import build_model
from tests.helpers.paths import ROOT

TOKENS = [100, 5000, 20000]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "lm_eval_spt.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


@pytest.fixture(scope="module")
def mini_model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_path("mini"), dtype=torch.float32)


@pytest.fixture
def prompt_file(mini_model: PreTrainedModel, tmp_path: Path) -> Path:
    """A prompt whose vectors are three tokens of the embedded model, at 1, 2 and 3 times their length."""
    embedding = mini_model.get_input_embeddings()
    vectors = embedding(torch.tensor(TOKENS)) * torch.tensor([[1.0], [2.0], [3.0]])
    metadata = {
        "base_model": "mini",
        "embedding_fingerprint": embedding_fingerprint(embedding),
        "tasks": ["first", "second"],
        "hyperparameters": {"lr": 0.5},
    }
    SoftPrompt(vectors, metadata).save(tmp_path / "eng.safetensors")
    return tmp_path / "eng.safetensors"


# -- inspect -----------------------------------------------------------------------------------------------------------


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


# -- convert -----------------------------------------------------------------------------------------------------------


def test_convert_there_and_back(prompt_file: Path, tmp_path: Path) -> None:
    there = run("convert", prompt_file, tmp_path / "peft")
    assert there.returncode == 0 and "3 virtual tokens" in there.stdout, there.stderr
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["num_virtual_tokens"] == 3
    assert cli.main(["convert", str(tmp_path / "peft"), str(tmp_path / "back.safetensors")]) == 0
    before, after = SoftPrompt.load(prompt_file), SoftPrompt.load(tmp_path / "back.safetensors")
    assert after.digest == before.digest and after.metadata == before.metadata


def test_convert_overwrites_only_by_force(
    prompt_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SoftPrompt(torch.zeros(1, 2)).to_peft(tmp_path / "peft")
    before = (tmp_path / "peft" / "adapter_model.safetensors").read_bytes()
    arguments = ["convert", str(prompt_file), str(tmp_path / "peft")]
    assert cli.main(arguments) == 1
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "peft" / "adapter_model.safetensors").read_bytes() == before
    assert cli.main([*arguments, "--force"]) == 0
    assert SoftPrompt.load(tmp_path / "peft").digest == SoftPrompt.load(prompt_file).digest


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "gone.safetensors"], "no such file"),
        (["inspect", "owner/name"], "could not be reached"),
        (["inspect", "{prompt}", "--base-model", "no/such-model"], "base model 'no/such-model' can not be loaded"),
        (["inspect", "{prompt}", "--base-model", "{folder}"], "can not be loaded"),
        (["inspect", "{small}", "--base-model", "mini"], "vectors of size 2, but 'mini' takes vectors of size 256"),
        (["inspect", "{foreign}", "--base-model", "mini"], "was trained for 'some/other'"),
        (["convert", "{suffix}", "{folder}/new"], "PEFT can not express"),
        (["convert", "{prompt}", "{folder}/new.safetensors"], "a prompt file becomes a PEFT folder"),
        (["convert", "{folder}", "{folder}/new"], "a PEFT folder becomes a .safetensors file"),
        (["convert", "{folder}/gone.safetensors", "{folder}/new"], "no such file"),
        (["convert", "{folder}", "{folder}/new.safetensors"], "no adapter_config.json"),
    ],
)
def test_mistake_is_one_line_and_writes_nothing(
    arguments: list[str], message: str, prompt_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    names = {"prompt": str(prompt_file), "folder": str(folder)}
    for name, prompt in {
        "small": SoftPrompt(torch.ones(1, 2)),
        "suffix": SoftPrompt(torch.ones(1, 2), {"placement": "suffix"}),
        "foreign": SoftPrompt(torch.ones(1, 256), {"base_model": "some/other", "embedding_fingerprint": "0" * 16}),
    }.items():
        names[name] = str(tmp_path / f"{name}.safetensors")
        prompt.save(names[name])
    before = sorted(tmp_path.rglob("*"))
    assert cli.main([argument.format(**names) for argument in arguments]) == 1
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_mistake_in_a_process_of_its_own_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_bytes(b"")
    result = run("inspect", tmp_path / "p.safetensors")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and "is empty" in result.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["unknown"], ["inspect"], ["inspect", "x", "--neighbours", "0"], ["convert", "x"]]
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2 and "usage: lm-eval-spt" in capsys.readouterr().err


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch, prompt_file: Path) -> None:
    def interrupt(_: object) -> SoftPrompt:
        raise KeyboardInterrupt

    monkeypatch.setattr(SoftPrompt, "from_pretrained", interrupt)
    assert cli.main(["inspect", str(prompt_file)]) == 130


def test_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    SoftPrompt(torch.ones(5000, 2)).save(tmp_path / "long.safetensors")
    command = f"{sys.executable} -m lm_eval_spt.cli inspect {tmp_path / 'long.safetensors'} | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.stdout.split() == ["name", "long"] and result.stderr == ""


def test_terminal_without_utf8_still_gets_its_report(tmp_path: Path) -> None:
    SoftPrompt(torch.ones(1, 2), {"language": "čeština"}).save(tmp_path / "p.safetensors")
    command = [sys.executable, "-m", "lm_eval_spt.cli", "inspect", str(tmp_path / "p.safetensors")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert result.returncode == 0 and r"\u010de\u0161tina" in result.stdout


# -- help and training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], ["inspect"], ["convert"]])
def test_help_has_an_example_and_loads_nothing_heavy(command: list[str]) -> None:
    script = (
        "import sys; from lm_eval_spt.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print({'torch', 'transformers', 'lm_eval', 'numpy'} & sys.modules.keys(), file=sys.stderr)"
    )
    arguments = [sys.executable, "-c", script, *command, "--help"]
    result = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert result.returncode == 0 and result.stderr == "set()\n"
    assert "example: lm-eval-spt" in result.stdout


def test_train_hands_over_all_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[str] = []

    def train(argv: list[str]) -> int:
        received.extend(argv)
        return 7

    monkeypatch.setattr("lm_eval_spt.train.main", train, raising=False)
    assert cli.main(["train", "--model", "mini", "--help", "--", "x"]) == 7
    assert received == ["--model", "mini", "--help", "--", "x"]
