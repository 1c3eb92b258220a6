"""Sources of variance, intervals, correlations and corrections, against textbooks' formulas, scipy and simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lm_eval_spt.analysis import statistics
from lm_eval_spt.analysis.documents import influence_of
from lm_eval_spt.analysis.statistics import (
    Source,
    correlation_estimate,
    detectable,
    documents_source,
    halving_threshold,
    holm,
    interval,
    languages_sources,
    p_values,
    pearson,
    quantile,
    seeds_and_documents,
    seeds_source,
    spearman,
    standard_error,
)


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    """Scores in 60 languages, and a distance that has ties; the scores fall with it."""
    random = np.random.default_rng(3)
    distance = random.integers(0, 20, 60) / 20
    return (0.7 - 0.2 * distance + random.normal(0, 0.1, 60)).round(2), distance


def crossed(random: np.random.Generator, seeds: int, documents: int) -> np.ndarray:
    """Values of crossed random effects `[seeds, documents]`."""
    of_seeds, of_documents = random.normal(0, 0.3, (seeds, 1)), random.normal(0, 1, documents)
    return of_seeds + of_documents + random.normal(0, 0.7, (seeds, documents))


def one_source(*variances: float, freedom: float = 5) -> list[Source]:
    return [Source(np.array(variances), freedom)]


def test_the_variance_of_a_mean_is_that_of_a_two_way_analysis_of_variance():
    values = crossed(np.random.default_rng(0), 4, 50)
    seeds, documents = values.shape
    grand, rows, columns = values.mean(), values.mean(axis=1), values.mean(axis=0)
    ms_seeds = documents * ((rows - grand) ** 2).sum() / (seeds - 1)
    ms_documents = seeds * ((columns - grand) ** 2).sum() / (documents - 1)
    rest = sum((values[s, d] - rows[s] - columns[d] + grand) ** 2 for s in range(seeds) for d in range(documents))
    ms_both = rest / ((seeds - 1) * (documents - 1))
    _, influence = influence_of(values, np.ones(values.shape, dtype=bool))
    influence = influence[:, None]
    both = seeds_and_documents(influence)
    sources = [seeds_source(rows[:, None]), documents_source(influence, both)]
    assert both[0] == pytest.approx(ms_both / (seeds * documents))
    assert sources[0].variance[0] == pytest.approx(ms_seeds / (seeds * documents))
    expected = (ms_seeds + ms_documents - ms_both) / (seeds * documents)
    assert standard_error(sources)[0] ** 2 == pytest.approx(expected)
    assert [source.freedom for source in sources] == [3, 49]


def test_a_part_is_never_negative_and_silent_documents_count_as_one():
    influence = np.zeros((1, 1, 20))
    assert documents_source(influence, floor=np.array([2.0])).variance == pytest.approx([(2 / 20) ** 2])
    noise = np.random.default_rng(0).normal(0, 1e-3, (2, 1, 20))
    noise -= noise.mean(axis=0)
    assert documents_source(noise, seeds_and_documents(noise)).variance[0] == 0


def test_one_source_is_students_t():
    sample = np.random.default_rng(1).normal(0.4, 1, (6, 3))
    sources = [seeds_source(sample)]
    low, high = interval(sample.mean(axis=0), sources)
    for column in range(3):
        test = stats.ttest_1samp(sample[:, column], 0)
        assert p_values(sample.mean(axis=0), sources)[column] == pytest.approx(test.pvalue, rel=1e-6)
        expected = test.confidence_interval(0.95)
        assert (low[column], high[column]) == pytest.approx((expected.low, expected.high))


def test_several_sources_weigh_in_with_what_they_are_above_normal(monkeypatch):
    sources = [Source(np.array([3.0]), 2), Source(np.array([1.0]), 30)]
    monkeypatch.setattr(statistics, "EXCESS", 1)
    cochran = (3 * stats.t.ppf(0.975, 2) + stats.t.ppf(0.975, 30)) / 4
    assert quantile(sources, 0.025)[0] == pytest.approx(cochran)
    monkeypatch.undo()
    normal = stats.norm.ppf(0.975)
    expected = normal
    for share, freedom in ((0.75, 2), (0.25, 30)):
        expected += share**1.25 * (stats.t.ppf(0.975, freedom) - normal)
    assert quantile(sources, 0.025)[0] == pytest.approx(expected)


def test_p_is_a_twentieth_where_the_interval_ends_at_zero():
    sources = [Source(np.array([3.0, 0.1]), 1), Source(np.array([1.0, 2.0]), 83)]
    reach = quantile(sources, 0.025) * standard_error(sources)
    assert p_values(reach, sources) == pytest.approx(0.05, rel=1e-6)
    assert (p_values(1.01 * reach, sources) < 0.05).all() and (p_values(0.99 * reach, sources) > 0.05).all()
    assert p_values(np.zeros(2), sources) == pytest.approx(1)
    certain = p_values(np.full(2, 1e9), sources)
    assert (certain > 0).all() and (certain < 1e-8).all()


def test_a_difference_of_that_size_is_found_in_four_of_five_samples():
    random = np.random.default_rng(2)
    smallest = detectable(one_source(1 / 8, freedom=7))[0]
    assert smallest == pytest.approx((stats.t.ppf(0.975, 7) + stats.t.ppf(0.8, 7)) / np.sqrt(8))
    found = stats.ttest_1samp(random.normal(smallest, 1, (20_000, 8)), 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("seeds", [2, 3, 4, 8])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0, 10.0, 100.0])
def test_intervals_hold_for_any_share_of_the_seeds(seeds, share):
    """The variances of crossed effects are multiples of chi-squares: 40,000 samples at once."""
    random = np.random.default_rng(int(100 * share) + seeds)
    documents, both, count = 84, 0.2, 40_000
    chi = [random.chisquare(freedom, count) / freedom for freedom in (seeds - 1, documents - 1)]
    of_both = both * random.chisquare((seeds - 1) * (documents - 1), count) / ((seeds - 1) * (documents - 1))
    sources = [
        Source((share + both) * chi[0], seeds - 1),
        Source(np.maximum((1 + both) * chi[1] - of_both, 0), documents - 1),
    ]
    errors = random.normal(0, np.sqrt(share + 1 + both), count)
    low, high = interval(errors, sources)
    assert 0.928 <= ((low <= 0) & (high >= 0)).mean() <= 0.974


def test_languages_that_are_drawn_give_the_variances_of_means_and_gaps():
    random = np.random.default_rng(4)
    values = random.normal(0.5, 0.1, 41)
    mean = np.array([0, *[1 / 40] * 40])  # the first is fixed
    gap = np.array([0, *[1 / 15] * 15, *[-1 / 25] * 25])
    sources = languages_sources(values, np.stack([mean, gap, np.eye(1, 41)[0]]))
    close, distant = values[1:16], values[16:]
    expected = [values[1:].var(ddof=1) / 40, close.var(ddof=1) / 15 + distant.var(ddof=1) / 25, 0]
    assert standard_error(sources) ** 2 == pytest.approx(expected)
    assert [source.freedom[1] for source in sources] == [14, 24]


def test_correlations_and_their_intervals_are_scipys(data):
    scores, distance = data
    r, rho = stats.pearsonr(scores, distance), stats.spearmanr(scores, distance)
    assert pearson(scores, distance)[0] == pytest.approx(r.statistic)
    assert spearman(scores, distance)[0] == pytest.approx(rho.statistic)
    estimate, p = correlation_estimate(r.statistic, 60, [])
    expected = r.confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))
    assert p == pytest.approx(2 * stats.norm.sf(abs(np.arctanh(r.statistic)) * np.sqrt(57)), rel=1e-5)
    estimate, _ = correlation_estimate(rho.statistic, 60, [], by_ranks=True)
    error = np.sqrt((1 + rho.statistic**2 / 2) / 57)
    ends = np.tanh(np.arctanh(rho.statistic) + error * stats.norm.ppf([0.025, 0.975]))
    assert (estimate.low, estimate.high) == pytest.approx(tuple(ends))


def test_gradients_say_how_correlations_change(data):
    scores, distance = data
    r, gradient = pearson(scores, distance)
    for index in range(0, 60, 7):
        moved = scores + 1e-6 * np.eye(60)[index]
        assert (pearson(moved, distance)[0] - r) / 1e-6 == pytest.approx(gradient[index], abs=1e-4)


@pytest.mark.parametrize("correlate", [pearson, spearman])
def test_noise_of_the_scores_makes_correlations_as_uncertain_as_it_is_told(data, correlate):
    scores, distance = data
    random = np.random.default_rng(5)
    _, gradient = correlate(scores, distance)
    noise = random.normal(0, 0.01, (3000, 1)) * distance + random.normal(0, 0.02, (3000, 60))
    spread = np.std([correlate(scores + one, distance)[0] for one in noise])
    assert (noise @ gradient).std() == pytest.approx(spread, rel=0.15)
    wider, _ = correlation_estimate(correlate(scores, distance)[0], 60, [Source(np.array([spread**2]), 3)])
    narrow, _ = correlation_estimate(correlate(scores, distance)[0], 60, [])
    assert wider.low < narrow.low and wider.high > narrow.high


def test_what_can_not_be_correlated_is_nan():
    for correlate in (pearson, spearman):
        assert np.isnan(correlate(np.array([0.1, 0.2]), np.array([1.0, 2.0]))[0])
        assert np.isnan(correlate(np.ones(9), np.arange(9.0))[0])
        assert np.isnan(correlate(np.arange(9.0), np.ones(9))[0])
        assert np.isnan(correlate(np.zeros(0), np.zeros(0))[0])
    estimate, p = correlation_estimate(0.5, 3, [])
    assert estimate.value == 0.5 and np.isnan([estimate.low, estimate.high, p]).all()
    estimate, p = correlation_estimate(-1.0, 9, [])
    assert estimate.low == pytest.approx(-1) and p < 1e-9


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([0.02, float("nan"), 0.5]) == pytest.approx([0.04, float("nan"), 0.5], nan_ok=True)
    assert holm([]) == []


def test_languages_at_the_same_distance_are_not_split():
    assert halving_threshold(np.array([0.1, 0.2, 0.2, 0.9, 1.0, np.nan])) == 0.2
    assert halving_threshold(np.array([0.5, 1, 1, 1, 1, 1])) == 0.5
    assert halving_threshold(np.ones(3)) is None
