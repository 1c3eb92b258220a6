"""The numbers of an analysis."""

from __future__ import annotations

import numpy as np
import pytest

from lm_eval_spt.analysis.arms import read_arms
from lm_eval_spt.analysis.distances import distances
from lm_eval_spt.analysis.languages import languages
from lm_eval_spt.analysis.transfer import analyse
from lm_eval_spt.common.errors import UserError
from tests.helpers.results import analysed, some_scores, write_prompt, write_results


def test_means_gaps_and_groups_by_hand(tmp_path):
    scores = {"eng_Latn": 0.9, "deu_Latn": 0.6, "rus_Cyrl": 0.4, "yor_Latn": 0.2, "fra_Latn": 0.8}
    analysis = analysed({"a": [write_results(tmp_path, scores)]})
    (row,) = analysis.rows("scores", metric="acc")
    assert (row["source"], row["targets"], row["transfer_gap"]) == pytest.approx((0.9, 0.5, 0.4))
    assert row["target_languages"] == 4
    means = {(group["grouping"], group["group"]): group["mean"] for group in analysis.rows("groups", metric="acc")}
    assert means["family", "Indo-European"] == pytest.approx(0.6)
    assert means["script", "Cyrillic"] == pytest.approx(0.4)
    assert means["seen", "seen"] == pytest.approx((0.2 + 0.8) / 2)  # the base model is called bloom-560m
    assert means["seen", "unseen"] == pytest.approx((0.6 + 0.4) / 2)
    (german,) = analysis.rows("languages", language="deu_Latn")
    assert (german["family"], german["seen"], german["acc_gap"]) == ("Indo-European", False, pytest.approx(0.3))
    assert german["genetic_distance"] < 1 == analysis.rows("languages", language="yor_Latn")[0]["genetic_distance"]


def test_arms_and_their_runs_have_rows(tmp_path):
    files = [write_results(tmp_path / str(seed), some_scores(0.5, 20, seed)) for seed in range(3)]
    analysis = analysed({"a": files})
    assert [row["run"] for row in analysis.rows("scores", metric="acc")] == ["mean", *map(str, files)]
    whole, *single = analysis.rows("scores", metric="acc")
    assert whole["targets"] == pytest.approx(np.mean([row["targets"] for row in single]))
    assert whole["spread_over_runs"] == pytest.approx(np.std([row["targets"] for row in single], ddof=1))
    assert len(analysis.rows("correlations")) == 4 * 6


def test_scores_that_fall_with_distance_are_found_to(tmp_path):
    measured = distances("eng_Latn", languages())
    scores = {code: 0.9 - 0.5 * measured.values["syntactic"][code] for code in languages()}
    analysis = analysed({"a": [write_results(tmp_path, scores)]})
    correlations = {row["distance"]: row for row in analysis.rows("correlations")}
    assert correlations["syntactic"]["pearson"] == pytest.approx(-1)
    assert correlations["syntactic"]["pearson_p_holm"] < 1e-6
    assert -1 < correlations["geographic"]["pearson"] < 0
    (halves,) = analysis.rows("halves", distance="syntactic")
    assert halves["close"] > halves["distant"]
    assert abs(halves["close_languages"] - halves["distant_languages"]) <= 4
    assert halves["gap_low"] < halves["gap"] < halves["gap_high"]


def test_a_language_that_an_arm_learned_from_is_no_target(tmp_path):
    scores = {"eng_Latn": 0.9, "deu_Latn": 0.5, "fra_Latn": 0.6, "swh_Latn": 0.3}
    learned = {"one": ["eng_Latn"], "two": ["eng_Latn", "deu_Latn"], "three": ["fra_Latn", "swh_Latn"]}
    for name, sources in learned.items():
        prompt = write_prompt(tmp_path / f"{name}.safetensors", sources=sources, name=name)
        write_results(tmp_path / name, scores, prompt=prompt)

    def analysis_of(*names):
        arms, _ = read_arms([(name, tmp_path / name) for name in names])
        return analyse(arms, distances("eng_Latn", languages()))

    analysis = analysis_of("one", "two")
    assert analysis.targets == ["fra_Latn", "swh_Latn"]
    assert [row["targets"] for row in analysis.rows("scores", metric="acc")] == pytest.approx([0.45, 0.45])
    assert "no target languages: deu_Latn ('two' learned from them)" in analysis.notes
    assert analysis.rows("languages", arm="two", language="deu_Latn")[0]["acc"] == 0.5  # its score is shown
    # Where each was learned from by some arm, there are no others.
    analysis = analysis_of("one", "two", "three")
    assert analysis.targets == ["deu_Latn", "fra_Latn", "swh_Latn"]
    assert "TARGETS WERE LEARNED FROM: deu_Latn ('two' learned from them)" in analysis.notes


def test_what_the_numbers_rest_on_is_noted(tmp_path):
    a = write_results(tmp_path / "a", {"eng_Latn": 0.9, "deu_Latn": 0.5, "fra_Latn": 0.5}, limit=10, base_model="gpt2")
    b = write_results(tmp_path / "b", {"eng_Latn": 0.9, "deu_Latn": 0.6, "tlh_Latn": 0.1}, limit=10, base_model="gpt2")
    analysis = analysed({"a": [a], "b": [b]})
    notes = "\n".join(analysis.notes)
    assert "PARTIAL DATA: a: made with --limit 10" in notes
    assert "1 languages beside eng_Latn are in all arms, of 3: a lacks 1; b lacks 1" in notes
    assert "which languages these base models saw is not known: gpt2" in notes
    assert analysis.rows("languages", language="tlh_Latn")[0]["family"] is None
    alone = analysed({"b": [b]})
    assert any("no genetic distance for 1 target languages (tlh_Latn)" in note for note in alone.notes)
    assert alone.rows("correlations", distance="genetic")[0]["languages_without_distance"] == 1


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ({"eng_Latn": 0.5, "deu_Latn": 0.5}, {"metric": "f1"}, "has no 'f1'"),
        ({"deu_Latn": 0.5}, {}, "no score in the source language eng_Latn"),
        (
            {"eng_Latn": 0.5},
            {},
            "'a' has scores in the source language eng_Latn alone: score it in others, or say with --lang",
        ),
        ({"eng_Latn": 0.5, "deu_Latn": 0.5}, {"reference": "x"}, "no arm 'x' to compare with: the arms are 'a'"),
    ],
)
def test_what_can_not_be_analysed_is_refused(tmp_path, scores, options, message):
    with pytest.raises(UserError, match=message):
        analysed({"a": [write_results(tmp_path, scores)]}, **options)
