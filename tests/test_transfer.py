"""Reading results files and the table made of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lm_eval_spt.cli import main
from lm_eval_spt.errors import UserError
from lm_eval_spt.transfer.report import mean_score, transfer_table
from lm_eval_spt.transfer.results import Score, mean_over_runs, read_run, results_files


def results_file(folder: Path, scores: dict[str, float], name: str = "results_a.json", **extra: Any) -> Path:
    """Write what the harness writes, as far as it is read here."""
    results = {f"sib200_{code}": {"acc,none": value, "acc_stderr,none": 0.03} for code, value in scores.items()}
    results["sib200"] = {"acc,none": 0.9, "acc_stderr,none": 0.01}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"results": results | extra, "config": {"model": "spt"}}))
    return folder / name


def test_languages_are_read_and_groups_are_not(tmp_path):
    run = read_run(results_file(tmp_path, {"eng_Latn": 0.5, "zho_Hans": 0.25}))
    assert run.scores == {"eng_Latn": Score(0.5, 0.03), "zho_Hans": Score(0.25, 0.03)}
    assert run.config == {"model": "spt"}


def test_a_missing_standard_error_is_none(tmp_path):
    file = results_file(tmp_path, {}, mini_topics_eng_Latn={"acc,none": 1.0, "acc_stderr,none": "N/A"})
    assert read_run(file).scores == {"eng_Latn": Score(1.0, None)}


def test_the_mean_over_seeds_keeps_the_error_of_one(tmp_path):
    runs = [
        read_run(results_file(tmp_path, {"eng_Latn": 0.5, "deu_Latn": 0.2})),
        read_run(results_file(tmp_path, {"eng_Latn": 0.7})),
    ]
    (score,) = mean_over_runs(runs).values()
    assert (score.value, score.stderr) == (pytest.approx(0.6), pytest.approx(0.03))


def test_the_table_by_hand():
    arms = {
        "none": {"eng_Latn": Score(0.5, 0.02), "deu_Latn": Score(0.25, 0.03), "fra_Latn": Score(0.35, 0.04)},
        "prompt": {"eng_Latn": Score(0.6, None), "deu_Latn": Score(0.5, None)},
    }
    assert transfer_table(arms, "eng_Latn", majority=0.25).splitlines() == [
        "| language | majority class | none | prompt |",
        "|---|---:|---:|---:|",
        "| **eng_Latn** (source) | 25.0 | 50.0 ± 2.0 | 60.0 |",
        "| deu_Latn | 25.0 | 25.0 ± 3.0 | 50.0 |",
        "| fra_Latn | 25.0 | 35.0 ± 4.0 | – |",
        "| **mean of 1 target languages** | 25.0 | 25.0 ± 3.0 | 50.0 |",
    ]
    assert mean_score([Score(0.2, 0.03), Score(0.4, 0.04)]) == Score(
        pytest.approx(0.3), pytest.approx(math.hypot(3, 4) / 200)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a results file"),
        ("[]", "is not a results file"),
        ('{"results": {}}', "is not a results file"),
        ('{"results": {}, "config": {}}', "has no 'acc' of a task whose name ends in a language code"),
        (
            '{"results": {"a_eng_Latn": {"acc,none": 1}, "b_eng_Latn": {"acc,none": 1}}, "config": {}}',
            "holds several tasks in eng_Latn",
        ),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "results_x.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_run(tmp_path / "results_x.json")
    assert "\n" not in str(caught.value)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no results_"):
        results_files(tmp_path)


def test_the_command_prints_and_saves_the_table(tmp_path, capsys):
    results_file(tmp_path / "none", {"eng_Latn": 0.5, "deu_Latn": 0.25})
    results_file(tmp_path / "seed0", {"eng_Latn": 0.6, "deu_Latn": 0.3})
    results_file(tmp_path / "seed1", {"eng_Latn": 0.8, "deu_Latn": 0.5})
    arms = [f"no prompt={tmp_path / 'none'}", f"prompt={tmp_path / 'seed0'}", f"prompt={tmp_path / 'seed1'}"]
    assert main(["transfer", *arms, "--output", str(tmp_path / "table.md")]) == 0
    printed = capsys.readouterr().out
    assert "| **eng_Latn** (source) | 50.0 ± 3.0 | 70.0 ± 3.0 |" in printed
    assert "| language | no prompt | prompt (2 runs) |" in printed
    assert (tmp_path / "table.md").read_text() == printed
    assert main(["transfer", str(tmp_path / "missing")]) == 1
    assert "error: " in capsys.readouterr().err
