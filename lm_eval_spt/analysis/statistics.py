"""Correlations, intervals and p-values. Random numbers have a fixed seed: the same data give the same numbers.

To resample n items with replacement is to give each of them a count. One matrix of counts `[resamples, n]` serves every
statistic, and what is resampled together (arms, languages, distances) stays paired.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

LANGUAGE_RESAMPLES = 1000
DOCUMENT_RESAMPLES = 10_000  # a p-value that is corrected for 205 languages has to be able to fall below 0.05
LEVEL = 0.95

METHODS = {
    "correlation": "Pearson's r and Spearman's rho over the target languages; "
    f"{LEVEL:.0%} percentile intervals, {LANGUAGE_RESAMPLES} bootstrap resamples of the languages; "
    "two-sided p from Student's t, corrected for the six distances by Holm's method",
    "halves": "target languages split at the distance that makes two halves as equal as possible, those at the same "
    f"distance together; {LEVEL:.0%} percentile interval of the gap, "
    f"{LANGUAGE_RESAMPLES} bootstrap resamples of the languages within each half",
    "documents": f"bootstrap over documents, {DOCUMENT_RESAMPLES} resamples, the same documents in every "
    f"language (they are translations of each other), arm and run; {LEVEL:.0%} percentile intervals, two-sided p, in "
    "single languages corrected for their number by Holm's method; scores are the mean over an arm's runs, whose "
    "spread over seeds is not part of the interval",
    "languages": f"bootstrap over languages, {DOCUMENT_RESAMPLES} resamples, the same languages for all arms; "
    f"{LEVEL:.0%} percentile intervals, two-sided p; a single language has neither",
}
"""How the numbers are computed, in words, for the reports."""


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Correlation:
    """The correlations of scores with a distance over a number of languages; p-values are not corrected."""

    languages: int
    pearson: Estimate
    pearson_p: float
    spearman: Estimate
    spearman_p: float


@dataclass(frozen=True)
class Halves:
    """Scores in the languages close to the source and in those far from it.

    Attributes:
        threshold: the largest distance in the close half.
        close: the mean score of the close half.
        distant: the mean score of the distant half.
        gap: close minus distant.
        close_languages: the number of languages in the close half.
        distant_languages: the number of languages in the distant half.
    """

    threshold: float
    close: float
    distant: float
    gap: Estimate
    close_languages: int
    distant_languages: int


@functools.lru_cache(maxsize=32)
def resample(count: int, resamples: int, seed: int = 0) -> np.ndarray:
    """Return how often each of `count` items is drawn in each resample: `[resamples, count]`, rows sum to `count`."""
    counts = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    counts = counts.astype(np.float32)  # exact, and products of it are fast
    counts.flags.writeable = False  # all callers share it
    return counts


def estimate(value: float, resampled: np.ndarray) -> Estimate:
    """Return a value with the percentile interval of its resamples `[resamples]`; NaN among them is ignored."""
    resampled = resampled[~np.isnan(resampled)]
    if not len(resampled):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def bootstrap_p(resampled: np.ndarray) -> np.ndarray:
    """Return the two-sided p-value of each column of `[resamples, ...]` against 0.

    It is twice the smaller share of resamples on either side of 0. The observed value counts as one of them, so that p
    is never 0. Values that differ from 0 by rounding errors of float32 lie on both sides.
    """
    resampled = np.round(resampled, 6)
    below, above = (resampled <= 0).sum(axis=0), (resampled >= 0).sum(axis=0)
    return np.minimum(1, 2 * (np.minimum(below, above) + 1) / (len(resampled) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method (1979); NaN stays NaN and is not counted.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none may fall below the one before.
    """
    corrected = np.full(len(p_values), np.nan)
    tested = [index for index in np.argsort(p_values) if not np.isnan(p_values[index])]
    largest = 0.0
    for rank, index in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected.tolist()


def correlate(scores: np.ndarray, distances: np.ndarray) -> list[list[Correlation]]:
    """Correlate the scores of arms with distances, all intervals over the same resamples of the languages.

    Args:
        scores: `[arms, languages]`.
        distances: `[kinds, languages]`; a language whose distance is NaN is left out for that kind.

    Returns:
        For each arm a correlation for each kind. It is NaN for fewer than three languages, or if the scores or the
        distances are constant.
    """
    nothing = Estimate(np.nan, np.nan, np.nan)
    correlations = [[Correlation(0, nothing, np.nan, nothing, np.nan)] * len(distances) for _ in scores]
    # Kinds with distances for the same languages share the ranks of the scores, which take the most time.
    for known in np.unique(~np.isnan(distances), axis=0):
        kinds = np.flatnonzero((~np.isnan(distances) == known).all(axis=1))
        languages = int(known.sum())
        known_scores, known_distances = scores[:, known], distances[np.ix_(kinds, known)]
        if languages < 3:
            for arm_correlations in correlations:
                for kind in kinds:
                    arm_correlations[kind] = Correlation(languages, nothing, np.nan, nothing, np.nan)
            continue
        counts = resample(languages, LANGUAGE_RESAMPLES)
        resampled_r = [_resampled_pearson(known_scores, distance, counts) for distance in known_distances]
        distance_ranks = [resampled_ranks(distance, counts) for distance in known_distances]
        for arm, row in enumerate(known_scores):
            score_ranks = resampled_ranks(row, counts)
            for position, kind in enumerate(kinds):
                distance = known_distances[position]
                r, rho = _pearson(row, distance), _pearson(ranks(row), ranks(distance))
                resampled_rho = _rank_correlation(score_ranks, distance_ranks[position], counts)
                correlations[arm][kind] = Correlation(
                    languages,
                    estimate(r, resampled_r[position][:, arm]),
                    _correlation_p(r, languages),
                    estimate(rho, resampled_rho),
                    _correlation_p(rho, languages),
                )
    return correlations


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each of `values` `[n]`, from 1 on; ties share their mean rank."""
    return resampled_ranks(values, np.ones((1, len(values))))[0]


def resampled_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the rank of each value within each resample; ties share their mean rank.

    Args:
        values: `[n]`.
        counts: `[resamples, n]`, see :func:`resample`.

    Returns:
        The ranks `[resamples, n]`; those of values that were not drawn have no meaning.
    """
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    by_value = counts[:, np.argsort(group, kind="stable")]
    drawn = np.add.reduceat(by_value, np.concatenate([[0], np.cumsum(sizes)[:-1]]), axis=1)
    return (np.cumsum(drawn, axis=1) - (drawn - 1) / 2)[:, group]


def halves(scores: np.ndarray, distance: np.ndarray) -> list[Halves]:
    """Compare the languages close to the source with those far from it.

    Args:
        scores: `[arms, languages]`.
        distance: `[languages]`; languages whose distance is NaN are left out.

    Returns:
        The halves of each arm; an empty list if all languages are at the same distance.
    """
    known = ~np.isnan(distance)
    scores, distance = scores[:, known], distance[known]
    threshold = halving_threshold(distance)
    if threshold is None:
        return []
    close, distant = scores[:, distance <= threshold], scores[:, distance > threshold]
    resampled = [
        resample(half.shape[1], LANGUAGE_RESAMPLES, seed) @ half.T / half.shape[1]
        for seed, half in enumerate((close, distant))
    ]
    gaps = resampled[0] - resampled[1]
    return [
        Halves(
            threshold,
            float(near.mean()),
            float(far.mean()),
            estimate(float(near.mean() - far.mean()), gaps[:, arm]),
            len(near),
            len(far),
        )
        for arm, (near, far) in enumerate(zip(close, distant, strict=True))
    ]


def halving_threshold(distance: np.ndarray) -> float | None:
    """Return the largest distance of a close language, so that the halves are as equal as possible.

    Args:
        distance: `[languages]`; languages at the same distance stay together.

    Returns:
        The threshold; None if all languages are at the same distance.
    """
    thresholds = np.unique(distance)[:-1]
    if not len(thresholds):
        return None
    return float(min(thresholds, key=lambda value: abs(2 * (distance <= value).sum() - len(distance))))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    norms = np.sqrt((x @ x) * (y @ y))
    return float(np.clip(x @ y / norms, -1, 1)) if norms > 1e-12 else float("nan")


def _resampled_pearson(scores: np.ndarray, distance: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pearson's r of each arm in each resample `[resamples, arms]`, by moments.

    Args:
        scores: `[arms, n]`.
        distance: `[n]`.
        counts: `[resamples, n]`.
    """
    n = counts.shape[1]
    x, y = distance - distance.mean(), scores - scores.mean(axis=1, keepdims=True)
    mean_x, mean_y = (counts @ x)[:, None] / n, counts @ y.T / n
    covariance = counts @ (x * y).T / n - mean_x * mean_y
    variance = ((counts @ x**2)[:, None] / n - mean_x**2) * (counts @ (y**2).T / n - mean_y**2)
    return np.divide(
        covariance, np.sqrt(variance.clip(0)), out=np.full_like(covariance, np.nan), where=variance > 1e-12
    )


def _rank_correlation(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Spearman's rho in each resample `[resamples]`, from the ranks within it; all arguments `[resamples, n]`."""
    mean = (counts.shape[1] + 1) / 2
    weighted_x, weighted_y = counts * (x - mean), counts * (y - mean)
    variance = np.einsum("rn,rn->r", weighted_x, x - mean) * np.einsum("rn,rn->r", weighted_y, y - mean)
    covariance = np.einsum("rn,rn->r", weighted_x, y - mean)
    return np.divide(covariance, np.sqrt(variance), out=np.full_like(covariance, np.nan), where=variance > 1e-12)


def _correlation_p(r: float, count: int) -> float:
    """The two-sided p-value of a correlation: t = r sqrt((n - 2) / (1 - r^2)) with n - 2 degrees of freedom."""
    if np.isnan(r):
        return float("nan")
    t = r * np.sqrt((count - 2) / max(1 - r**2, 1e-300))
    return float(2 * special.stdtr(count - 2, -abs(t)))
