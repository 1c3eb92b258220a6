"""Differences between arms, and what they are compared on."""

from __future__ import annotations

import numpy as np
import pytest

from lm_eval_spt.analysis.languages import languages
from lm_eval_spt.analysis.results import read_run
from tests.helpers.results import analysed, some_scores, write_answers, write_results


def test_differences_over_documents(tmp_path):
    skill = {code: 0.3 for code in list(languages())[:12]} | {"eng_Latn": 0.6}
    better = {code: chance + 0.35 for code, chance in skill.items()}
    files = {"none": [write_answers(tmp_path / "a", skill)], "prompt": [write_answers(tmp_path / "b", better)]}
    analysis = analysed(files)
    assert "documents (together in all languages that have them)" in analysis.method["intervals"]
    (targets,) = analysis.rows("differences", scope="targets")
    scores = [read_run(file).scores["acc"] for (file,) in files.values()]
    a, b = (np.mean([by_language[code].value for code in analysis.targets]) for by_language in scores)
    assert targets["difference"] == pytest.approx(b - a)
    assert 0 < targets["low"] < targets["difference"] < targets["high"]
    assert targets["p"] < 0.01
    # The interval and the power are of one standard error.
    assert targets["detectable"] == pytest.approx((targets["high"] - targets["difference"]) * 2.8 / 1.96, rel=0.02)
    assert len(analysis.rows("language_differences", arm="prompt")) == 13
    assert all(row["p"] <= row["p_holm"] for row in analysis.rows("language_differences"))
    # Documents are hard in all languages alike, so that the mean of many is hardly surer than one language.
    (row,) = analysis.rows("scores", arm="none", metric="acc")
    assert row["targets_high"] - row["targets_low"] > 2 * 1.96 * np.sqrt(0.25 / 60 / 12)
    families = [row for row in analysis.rows("differences") if row["scope"].startswith("family: ")]
    assert sum(row["languages"] for row in families) == 12 and all(row["low"] is not None for row in families)


@pytest.mark.parametrize("random_languages", [False, True])
def test_an_arm_does_not_differ_from_itself(tmp_path, random_languages):
    file = write_answers(tmp_path, dict.fromkeys(["eng_Latn", "deu_Latn", "fra_Latn"], 0.5))
    analysis = analysed({"a": [file], "b": [file]}, random_languages=random_languages)
    for row in analysis.rows("differences"):
        assert row["difference"] == pytest.approx(0)
        assert row["p"] == 1


def test_without_samples_the_report_says_how_to_get_them(tmp_path):
    files = {name: [write_results(tmp_path / name, some_scores(mean, 40))] for name, mean in (("a", 0.4), ("b", 0.6))}
    analysis = analysed(files)
    (note,) = [note for note in analysis.notes if "no samples beside" in note]
    assert "score again with lm-eval-spt evaluate or sweep, which keep samples, or with lm_eval --log_samples" in note
    (targets,) = analysis.rows("differences", scope="targets")
    assert targets["difference"] - targets["low"] == pytest.approx(1.96 * 0.03 * np.sqrt(2), rel=0.01)
