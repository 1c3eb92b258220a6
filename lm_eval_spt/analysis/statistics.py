"""Correlations, intervals and p-values. Everything random has a fixed seed: the same data give the same numbers.

Resampling n things with replacement is the same as giving each a count, so that one matrix of counts `[resamples, n]`
serves every statistic, and all that is resampled together (arms, languages, distances) stays paired.
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
"""How numbers come about, in words, for the reports."""


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Correlation:
    """How scores go with a distance; p-values are of this one test."""

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
        close: mean score of the close half.
        distant: mean score of the distant half.
        gap: close minus distant.
        close_languages: their number.
        distant_languages: their number.
    """

    threshold: float
    close: float
    distant: float
    gap: Estimate
    close_languages: int
    distant_languages: int


@functools.lru_cache(maxsize=32)
def resample(count: int, resamples: int, seed: int = 0) -> np.ndarray:
    """Return how often each of `count` things is drawn in each resample: `[resamples, count]`, rows sum to `count`."""
    counts = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    counts = counts.astype(np.float32)  # exact, and what products are fast with
    counts.flags.writeable = False  # it is shared by all callers
    return counts


def estimate(value: float, resampled: np.ndarray) -> Estimate:
    """Return a value with the percentile interval of its resamples `[resamples]`; those that are NaN do not count."""
    resampled = resampled[~np.isnan(resampled)]
    if not len(resampled):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def bootstrap_p(resampled: np.ndarray) -> np.ndarray:
    """Return the two-sided p-value of each column of `[resamples, ...]` against 0.

    Twice the smaller share of resamples on either side of 0, the observed value counted among them, so that it is never
    0. What is 0 but for rounding errors of float32 lies on both sides.
    """
    resampled = np.round(resampled, 6)
    below, above = (resampled <= 0).sum(axis=0), (resampled >= 0).sum(axis=0)
    return np.minimum(1, 2 * (np.minimum(below, above) + 1) / (len(resampled) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method (1979); NaN stays NaN and is not counted.

    The smallest is multiplied by m, the next by m - 1, and so on; none falls below one before it.
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
        distances: `[kinds, languages]`; NaN where there is none: for that kind these languages are left out.

    Returns:
        One for each arm and kind. With fewer than three languages, or where one side is constant, its values are NaN.
    """
    nothing = Estimate(np.nan, np.nan, np.nan)
    found = [[Correlation(0, nothing, np.nan, nothing, np.nan)] * len(distances) for _ in scores]
    # Kinds that know the same languages share the ranks of the scores, which take the most time.
    for known in np.unique(~np.isnan(distances), axis=0):
        kinds = np.flatnonzero((~np.isnan(distances) == known).all(axis=1))
        languages = int(known.sum())
        of_known, their_distances = scores[:, known], distances[np.ix_(kinds, known)]
        if languages < 3:
            for of_arm in found:
                for kind in kinds:
                    of_arm[kind] = Correlation(languages, nothing, np.nan, nothing, np.nan)
            continue
        counts = resample(languages, LANGUAGE_RESAMPLES)
        resampled_r = [_resampled_pearson(of_known, distance, counts) for distance in their_distances]
        resampled_of_kinds = [resampled_ranks(distance, counts) for distance in their_distances]
        for arm, row in enumerate(of_known):
            resampled_of_arm = resampled_ranks(row, counts)
            for position, kind in enumerate(kinds):
                distance = their_distances[position]
                r, rho = _pearson(row, distance), _pearson(ranks(row), ranks(distance))
                resampled_rho = _rank_correlation(resampled_of_arm, resampled_of_kinds[position], counts)
                found[arm][kind] = Correlation(
                    languages,
                    estimate(r, resampled_r[position][:, arm]),
                    _correlation_p(r, languages),
                    estimate(rho, resampled_rho),
                    _correlation_p(rho, languages),
                )
    return found


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each of `values` `[n]`, from 1 on, ties sharing their mean rank."""
    return resampled_ranks(values, np.ones((1, len(values))))[0]


def resampled_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the rank that each value has within each resample, ties sharing their mean rank.

    Args:
        values: `[n]`.
        counts: `[resamples, n]`, see :func:`resample`.

    Returns:
        `[resamples, n]`; of what was not drawn the rank has no meaning.
    """
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    by_value = counts[:, np.argsort(group, kind="stable")]
    drawn = np.add.reduceat(by_value, np.concatenate([[0], np.cumsum(sizes)[:-1]]), axis=1)
    return (np.cumsum(drawn, axis=1) - (drawn - 1) / 2)[:, group]


def halves(scores: np.ndarray, distance: np.ndarray) -> list[Halves]:
    """Compare the languages close to the source with those far from it.

    Args:
        scores: `[arms, languages]`.
        distance: `[languages]`; NaN where there is none: these languages are left out.

    Returns:
        One for each arm; none where all languages are at the same distance.
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
    """Return up to which of the distances `[languages]` a language is close, for halves as equal as possible.

    Languages at the same distance stay together; None where all are at the same.
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
    """Pearson's r of each arm in each resample, by moments.

    Scores `[arms, n]`, distance `[n]`, counts `[resamples, n]`, to `[resamples, arms]`.
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
    """Spearman's rho in each resample, of ranks within it: all `[resamples, n]`, to `[resamples]`."""
    mean = (counts.shape[1] + 1) / 2
    of_x, of_y = counts * (x - mean), counts * (y - mean)
    variance = np.einsum("rn,rn->r", of_x, x - mean) * np.einsum("rn,rn->r", of_y, y - mean)
    covariance = np.einsum("rn,rn->r", of_x, y - mean)
    return np.divide(covariance, np.sqrt(variance), out=np.full_like(covariance, np.nan), where=variance > 1e-12)


def _correlation_p(r: float, count: int) -> float:
    """Two-sided p of a correlation: t = r sqrt((n - 2) / (1 - r^2)) with n - 2 degrees of freedom."""
    if np.isnan(r):
        return float("nan")
    t = r * np.sqrt((count - 2) / max(1 - r**2, 1e-300))
    return float(2 * special.stdtr(count - 2, -abs(t)))
