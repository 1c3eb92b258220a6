"""Ranking arms, and the command that prints the ranking and writes the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lm_eval_spt.analysis.arms import Arm, read_arms
from lm_eval_spt.analysis.leaderboard import Standing, rank, stand
from lm_eval_spt.analysis.noise import Noise
from lm_eval_spt.analysis.results import EvaluationRun, Score
from lm_eval_spt.cli import main
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.results import some_scores, write_prompt, write_results


def arms_of(scores: np.ndarray, stderr: float = 0.02) -> list[Arm]:
    """Arms without a prompt that have these accuracies, `[arms, languages]`, and no samples."""
    arms = []
    for number, row in enumerate(scores):
        by_language = {f"l{index}": Score(float(value), stderr) for index, value in enumerate(row)}
        run = EvaluationRun(Path(f"{number}"), "x", {}, {"acc": by_language}, {}, *[None] * 8, {}, [])
        arms.append(Arm(f"arm {number}", [run], [{}]))
    return arms


def standings_of(scores: np.ndarray) -> list[Standing]:
    return stand(Noise(arms_of(scores), [f"l{index}" for index in range(scores.shape[1])], "acc"))


def test_all_pairs_hold_together() -> None:
    """Three pairs, by Holm: a difference counts at a third of 5% if it is the largest."""
    error = 0.02 * np.sqrt(2)
    for factor, apart in ((0.99, False), (1.01, True)):
        gain = factor * error * stats.norm.ppf(1 - 0.05 / 6)
        first, second, third = standings_of(np.array([[0.5] * 4, [0.5] * 4, [0.5 + gain] * 4]))
        # Once one pair is found, the other with the same difference is held to half of 5%.
        assert [first.rank, second.rank, third.rank] == ([(2, 3), (2, 3), (1, 1)] if apart else [(1, 3)] * 3)
        assert [first.position, second.position, third.position] == [2, 3, 1]


def test_intervals_are_those_of_a_mean() -> None:
    scores = np.random.default_rng(2).normal(0.6, 0.1, (1, 200))
    (standing,) = standings_of(scores)
    assert standing.mean == pytest.approx(scores.mean())
    assert standing.interval == pytest.approx(stats.norm(scores.mean(), 0.02).interval(0.95))
    assert (standing.position, standing.rank) == (1, (1, 1))


def test_a_learned_prompt_with_one_run_has_no_rank_of_its_own(tmp_path: Path) -> None:
    write_results(tmp_path / "none", some_scores(0.2, 30))
    write_results(tmp_path / "worse", some_scores(0.05, 30), base_model="x")
    write_results(tmp_path / "prompt", some_scores(0.7, 30), prompt=write_prompt(tmp_path / "p.safetensors"))
    arms, _ = read_arms([(name, tmp_path / name) for name in ("none", "worse", "prompt")])
    board = rank(arms, "eng_Latn")
    assert {arm.name: standing.rank for arm, standing in zip(board.arms, board.standings["acc"], strict=True)} == {
        "prompt": (1, 3), "none": (1, 2), "worse": (2, 3)
    }  # fmt: skip
    assert any("prompt: one run: the spread over seeds is not in it" in notice for notice in board.notices)
    assert "docs/statistics.md" in board.method


def test_what_has_seen_test_documents_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = SoftPrompt.load(write_prompt(tmp_path / "seen.safetensors"))
    counts = {"training": 1200, "validation": 7}
    SoftPrompt(prompt.vectors, prompt.metadata | {"scored_documents": counts}).save(tmp_path / "seen.safetensors")
    write_results(tmp_path / "seen", some_scores(0.6, 20), prompt=tmp_path / "seen.safetensors")
    write_results(tmp_path / "none", some_scores(0.4, 20))
    line = "LEARNED FROM TEST DOCUMENTS: seen: 1,200 of the training documents and 7 of the validation documents are"
    page = tmp_path / "board.html"
    places = [str(tmp_path / "seen"), str(tmp_path / "none")]
    assert main(["leaderboard", *places, "--output", str(page)]) == 0
    assert line in capsys.readouterr().err and line in page.read_text(encoding="utf-8")
    assert main(["transfer", *places]) == 0
    assert line in " ".join(capsys.readouterr().out.split())

    file = write_results(tmp_path / "tuned", some_scores(0.6, 20), base_model="tuned")  # the model alone, no prompt
    content = json.loads(file.read_text(encoding="utf-8"))
    content["config"]["model_metadata"] = {"scored_documents": {"training": 3, "validation": 0}}
    file.write_text(json.dumps(content), encoding="utf-8")
    assert main(["leaderboard", str(tmp_path / "tuned"), *places, "--output", str(page)]) == 0
    assert "LEARNED FROM TEST DOCUMENTS: tuned: 3 of the training documents are" in page.read_text(encoding="utf-8")


def test_without_standard_errors_nothing_is_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, mean in (("a", 0.2), ("b", 0.7)):
        file = write_results(tmp_path / name, some_scores(mean, 30), base_model=name)
        file.write_text(file.read_text().replace("_stderr,none", "_other,none"))
    assert main(["leaderboard", str(tmp_path), "--output", str(tmp_path / "page.html")]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^1–2 +\S+ +–  ", out, re.MULTILINE)
    assert "do not say what other documents would have changed" in err


def test_the_ranking_is_over_the_targets_that_all_have_and_says_so(tmp_path: Path) -> None:
    write_results(tmp_path / "a", {"eng_Latn": 0.1, "deu_Latn": 0.6, "swh_Latn": 0.4, "fra_Latn": 1.0}, base_model="x")
    write_results(tmp_path / "b", {"eng_Latn": 0.9, "deu_Latn": 0.7, "swh_Latn": 0.5})
    arms, _ = read_arms([("a", tmp_path / "a"), ("b", tmp_path / "b")])
    board = rank(arms, "eng_Latn")
    assert board.targets == ["deu_Latn", "swh_Latn"]
    assert [arm.name for arm in board.arms] == ["b", "a"]
    assert [standing.mean for standing in board.standings["acc"]] == pytest.approx([0.6, 0.5])
    assert [standing.mean for standing in board.standings["macro_f1"]] == pytest.approx([0.55, 0.45])
    assert "2 languages beside eng_Latn are in all arms, of 3: b lacks 1" in board.notices


def test_a_limit_that_all_share_is_pointed_out(tmp_path: Path) -> None:
    write_results(tmp_path / "a", some_scores(0.5, 20), limit=10)
    arms, _ = read_arms([("a", tmp_path / "a")])
    assert rank(arms, "eng_Latn").notices[0] == "a: made with --limit 10"


def test_arms_without_a_common_target_are_refused(tmp_path: Path) -> None:
    write_results(tmp_path / "a", {"eng_Latn": 0.1, "deu_Latn": 0.6, "swh_Latn": 0.4}, base_model="x")
    write_results(tmp_path / "b", {"eng_Latn": 0.9, "fra_Latn": 0.7})
    arms, _ = read_arms([("a", tmp_path / "a"), ("b", tmp_path / "b")])
    with pytest.raises(UserError, match="no target language in common .*leave out 'b'"):
        rank(arms, "eng_Latn")


def test_the_command_goes_on_where_a_file_can_not_be_used(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_results(tmp_path / "good", some_scores(0.7, 30, seed=1), base_model="x")
    write_results(tmp_path / "poor", some_scores(0.3, 30, seed=2))
    whole = write_results(tmp_path / "cut", some_scores(0.9, 30))
    whole.write_text(whole.read_text()[:1000])
    page = tmp_path / "page.html"
    arguments = [f"good={tmp_path / 'good'}", f"poor={tmp_path / 'poor'}", f"cut={tmp_path / 'cut'}"]
    assert main(["leaderboard", *arguments, "--output", str(page)]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["rank", "1", "2"]
    assert [line.split()[-1] for line in out.splitlines()[1:3]] == ["good", "poor"]
    first, second = err.splitlines()
    assert first.startswith(f"left out: {whole}") and second.startswith("there are no samples beside ")
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{cut}"], "there is nothing to rank: .*is not a results file"),
        (
            ["{cut}", "{good}", "--metric", "bleu"],
            "no 'bleu' in all its runs: expected a metric of which more, up to 1, is better, such as acc, macro_f1",
        ),
        (["{good}", "--output", "{good}"], "can not be written"),
        (["{missing}"], "missing holds no results"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    write_results(tmp_path / "good", some_scores(0.7, 30))
    write_results(tmp_path / "cut", {}).write_text("{")
    places = {name: str(tmp_path / name) for name in ("good", "cut", "missing")}
    assert main(["leaderboard", *(argument.format(**places) for argument in arguments)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error)
