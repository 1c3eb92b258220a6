"""Differences between arms, and what they are resampled over."""

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
    assert "over documents" in analysis.method["means and differences"]
    (targets,) = analysis.rows("differences", scope="targets")
    scores = [read_run(file).scores["acc"] for (file,) in files.values()]
    a, b = (np.mean([by_language[code].value for code in analysis.targets]) for by_language in scores)
    assert targets["difference"] == pytest.approx(b - a)
    assert 0 < targets["low"] < targets["difference"] < targets["high"]
    assert targets["p"] < 0.01
    assert len(analysis.rows("language_differences", arm="prompt")) == 13
    assert all(row["p"] <= row["p_holm"] for row in analysis.rows("language_differences"))
    # Documents are hard in all languages alike, so that the mean of many is hardly surer than one language.
    (row,) = analysis.rows("scores", arm="none", metric="acc")
    assert row["targets_high"] - row["targets_low"] > 2 * 1.96 * np.sqrt(0.25 / 60 / 12)


def test_an_arm_does_not_differ_from_itself(tmp_path):
    file = write_answers(tmp_path, dict.fromkeys(["eng_Latn", "deu_Latn", "fra_Latn"], 0.5))
    for over_documents in (True, False):
        analysis = analysed({"a": [file], "b": [file]}, over_documents=over_documents)
        for row in analysis.rows("differences"):
            assert row["difference"] == pytest.approx(0)
            assert row["p"] in (None, 1)


def test_without_samples_languages_are_resampled_and_the_report_says_so(tmp_path):
    files = {name: [write_results(tmp_path / name, some_scores(mean, 40))] for name, mean in (("a", 0.4), ("b", 0.6))}
    analysis = analysed(files)
    assert any("resampled over languages, not over documents: there is no samples_" in note for note in analysis.notes)
    (targets,) = analysis.rows("differences", scope="targets")
    assert targets["low"] > 0.1
    assert all(row["low"] is None for row in analysis.rows("language_differences"))
