"""Tables to read: numbers in the cells, and the text that columns make of them."""

from __future__ import annotations

import math

import pytest

from lm_eval_spt.analysis.results import Score
from lm_eval_spt.analysis.statistics import Estimate
from lm_eval_spt.analysis.tables import (
    Cell,
    Column,
    GroupMean,
    Strong,
    analysis_tables,
    correlation,
    p_value,
    percent,
    spread,
)
from tests.helpers.results import analysed, some_scores, write_results


@pytest.mark.parametrize(
    ("show", "cell", "text"),
    [
        (percent, 0.6214, "62.1"),
        (percent, -0.0001, "0.0"),
        (percent, Score(0.5, 0.034), "50.0 ± 3.4"),
        (percent, Score(0.5, None), "50.0"),
        (percent, GroupMean(0.621, 12), "62.1 (12)"),
        (percent, Estimate(0.5, 0.412, 0.588), "50.0 [41.2, 58.8]"),
        (correlation, Estimate(-0.314, -0.442, -0.171), "-0.31 [-0.44, -0.17]"),
        (correlation, Estimate(0.5, math.nan, math.nan), "0.50"),
        (correlation, Estimate(math.nan, math.nan, math.nan), "–"),
        (p_value, 0.0123, "0.012"),
        (p_value, 0.0009, "< 0.001"),
        (p_value, math.nan, "–"),
        (spread, 0.0123, "± 1.2"),
        (percent, None, "–"),
        (percent, "3 better, 1 worse", "3 better, 1 worse"),
        (str, Strong("eng_Latn", "(source)"), "eng_Latn (source)"),
        (str, 0, "0"),
    ],
)
def test_cells_as_text(show, cell: Cell, text: str):
    assert Column("a", show).text(cell) == text


def test_cells_hold_the_numbers_of_the_analysis(tmp_path):
    analysis = analysed({"a": [write_results(tmp_path, some_scores(0.5, 30))]})
    scores, *_, languages = analysis_tables(analysis, majority=0.25)
    by_name = dict(zip([column.name for column in scores.columns], scores.rows[0], strict=True))
    (row,) = analysis.rows("scores", metric="acc")
    assert by_name["runs"] == 1
    for column, key in (("transfer gap", "transfer_gap"), ("eng_Latn", "source"), ("mean of 30 targets", "targets")):
        assert by_name[column] == Estimate(row[key], row[f"{key}_low"], row[f"{key}_high"])
    assert "over runs" not in by_name  # there is one run: the column would be empty
    assert languages.rows[0][:2] == [Strong("eng_Latn", "(source)"), 0.25]
    assert languages.rows[0][2] == Score(row["source"], pytest.approx(0.03))
    assert languages.rows[-1][2] == by_name["mean of 30 targets"]
