"""Ranking arms, and the command that prints the ranking and writes the page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lm_eval_spt.analysis.arms import read_arms
from lm_eval_spt.analysis.leaderboard import rank, stand
from lm_eval_spt.cli import main
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.results import some_scores, write_prompt, write_results


def test_two_arms_are_told_apart_where_a_paired_t_test_does() -> None:
    random = np.random.default_rng(0)
    decided = 0
    for gain in np.linspace(0, 0.1, 60):
        base = random.normal(0.5, 0.2, 40)
        scores = np.stack([base, base + random.normal(gain, 0.1, 40)])
        p = stats.ttest_rel(scores[1], scores[0]).pvalue
        if 0.02 < p < 0.12:  # too close to call: the two need not agree
            continue
        apart = [standing.rank for standing in stand(scores)] in ([(2, 2), (1, 1)], [(1, 1), (2, 2)])
        assert apart == (p < 0.05), (gain, p)
        decided += 1
    assert decided > 40


def test_equal_arms_are_rarely_told_apart_however_many_there_are() -> None:
    random = np.random.default_rng(1)
    false_alarms = 0
    for _ in range(200):
        scores = random.normal(0.5, 0.1, (10, 50))
        false_alarms += any(standing.rank != (1, 10) for standing in stand(scores, resamples=400))
    # 5% are allowed; 45 comparisons one by one, each at 5%, would give about 60%.
    assert false_alarms <= stats.binom(200, 0.06).ppf(0.999)


def test_intervals_are_those_of_a_mean() -> None:
    scores = np.random.default_rng(2).normal(0.6, 0.1, (1, 200))
    (standing,) = stand(scores)
    error = scores.std(ddof=1) / np.sqrt(200)
    assert standing.mean == pytest.approx(scores.mean())
    assert standing.interval == pytest.approx(stats.norm(scores.mean(), error).interval(0.95), abs=0.1 * error)
    assert (standing.position, standing.rank) == (1, (1, 1))


def test_ties_and_constant_differences() -> None:
    scores = np.random.default_rng(3).normal(0.5, 0.1, 30)
    standings = stand(np.stack([scores, scores, scores + 0.1]))
    assert [standing.rank for standing in standings] == [(2, 3), (2, 3), (1, 1)]
    assert [standing.position for standing in standings] == [2, 3, 1]


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


def test_one_language_tells_nothing_apart() -> None:
    assert [standing.rank for standing in stand(np.array([[0.9], [0.1]]))] == [(1, 2), (1, 2)]


def test_the_ranking_is_over_the_targets_that_all_have_and_says_so(tmp_path: Path) -> None:
    write_results(tmp_path / "a", {"eng_Latn": 0.1, "deu_Latn": 0.6, "swh_Latn": 0.4, "fra_Latn": 1.0}, base_model="x")
    write_results(tmp_path / "b", {"eng_Latn": 0.9, "deu_Latn": 0.7, "swh_Latn": 0.5})
    arms, _ = read_arms([("a", tmp_path / "a"), ("b", tmp_path / "b")])
    board = rank(arms, "eng_Latn")
    assert board.targets == ["deu_Latn", "swh_Latn"]
    assert [arm.name for arm in board.arms] == ["b", "a"]
    assert [standing.mean for standing in board.standings["acc"]] == pytest.approx([0.6, 0.5])
    assert [standing.mean for standing in board.standings["macro_f1"]] == pytest.approx([0.55, 0.45])
    assert "ranked over the 2 target languages that all arms have, of 3: b lacks 1" in board.notices


def test_a_limit_that_all_share_is_pointed_out(tmp_path: Path) -> None:
    write_results(tmp_path / "a", some_scores(0.5, 20), limit=10)
    arms, _ = read_arms([("a", tmp_path / "a")])
    assert rank(arms, "eng_Latn").notices == ["a: made with --limit 10"]


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
    assert err.startswith(f"left out: {whole}") and err.count("\n") == 1
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{cut}"], "there is nothing to rank: .*is not a results file"),
        (
            ["{cut}", "{good}", "--metric", "bleu"],
            "no 'bleu' to rank by: expected a share of 1 that all runs have, such as acc, macro_f1",
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
