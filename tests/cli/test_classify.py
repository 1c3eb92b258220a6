"""``lm-eval-spt classify``: texts in, labels and probabilities out."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lm_eval_spt import cli
from lm_eval_spt.harness.classify import classify
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.paths import ROOT

PROMPT = str(ROOT / "prompts" / "mini_eng_suffix16.safetensors")
TEXTS = ["The team won the match.", "", "Čeština je krásná.", "The minister resigned."]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch):
    """Put a text on the standard input."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_a_line_for_each_text_in_a_table(typed, capsys: pytest.CaptureFixture[str]) -> None:
    """A blank line among others is a text, so that the lines of input and output correspond."""
    typed("\n".join(TEXTS) + "\n")
    assert cli.main(["classify", PROMPT, "--device", "cpu"]) == 0
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out), delimiter="\t")
    expected = classify(PROMPT, TEXTS, device="cpu")
    assert header == ["label", *expected[0].probabilities]
    for row, result in zip(rows, expected, strict=True):
        assert row[0] == result.label
        assert [float(cell) for cell in row[1:]] == pytest.approx(list(result.probabilities.values()), abs=1e-6)


def test_json_lines_with_choices_of_ones_own_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "lm_eval_spt.cli", "classify", PROMPT, "--format", "jsonl", "--device", "cpu"]
    text = "\ufeff" + "\r\n".join(TEXTS)
    flags = ["--choices", "sport,vláda", "--batch_size", "2", "--template", r"{{x}}\nTopic:"]
    done = subprocess.run([*command, *flags], input=text.encode(), capture_output=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.decode().splitlines()]
    expected = classify(PROMPT, TEXTS, ["sport", "vláda"], template="{{x}}\nTopic:", device="cpu")
    for row, result in zip(rows, expected, strict=True):
        assert row["label"] == result.label
        assert row["probabilities"] == pytest.approx(result.probabilities, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("", [PROMPT], "the standard input has no text"),
        (" \n\n", [PROMPT], "the standard input has no text"),
        ("a\n", ["gone.safetensors"], "no such file"),
        ("a\n", ["{plain}"], "does not say which task it was trained on: give the choices, or the task"),
        ("a\n", [PROMPT, "--choices", "a"], "expected two or more different ones"),
        ("a\n", [PROMPT, "--task", "gone"], "the task 'gone', whose wording"),
        ("a\n", [PROMPT, "--model-args", "prompt=p"], "--model-args has prompt=p: expected it as PROMPT"),
        ("a\n", [PROMPT, "--model-args", "choices=a"], "--model-args has choices=a: expected it as --choices"),
        ("a\n", [PROMPT, "--model-args", "calibration=probability"], "needs two or more, and one was given"),
        ("a\n", [PROMPT, "--template", "no name"], "give a template (--template) with one name in it"),
        ("a\n", ["{plain}", "--choices", "a,b", "--model", "mini"], "takes vectors of size 256"),
        ("a\n", ["{plain}", "--choices", "a,b"], "does not name its base model"),
    ],
)
def test_mistakes_are_one_line(
    typed, text: str, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SoftPrompt(torch.ones(1, 2)).save(tmp_path / "plain.safetensors")
    typed(text)
    arguments = [argument.replace("{plain}", str(tmp_path / "plain.safetensors")) for argument in arguments]
    assert cli.main(["classify", *arguments, "--device", "cpu"]) == 1
    output = capsys.readouterr()
    errors = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert output.out == "" and len(errors) == 1 and output.err.splitlines()[-1] == errors[0] and message in errors[0]


def test_what_is_not_utf8_is_one_line() -> None:
    command = [sys.executable, "-m", "lm_eval_spt.cli", "classify", PROMPT]
    done = subprocess.run(command, input=b"caf\xe9\n", capture_output=True, cwd=ROOT, timeout=120)
    assert done.returncode == 1 and done.stdout == b""
    assert done.stderr == b"error: the standard input is not UTF-8 (invalid continuation byte): convert it first\n"
