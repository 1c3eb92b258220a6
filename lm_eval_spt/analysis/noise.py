"""The noise of arms' scores: what other documents, other seeds and, if asked for, other languages would have changed.

Everything that is estimated is a weighted mean over languages, of an arm or of the difference of two arms. What is
known of it run by run and document by document decides its interval. The model is described in docs/statistics.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lm_eval_spt.analysis.arms import Arm
from lm_eval_spt.analysis.documents import read_influence
from lm_eval_spt.analysis.results import EvaluationRun
from lm_eval_spt.analysis.statistics import (
    LEVEL,
    Estimate,
    Source,
    detectable,
    documents_source,
    holm,
    interval,
    languages_sources,
    p_values,
    seeds_and_documents,
    seeds_source,
    standard_error,
)
from lm_eval_spt.common.errors import UserError

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Estimates:
    """k estimates. What is asked of them is NaN where it is not known.

    Attributes:
        value: `[k]`.
        sources: the sources of their variance.
        complete: whether seeds and documents are among these, so that one may test.
    """

    value: np.ndarray
    sources: Sequence[Source]
    complete: bool

    @cached_property
    def error(self) -> np.ndarray:
        """The standard errors `[k]`."""
        return standard_error(self.sources)

    @cached_property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the 95% intervals, each `[k]`."""
        return interval(self.value, self.sources)

    @cached_property
    def p(self) -> np.ndarray:
        """Two-sided p-values against 0 `[k]`."""
        return p_values(self.value, self.sources) if self.complete else np.full(len(self.value), np.nan)

    @cached_property
    def detectable(self) -> np.ndarray:
        """The smallest true values that are found with a probability of 80% `[k]`."""
        return detectable(self.sources) if self.complete else np.full(len(self.value), np.nan)

    def __getitem__(self, index: int) -> Estimate:
        low, high = self.ends
        return Estimate(float(self.value[index]), float(low[index]), float(high[index]))


@dataclass(frozen=True)
class Measured:
    """Weighted means of an arm's scores, run by run.

    Attributes:
        values: `[runs, k]`.
        influence: how much each document moves them, `[runs, k, documents]`; None where samples are missing.
        bound: without samples, the most that documents can add to their standard errors `[k]`; NaN where not even that
            is known.
        seeds: what the documents of each run's training were drawn with; None where that is not known.
        spread: the spread over seeds: ``runs`` (the runs show it), ``fixed`` (nothing was learned or drawn),
            ``borrowed`` (one run; that of `lent`) or ``unknown`` (one run).
        lent: where the spread is borrowed, the variance of one run over seeds, and the part of it that seeds and
            documents have together `[k]`.
        scores: the mean over the runs in each language `[languages]`.
        weights: `[k, languages]`.
    """

    values: np.ndarray
    influence: np.ndarray | None
    bound: np.ndarray
    seeds: Sequence[int | None]
    spread: str
    lent: tuple[Source, np.ndarray] | None
    scores: np.ndarray
    weights: np.ndarray

    @property
    def complete(self) -> bool:
        """Whether intervals contain documents and seeds, so that one may test."""
        return self.spread != "unknown" and (self.influence is not None or not np.isnan(self.bound).any())


@dataclass
class Noise:
    """The scores of arms in some languages, and what is known of their noise.

    Attributes:
        arms: the arms.
        languages: the languages, all of which every arm has; the first may be the source, which is never random.
        metric: such as ``acc``.
        random_languages: whether languages are taken as drawn from others like them.
        source: the language that is fixed even so.
        influence: how much each document moves each score, `[runs, languages, documents]`, of all arms' runs in their
            order; by default it is read from the samples beside the results, if they are there.
        documents: whether samples are there.
        about_documents: lines that say what the intervals lack of documents, and why.
        notes: these, and lines about seeds.
    """

    arms: Sequence[Arm]
    languages: Sequence[str]
    metric: str
    random_languages: bool = False
    source: str | None = None
    influence: np.ndarray | None = None
    documents: bool = field(init=False)
    about_documents: list[str] = field(init=False, default_factory=list)
    notes: list[str] = field(init=False)

    def __post_init__(self) -> None:
        runs = list({id(run): run for arm in self.arms for run in arm.runs}.values())
        self._pooled: dict[tuple[Any, bytes], tuple[Source, np.ndarray] | None] = {}
        self._index = {id(run): position for position, run in enumerate(runs)}
        of_runs = [run.scores[self.metric] for run in runs]
        self._scores = np.array([[scores[language].value for language in self.languages] for scores in of_runs])
        errors = [[scores[language].stderr for language in self.languages] for scores in of_runs]
        self._errors = np.array([[np.nan if error is None else error for error in row] for row in errors])
        try:
            if self.influence is None:
                self.influence = read_influence(runs, self.languages, self.metric)
        except UserError as problem:
            bounded = (
                "the harness's standard errors bound what documents add to intervals, which are wider than need be"
            )
            unknown = "intervals do not say what other documents would have changed"
            self.about_documents.append(f"{problem}; until then {unknown if np.isnan(self._errors).any() else bounded}")
        self.documents = self.influence is not None
        self.notes = [*self.about_documents, *self._about_seeds()]

    @property
    def method(self) -> str:
        """What intervals contain, in words."""
        parts = ["training seeds"]
        if self.documents:
            parts.append("documents (together in all languages that have them)")
        elif not np.isnan(self._errors).any():
            parts.append("documents (bounded by the harness's standard errors)")
        parts += ["languages"] if self.random_languages else []
        contained = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
        fixed = "" if self.random_languages else "; languages are fixed"
        return (
            f"{LEVEL:.0%} intervals contain what other {contained} would have changed{fixed}. Crossed "
            "random effects, with t-quantiles for the number of runs; two-sided p, in single languages corrected "
            "for their number by Holm's method; docs/statistics.md describes the model"
        )

    def measure(self, arm: Arm, weights: np.ndarray, run: EvaluationRun | None = None) -> Measured:
        """Return weighted means of an arm's scores, or of one of its runs as it is, without a spread over seeds.

        Args:
            arm: one of the arms.
            weights: `[k, languages]`.
            run: one of its runs.
        """
        chosen = [self._index[id(one)] for one in ([run] if run else arm.runs)]
        lent, spread = None, "fixed" if run else _spread(arm)
        if spread == "unknown" and (lent := self._lent(arm, weights)) is not None:
            spread = "borrowed"
        scores = self._scores[chosen]
        influence = None
        if self.influence is not None:
            influence = np.stack([weights.astype(np.float32) @ self.influence[index] for index in chosen])
        bound = np.abs(weights) @ self._errors[chosen].mean(axis=0)
        seeds = arm.documents_seeds
        return Measured(scores @ weights.T, influence, bound, seeds, spread, lent, scores.mean(axis=0), weights)

    def sources(self, one: Measured, other: Measured | None = None) -> list[Source]:
        """Return the sources of variance of weighted means, or of their differences from another arm's."""
        if not self.random_languages:
            return self.fixed_sources(one, other)
        scores = one.scores - (0 if other is None else other.scores)
        weights = np.where(np.array(self.languages) == self.source, 0, one.weights)
        return self.fixed_sources(one, other) + languages_sources(scores, weights)

    def fixed_sources(self, one: Measured, other: Measured | None = None) -> list[Source]:
        """Return the sources of variance in these very languages: seeds, where a spread is known, and documents."""
        parts = [one] if other is None else [one, other]
        values, influence = _rows(one, other)
        sources: list[Source] = []
        both = np.zeros(values.shape[1])  # what seeds and documents do together is counted once: with the seeds
        if len(values) > 1:
            sources.append(seeds_source(values))
            if influence is not None:
                both = seeds_and_documents(influence)
        elif any(part.spread in ("borrowed", "unknown") for part in parts):
            # One source: what is lent to both arms, or by one of them to the other, is known no better for that.
            spreads = []
            for part in parts:
                if len(part.values) > 1:
                    spreads.append(seeds_source(part.values))
                    both = both + (0 if part.influence is None else seeds_and_documents(part.influence))
                elif part.lent is not None:
                    spreads.append(part.lent[0])
                    both = both + part.lent[1]
            if spreads:
                freedom = min(float(spread.freedom) for spread in spreads)
                sources.append(Source(np.sum([spread.variance for spread in spreads], axis=0), freedom))
        if influence is not None:
            return [*sources, documents_source(influence, both, floor=np.abs(one.weights).sum(axis=1))]
        bound = np.sum([part.bound**2 for part in parts], axis=0)
        return [*sources, Source(np.nan_to_num(bound) if sources else bound, 1e9)]

    def estimate(self, one: Measured, other: Measured | None = None) -> Estimates:
        """Return weighted means, or their differences from another arm's."""
        values = one.values.mean(axis=0) - (0 if other is None else other.values.mean(axis=0))
        complete = one.complete and (other is None or other.complete)
        return Estimates(values, self.sources(one, other), complete)

    def ranks(self, weights: np.ndarray) -> list[tuple[int, int]]:
        """Return for each arm the first and the last rank that the data leave open, by a weighted mean `[languages]`.

        An arm is better than another where the p-value of their difference, corrected for all pairs by Holm's method,
        is below 0.05: all these claims hold together with 95%. Where the spread over seeds is not known, no arm is.

        With two seeds, runs that differ little by chance are found among many pairs. So for this p-value a pair's
        variance over seeds is that of its own runs or the pooled one of the arms' kinds, whichever is larger, and the
        whole variance is taken to be known as well as the pooled one. That is right where spreads are alike; as they
        need not be, the pair's own interval has to leave 0 out, too.
        """
        measured = [self.measure(arm, weights[None]) for arm in self.arms]
        pooled = {arm.kind: self._lent(arm, weights[None]) for arm in self.arms if _spread(arm) != "fixed"}
        count = len(measured)
        better = np.zeros((count, count), dtype=bool)
        pairs = list(itertools.combinations(range(count), 2))
        clear = np.zeros(len(pairs), dtype=bool)
        values, variances, freedoms = np.zeros(len(pairs)), np.zeros(len(pairs)), np.full(len(pairs), 1e9)
        for pair, (first, second) in enumerate(pairs):
            estimate = self.estimate(measured[first], measured[second])
            values[pair] = estimate.value[0] if estimate.complete else np.nan
            own = estimate[0]
            clear[pair] = own.low > 0 or own.high < 0
            *seeds, documents = estimate.sources
            freedoms[pair] = documents.freedom
            of_seeds = 0.0
            for index in (first, second):
                lent = None if _spread(self.arms[index]) == "fixed" else pooled[self.arms[index].kind]
                if lent is not None:
                    of_seeds += lent[0].variance[0] / len(measured[index].values)
                    freedoms[pair] = min(freedoms[pair], lent[0].freedom)
            variances[pair] = max(sum(source.variance[0] for source in seeds), of_seeds) + documents.variance[0]
        corrected = np.array(holm(p_values(values, [Source(variances, freedoms)])))
        for (first, second), value, found in zip(pairs, values, clear & (corrected < SIGNIFICANCE), strict=True):
            if found:
                better[(first, second) if value > 0 else (second, first)] = True
        above, below = better.sum(axis=0), better.sum(axis=1)
        return [(1 + int(above[arm]), count - int(below[arm])) for arm in range(count)]

    def _lent(self, arm: Arm, weights: np.ndarray) -> tuple[Source, np.ndarray] | None:
        """The pooled variance of one run over seeds, and what of it is due to seeds and documents together.

        It is that of the arms of this kind with several runs; None if there are none.
        """
        key = arm.kind, weights.tobytes()
        if key not in self._pooled:
            self._pooled[key] = self._pool(arm.kind, weights)
        return self._pooled[key]

    def _pool(self, kind: tuple[Any, ...], weights: np.ndarray) -> tuple[Source, np.ndarray] | None:
        variance, both, freedom = np.zeros(len(weights)), np.zeros(len(weights)), 0
        for other in self.arms:
            if _spread(other) == "runs" and other.kind == kind:
                measured = self.measure(other, weights)
                runs = len(measured.values)
                variance += (runs - 1) * runs * seeds_source(measured.values).variance
                if measured.influence is not None:
                    both += (runs - 1) * runs * seeds_and_documents(measured.influence)
                freedom += runs - 1
        return (Source(variance / freedom, freedom), both / freedom) if freedom else None

    def _about_seeds(self) -> Iterable[str]:
        """Lines about arms whose spread over seeds is borrowed, missing or doubtful."""
        alone: dict[str, list[str]] = {}
        for arm in self.arms:
            known = [seed for seed in arm.documents_seeds if seed is not None]
            if _spread(arm) == "unknown":
                lenders = [other.name for other in self.arms if _spread(other) == "runs" and other.kind == arm.kind]
                said = f"the pooled spread of {_some(lenders)} is taken" if lenders else "it has no rank of its own"
                alone.setdefault(said, []).append(arm.name)
            elif len(known) == len(arm.runs) > 1 and len(set(known)) < len(known):
                yield (
                    f"{arm.name}: {len(known)} runs learned from {len(set(known))} draws of training documents: what "
                    "other draws would have changed is not all in its intervals"
                )
        for said, names in alone.items():
            missing = "one run: " if "taken" in said else "one run: the spread over seeds is not in it, and "
            yield f"{_some(names)}: {missing}{said}"


def _some(names: Sequence[str], most: int = 10) -> str:
    """A list of names that does not get long."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _spread(arm: Arm) -> str:
    """What shows the spread over seeds of an arm's mean, apart from other arms."""
    if len(arm.runs) > 1:
        return "runs"
    return "unknown" if arm.is_random else "fixed"


def _rows(one: Measured, other: Measured | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Independent rows whose mean is the mean, or the difference of the means: `[rows, k]` and their influence.

    Runs of two arms are paired, those of the same training documents with each other: what these change in both
    cancels. With different numbers of runs, m of one arm and n > m of the other, the rows are those of Scheffe (1943,
    On Solutions of the Behrens-Fisher Problem Based on the t-Distribution, Annals of Mathematical Statistics 14), whose
    variance is that of the difference whatever the arms' own variances are. If an arm has a single run that does not
    stand for all, there is one row: the difference of the means.
    """
    if other is None:
        return one.values, one.influence
    first, second = (np.eye(len(part.values)) for part in (one, other))
    if not {"borrowed", "unknown"}.isdisjoint((one.spread, other.spread)):
        first, second = first.mean(axis=0, keepdims=True), second.mean(axis=0, keepdims=True)
    elif one.spread == other.spread == "runs":
        first, second = _paired(one.seeds, other.seeds)
    else:  # one that is the same for all seeds of the other
        rows = max(len(first), len(second))
        first, second = (np.ones((rows, 1)) if len(runs) == 1 else runs for runs in (first, second))
    return _minus(one, other, first, second)


def _paired(one: Sequence[int | None], other: Sequence[int | None]) -> tuple[np.ndarray, np.ndarray]:
    """How much each run of two arms counts in each row: `[rows, runs]` for both.

    Args:
        one, other: what the documents of each run's training were drawn with.
    """
    if len(one) > len(other):
        second, first = _paired(other, one)
        return first, second
    m, n = len(one), len(other)
    left, right = _matched(one, other)
    if m == n:
        return np.eye(m)[left], np.eye(n)[right]
    # Runs of the same documents must not meet in a row: it counts their covariance for more than it is.
    chosen = np.eye(n)[np.roll(right, 1)[:m]]
    return np.eye(m)[left], np.sqrt(m / n) * chosen + 1 / n - chosen.sum(axis=0) / np.sqrt(m * n)


def _minus(one: Measured, other: Measured, own: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows of differences: `own` and `theirs` say how much each run counts in each row `[rows, runs]`."""
    values = own @ one.values - theirs @ other.values
    if one.influence is None or other.influence is None:
        return values, None
    left = np.einsum("rs,skd->rkd", own.astype(np.float32), one.influence)
    return values, left - np.einsum("rs,skd->rkd", theirs.astype(np.float32), other.influence)


def _matched(first: Sequence[int | None], second: Sequence[int | None]) -> tuple[list[int], list[int]]:
    """The positions of runs in two arms, in an order in which those of the same seed stand side by side."""
    left, right = list(range(len(first))), list(range(len(second)))
    pairs = []
    for index in list(left):
        partner = next((other for other in right if first[index] is not None and second[other] == first[index]), None)
        if partner is not None:
            pairs.append((index, partner))
            left.remove(index)
            right.remove(partner)
    return [index for index, _ in pairs] + left, [other for _, other in pairs] + right
