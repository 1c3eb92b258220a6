"""The demo on a base model of one's own: the commands work as printed, and the table is of their results."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import lm_eval.__main__
import pytest

import lm_eval_spt.cli.__main__
from lm_eval_spt.analysis.results import read_run, results_files
from lm_eval_spt.cli import demo
from lm_eval_spt.common.paths import tasks_folder
from tests.helpers.models import build_model


def in_this_process(command: str) -> None:
    """Do what the demo does with a command, without seconds of imports for each."""
    program, *arguments = shlex.split(command)
    print(command)
    if program == "lm-eval-spt":
        assert lm_eval_spt.cli.__main__.main(arguments) == 0
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *arguments])
        lm_eval.__main__.cli_evaluate()


@pytest.mark.slow
def test_the_demo_on_another_base_model(tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    model = tmp_path / "models" / "my-llama"
    for part in (build_model("llama"), tokenizer):
        part.save_pretrained(model)
    targets = [f"mini_topics_{language}" for language in ("eng_Latn", "deu_Latn")]
    instruction = [name.replace("topics", "topics_instruct") for name in targets]
    short = demo.Task(
        ",".join(targets), ",".join(instruction), f"--task {targets[0]} --shots 1 --epochs 1", majority=0.25
    )
    monkeypatch.setitem(demo.TASKS, "sib200", short)
    monkeypatch.setattr(demo, "run_printed", in_this_process)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").symlink_to(tasks_folder())
    arguments = demo.parser("demo").parse_args(["--model", str(model), "--task", "sib200"])
    demo.run(arguments)
    folder = tmp_path / "results" / "demo" / "my-llama-sib200"
    header, _, english, german, _ = (folder / "table.md").read_text().splitlines()
    names = ["majority class", "no prompt", "instruction", "prefix prompt", "suffix prompt"]
    assert [cell.strip() for cell in header.split("|")][2:-1] == names
    for line, language in ((english, "eng_Latn"), (german, "deu_Latn")):
        for name, cell in zip(("no_prompt", "suffix_prompt"), (line.split("|")[3], line.split("|")[6]), strict=True):
            (path,) = results_files(folder / name)
            value = 100 * read_run(path).scores["acc"][language].value
            assert float(cell.split("±")[0]) == pytest.approx(value, abs=0.05)
    assert "25.0" in english.split("|")[2]
    assert (folder / "leaderboard.html").is_file()
    printed = capfd.readouterr().out
    assert f"--model_args pretrained={model},prompt=results/demo/my-llama-sib200/eng_Latn-" in printed
