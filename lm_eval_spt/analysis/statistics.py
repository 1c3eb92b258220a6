"""Sources of variance, and the intervals and p-values that follow from them; correlations; corrections.

An estimate (a mean, a difference, a gap) has several independent sources of variance: training seeds, test documents
and, where asked for, languages. Each is estimated on its own, and is known as well as its degrees of freedom say: two
seeds leave one. The model, and the simulation that it is held to, are in docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

LEVEL = 0.95
POWER = 0.8

EXCESS = 1.25
"""By what power of its share in the variance a source's t-quantile counts. With 1, Cochran's rule, two seeds that add
little to the documents make intervals that cover 98%; with 1.25 they cover 93 to 97%, whatever the shares."""


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval; they are NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Source:
    """A part of the variance of k estimates.

    Attributes:
        variance: `[k]`.
        freedom: the degrees of freedom that it was estimated with, one number or `[k]`.
    """

    variance: np.ndarray
    freedom: float | np.ndarray


def seeds_source(values: np.ndarray) -> Source:
    """Return what seeds add to the variance of a mean over rows, and with them all that differs between rows.

    Args:
        values: `[rows, k]`, a row for each run, or for each pair of runs that is compared.
    """
    rows = len(values)
    return Source(values.var(axis=0, ddof=1) / rows, rows - 1)


def documents_source(influence: np.ndarray, both: np.ndarray | float = 0.0, floor: np.ndarray | float = 0.0) -> Source:
    """Return what the choice of documents adds to the variance of a mean over rows.

    Scores are crossed: each seed answers each document. With S rows and D documents the variance of the mean is
    (MS_seeds + MS_documents - MS_both) / (S D).

    Args:
        influence: how much each document moves each value, scaled so that the sum of squares is the variance of one row
            (see :mod:`lm_eval_spt.analysis.documents`): `[rows, k, documents]`.
        both: what :func:`seeds_and_documents` gives, where the seeds' source holds it already.
        floor: where no document moves a value, one is taken to do so, by this much: none in D is not none at all.
    """
    mean, documents = influence.mean(axis=0), influence.shape[2]
    variance = np.maximum(np.einsum("kd,kd->k", mean, mean, dtype=np.float64) - both, 0)
    silent = np.abs(influence).max(axis=(0, 2)) < 1e-7
    return Source(np.where(silent, (floor / documents) ** 2, variance), documents - 1)


def seeds_and_documents(influence: np.ndarray) -> np.ndarray:
    """Return MS_both / (S D): what seeds and documents together add to the variance of a mean over rows `[k]`."""
    rest = influence - influence.mean(axis=0)
    return np.einsum("skd,skd->k", rest, rest) / (len(rest) * (len(rest) - 1))


def languages_sources(values: np.ndarray, weights: np.ndarray) -> list[Source]:
    """Return what the choice of languages adds to the variance of weighted means over them.

    Languages with positive weights and those with negative ones are samples of their own: those close to the source
    and those far from it.

    Args:
        values: a score, or a difference of scores, in each language: `[languages]`.
        weights: `[k, languages]`; 0 for a language that is fixed, such as the source.
    """
    sources = []
    for chosen in (weights > 0, weights < 0):
        count, own = chosen.sum(axis=1), np.where(chosen, weights, 0)
        mean = own @ values / np.where(count, own.sum(axis=1), 1)
        squares = ((own * (values - mean[:, None])) ** 2).sum(axis=1)
        sources.append(Source(squares * count / np.maximum(count - 1, 1), np.maximum(count - 1, 1)))
    return sources


def standard_error(sources: Sequence[Source]) -> np.ndarray:
    """Return the standard errors of estimates with these sources of variance `[k]`."""
    return np.sqrt(np.sum([source.variance for source in sources], axis=0))


def quantile(sources: Sequence[Source], tail: float | np.ndarray) -> np.ndarray:
    """Return how many standard errors lie between the estimate and the point beyond which `tail` is left `[k]`.

    With one source it is Student's t. With several, each adds what its t is above the normal quantile, by the power
    :data:`EXCESS` of its share in the variance. With the power 1 this is Cochran's rule (1964, Approximate Significance
    Levels of the Behrens-Fisher Test, Biometrics 20).
    """
    variance = np.maximum(np.sum([source.variance for source in sources], axis=0), 1e-300)
    normal = -special.ndtri(tail)
    result = np.full(len(variance), normal)
    for source in sources:
        share = (source.variance / variance) ** EXCESS
        result += share * (-special.stdtrit(source.freedom, tail) - normal)
    return result


def interval(values: np.ndarray, sources: Sequence[Source]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the estimates' intervals, each `[k]`."""
    reach = quantile(sources, (1 - LEVEL) / 2) * standard_error(sources)
    return values - reach, values + reach


def p_values(values: np.ndarray, sources: Sequence[Source]) -> np.ndarray:
    """Return the two-sided p-values of estimates against 0 `[k]`: below 0.05 where the 95% interval leaves 0 out."""
    observed = np.abs(values) / np.maximum(standard_error(sources), 1e-150)
    low, high = np.full(len(values), -40.0), np.full(len(values), np.log(0.5))  # logarithms of the tail's probability
    for _ in range(32):
        middle = (low + high) / 2
        beyond = quantile(sources, np.exp(middle)) > observed
        low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
    return np.where(np.isnan(observed), np.nan, 2 * np.exp(high))


def detectable(sources: Sequence[Source]) -> np.ndarray:
    """Return the smallest true differences that are found with a probability of 80% at the level 5% `[k]`.

    It is the minimum detectable effect (Bloom 1995, Evaluation Review 19): standard errors times the sum of the two
    quantiles.
    """
    return (quantile(sources, (1 - LEVEL) / 2) + quantile(sources, 1 - POWER)) * standard_error(sources)


def holm(p_values: Sequence[float] | np.ndarray) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method (1979); NaN stays NaN and is not counted.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none may fall below the one before.
    """
    given = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(len(given), np.nan)
    order = np.argsort(given)
    order = order[: int((~np.isnan(given)).sum())]  # NaN is sorted last
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * given[order]), 1)
    return corrected.tolist()


def pearson(scores: np.ndarray, distance: np.ndarray) -> tuple[float, np.ndarray]:
    """Return Pearson's r and how it changes with each score: its gradient.

    Args:
        scores: `[languages]`.
        distance: `[languages]`.

    Returns:
        r and `[languages]`; NaN for fewer than three languages, or if the scores or the distances are constant.
    """
    if len(scores) < 3 or np.ptp(scores) < 1e-9 or np.ptp(distance) < 1e-9:
        return np.nan, np.full(len(scores), np.nan)
    x, y = scores - scores.mean(), distance - distance.mean()
    x_norm, y_norm = np.linalg.norm(x), np.linalg.norm(y)
    r = float(np.clip(x @ y / (x_norm * y_norm), -1, 1))
    return r, (y / y_norm - r * x / x_norm) / x_norm


def spearman(scores: np.ndarray, distance: np.ndarray) -> tuple[float, np.ndarray]:
    """Return Spearman's rho and, for small changes of the scores, how it changes with each.

    Ranks change in steps. For the gradient they are smoothed: score m counts among those below score l with the
    probability that a normal number is below (x_l - x_m) / h, h being Silverman's bandwidth.

    Args:
        scores: `[languages]`.
        distance: `[languages]`.

    Returns:
        As :func:`pearson`.
    """
    rho, by_rank = pearson(stats.rankdata(scores), stats.rankdata(distance))
    if np.isnan(rho):
        return rho, by_rank
    bandwidth = 1.06 * scores.std(ddof=1) * len(scores) ** -0.2
    density = stats.norm.pdf((scores[:, None] - scores) / bandwidth) / bandwidth
    return rho, by_rank * density.sum(axis=1) - by_rank @ density


def correlation_estimate(
    r: float, languages: int, sources: Sequence[Source], by_ranks: bool = False
) -> tuple[Estimate, float]:
    """Return a correlation with its interval, and its p-value, by Fisher's z.

    A correlation says something of languages, so that these are always taken as drawn at random: their part in the
    variance of z is 1 / (n - 3), for ranks (1 + rho^2 / 2) / (n - 3) (Bonett and Wright 2000, Psychometrika 65).

    Args:
        r: the correlation.
        languages: their number n.
        sources: the other sources of r's variance, each of one number.
        by_ranks: whether it is Spearman's rho.
    """
    if np.isnan(r) or languages < 4:
        return Estimate(r, np.nan, np.nan), np.nan
    z = np.array([np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))])
    scale = max((1 - r**2) ** 2, 1e-24)
    of_languages = (1 + r**2 / 2 if by_ranks else 1) / (languages - 3)
    parts = [
        Source(np.array([of_languages]), 1e9),
        *(Source(source.variance / scale, source.freedom) for source in sources),
    ]
    (low,), (high,) = interval(z, parts)
    return Estimate(r, float(np.tanh(low)), float(np.tanh(high))), float(p_values(z, parts)[0])


def halving_threshold(distance: np.ndarray) -> float | None:
    """Return the largest distance of a close language, so that the halves are as equal as possible.

    Args:
        distance: `[languages]`; languages at the same distance stay together; NaN is left out.

    Returns:
        The threshold; None if all languages are at the same distance.
    """
    distance = distance[~np.isnan(distance)]
    thresholds = np.unique(distance)[:-1]
    if not len(thresholds):
        return None
    return float(min(thresholds, key=lambda value: abs(2 * (distance <= value).sum() - len(distance))))
