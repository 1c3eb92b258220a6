"""Correlations, intervals and corrections, against scipy and worked examples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lm_eval_spt.analysis.statistics import (
    bootstrap_p,
    correlate,
    estimate,
    halves,
    holm,
    ranks,
    resample,
    resampled_ranks,
)


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    """Scores of 3 arms in 60 languages, and a distance that has ties; the scores fall with it."""
    random = np.random.default_rng(3)
    distance = random.integers(0, 20, 60) / 20
    return (0.7 - 0.2 * distance + random.normal(0, 0.1, (3, 60))).round(2), distance


def test_correlations_and_p_values_are_scipys(data):
    scores, distance = data
    for row, (correlation,) in zip(scores, correlate(scores, distance[None]), strict=True):
        r, rho = stats.pearsonr(row, distance), stats.spearmanr(row, distance)
        assert (correlation.pearson.value, correlation.pearson_p) == pytest.approx((r.statistic, r.pvalue))
        assert (correlation.spearman.value, correlation.spearman_p) == pytest.approx((rho.statistic, rho.pvalue))


def test_intervals_are_those_of_explicit_resampling(data):
    scores, distance = data
    ((correlation,),) = correlate(scores[:1], distance[None])
    drawn = [np.repeat(np.arange(60), counts.astype(int)) for counts in resample(60, 1000)]
    r = [stats.pearsonr(scores[0][draw], distance[draw]).statistic for draw in drawn]
    rho = [stats.spearmanr(scores[0][draw], distance[draw]).statistic for draw in drawn]
    assert (correlation.pearson.low, correlation.pearson.high) == pytest.approx(
        np.quantile(r, [0.025, 0.975]), abs=1e-5
    )
    assert (correlation.spearman.low, correlation.spearman.high) == pytest.approx(
        np.quantile(rho, [0.025, 0.975]), abs=1e-5
    )


def test_intervals_cover_the_truth():
    random = np.random.default_rng(0)
    true, covered = 0.5, 0
    for _ in range(200):
        x, y = random.multivariate_normal([0, 0], [[1, true], [true, 1]], 80).T
        ((correlation,),) = correlate(x[None], y[None])
        covered += correlation.pearson.low <= true <= correlation.pearson.high
    assert 0.88 <= covered / 200 <= 0.99


def test_languages_without_a_distance_are_left_out_of_its_correlation_alone(data):
    scores, distance = data
    partly = distance.copy()
    partly[:10] = np.nan
    ((whole, part),) = correlate(scores[:1], np.stack([distance, partly]))
    assert (whole.languages, part.languages) == (60, 50)
    assert whole == correlate(scores[:1], distance[None])[0][0]
    assert part == correlate(scores[:1, 10:], distance[None, 10:])[0][0]


def test_what_can_not_be_correlated_is_nan():
    two = np.array([[0.1, 0.2]])
    assert np.isnan(correlate(two, two)[0][0].pearson.value)
    ((constant,),) = correlate(np.ones((1, 9)), np.arange(9.0)[None])
    assert np.isnan([constant.pearson.value, constant.pearson.low, constant.pearson_p, constant.spearman_p]).all()
    ((none,),) = correlate(np.ones((1, 9)), np.full((1, 9), np.nan))
    assert none.languages == 0


def test_ranks_are_scipys_also_in_resamples():
    values = np.array([3.0, 1.0, 3.0, 2.0, 1.0, 5.0])
    assert ranks(values) == pytest.approx(stats.rankdata(values))
    counts = resample(6, 50)
    for row_counts, row in zip(counts.astype(int), resampled_ranks(values, counts), strict=True):
        assert np.repeat(row, row_counts) == pytest.approx(stats.rankdata(np.repeat(values, row_counts)))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([0.02, float("nan"), 0.5]) == pytest.approx([0.04, float("nan"), 0.5], nan_ok=True)


def test_bootstrap_p_values_go_with_those_of_a_t_test():
    random = np.random.default_rng(1)
    for shift in (0.0, 0.1, 0.2, 0.3):
        sample = random.normal(shift, 1, 200)
        p = bootstrap_p(resample(200, 10_000) @ sample / 200)
        assert p == pytest.approx(stats.ttest_1samp(sample, 0).pvalue, abs=0.02)


def test_bootstrap_p_values_at_the_ends():
    assert bootstrap_p(np.zeros((99, 1))) == [1]
    assert bootstrap_p(np.full(99, 1e-8)) == 1  # rounding errors of float32
    assert bootstrap_p(np.full(99, 0.1)) == pytest.approx(2 / 100)


def test_an_estimate_ignores_resamples_without_a_value():
    interval = estimate(0.5, np.array([np.nan, *np.linspace(0, 1, 41)]))
    assert (interval.low, interval.high) == pytest.approx((0.025, 0.975))
    assert np.isnan(estimate(0.5, np.array([np.nan])).low)


def test_halves_by_hand():
    distance = np.array([0.1, 0.2, 0.2, 0.9, 1.0, np.nan])
    scores = np.array([[0.8, 0.6, 0.4, 0.3, 0.1, 0.99]])
    (split,) = halves(scores, distance)
    assert (split.threshold, split.close_languages, split.distant_languages) == (0.2, 3, 2)
    assert (split.close, split.distant, split.gap.value) == pytest.approx((0.6, 0.2, 0.4))
    assert split.gap.low < 0.4 < split.gap.high


def test_languages_at_the_same_distance_are_not_split():
    distance = np.array([0.5, 1, 1, 1, 1, 1])
    (split,) = halves(np.ones((1, 6)), distance)
    assert (split.close_languages, split.distant_languages) == (1, 5)
    assert halves(np.ones((1, 3)), np.ones(3)) == []


def test_the_interval_of_a_gap_is_that_of_two_independent_means():
    random = np.random.default_rng(2)
    scores, distance = random.normal(0.5, 0.1, (1, 200)), np.arange(200.0)
    (split,) = halves(scores, distance)
    error = np.sqrt(scores[0, :100].var(ddof=1) / 100 + scores[0, 100:].var(ddof=1) / 100)
    expected = stats.norm(split.gap.value, error).interval(0.95)
    assert (split.gap.low, split.gap.high) == pytest.approx(expected, abs=0.3 * error)  # 1000 resamples
