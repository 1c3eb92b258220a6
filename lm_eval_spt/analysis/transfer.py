"""A transfer analysis: its numbers, as lists of rows for reports, figures and other tools.

Scores are shares of 1. The transfer gap is the score in the source language minus the mean over the target languages.
"""

from __future__ import annotations

import statistics as basic
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lm_eval_spt.analysis.arms import Arm, check_metric, learned_what_is_scored, partial_data, target_languages
from lm_eval_spt.analysis.comparison import Row, compare, group_of, groups_of, halves_of, known, mean_over
from lm_eval_spt.analysis.distances import KINDS, Distances
from lm_eval_spt.analysis.languages import language as facts_of
from lm_eval_spt.analysis.languages import seen_by
from lm_eval_spt.analysis.noise import Estimates, Measured, Noise
from lm_eval_spt.analysis.results import EvaluationRun, Score, mean_over_runs
from lm_eval_spt.analysis.statistics import (
    LEVEL,
    Estimate,
    Source,
    correlation_estimate,
    holm,
    pearson,
    spearman,
)
from lm_eval_spt.common.errors import UserError

MEAN = "mean"
"""The value of ``run`` in the rows of an arm as a whole; in the rows of a single run it is the results file."""

METRICS = ("acc", "macro_f1")
"""Metrics that are shown in any case, if all arms have them."""


@dataclass(frozen=True)
class Analysis:
    """A transfer analysis.

    Attributes:
        source: the source language's code.
        metric: the metric of the correlations, halves and differences.
        targets: the languages that all arms have, without the source and others that an arm learned from; means are
            over these.
        arms: the arms' names, in order.
        reference: the name of the arm that the others are compared with.
        tables: name to rows; the names are ``languages``, ``scores``, ``groups``, ``correlations``, ``halves``,
            ``differences`` and ``language_differences``. All rows of a table have the same keys.
        method: how the numbers were computed, one sentence for each kind.
        notes: lines that say what was left out, partial or missing.
    """

    source: str
    metric: str
    targets: Sequence[str]
    arms: Sequence[str]
    reference: str
    tables: Mapping[str, Sequence[Row]]
    method: Mapping[str, str]
    notes: Sequence[str]

    def rows(self, table: str, **values: object) -> list[Row]:
        """Return the rows of a table that have these values under these keys."""
        return [row for row in self.tables[table] if all(row[key] == value for key, value in values.items())]


@dataclass(frozen=True)
class _Series:
    """An arm as a whole, or one of its runs as it is: rows are made for each.

    Attributes:
        arm: the arm.
        run: :data:`MEAN`, or the results file of the run.
        runs: the runs, or this one.
        scores: metric to language to score.
        noises: metric to the noise of the source language and the targets.
    """

    arm: Arm
    run: str
    runs: Sequence[EvaluationRun]
    scores: Mapping[str, Mapping[str, Score]]
    noises: Mapping[str, Noise]

    @property
    def label(self) -> Row:
        return {"arm": self.arm.name, "run": self.run}

    def values(self, metric: str, languages: Sequence[str]) -> np.ndarray:
        return np.array([self.scores[metric][language].value for language in languages])

    def measure(self, metric: str, weights: np.ndarray) -> Measured:
        return self.noises[metric].measure(self.arm, weights, None if self.run == MEAN else self.runs[0])

    def estimate(self, metric: str, weights: Sequence[np.ndarray]) -> Estimates:
        return self.noises[metric].estimate(self.measure(metric, np.stack(weights)))


def analyse(
    arms: Sequence[Arm],
    distances: Distances,
    metric: str = "acc",
    reference: str | None = None,
    random_languages: bool = False,
    notes: Iterable[str] = (),
) -> Analysis:
    """Analyse how the scores of arms carry over from the source language to others.

    Args:
        arms: from :func:`lm_eval_spt.analysis.arms.read_arms`.
        distances: the distances from the source language to all others.
        metric: the metric of correlations, halves and differences; any that all runs have.
        reference: the name of the arm that the others are compared with; default: the first.
        random_languages: whether intervals also say how the numbers carry over to other languages like these.
        notes: lines to begin the notes with.

    Raises:
        UserError: an arm lacks the metric or the source language, there is no target language, or no arm called
            `reference`.
    """
    source = distances.source
    check_metric(arms, metric)
    for arm in arms:
        if source not in arm.scores(metric):
            raise UserError(f"{arm.name!r} has no score in the source language {source}: score it, or give --source")
    by_name = {arm.name: arm for arm in arms}
    reference = arms[0].name if reference is None else reference
    if reference not in by_name:
        raise UserError(f"there is no arm {reference!r} to compare with: the arms are {', '.join(map(repr, by_name))}")
    others = [other for other in METRICS if other != metric and all(source in arm.scores(other) for arm in arms)]
    metrics = [metric, *others]
    targets, left_out = target_languages(arms, metrics, source)
    noises = {name: Noise(arms, [source, *targets], name, random_languages, source) for name in metrics}
    single = [(arm, str(run.path), [run]) for arm in arms if len(arm.runs) > 1 for run in arm.runs]
    all_series = [
        _Series(arm, run, runs, {name: mean_over_runs(runs, name) for name in metrics}, noises)
        for arm, run, runs in [*((arm, MEAN, arm.runs) for arm in arms), *single]
    ]
    noise = noises[metric]
    differences, language_differences = compare(noise, by_name[reference], distances, targets)
    each = [(name, series) for name in metrics for series in all_series]
    tables = {
        "languages": [row for series in all_series for row in _language_rows(series, distances, targets)],
        "scores": [_score_row(series, source, targets, name) for name, series in each],
        "groups": [row for name, series in each for row in _group_rows(series, targets, name)],
        "correlations": [row for series in all_series for row in _correlation_rows(series, distances, metric, targets)],
        "halves": _halves_rows(all_series, distances, metric, targets),
        "differences": differences,
        "language_differences": language_differences,
    }
    method = {
        "scores": "means over target languages, each counting the same; of several runs, the mean of their scores",
        "intervals": noise.method,
        "differences": f"beside each is the smallest that would be found with a probability of 80% at {1 - LEVEL:.0%}",
        "correlations": "Pearson's r and Spearman's rho over the target languages, by Fisher's z; languages are always "
        "taken as drawn from others like them; two-sided p, corrected for the six distances by Holm's method",
        "halves": "target languages split at the distance that makes two halves as equal as possible, those at the "
        "same distance together",
        "distances": distances.method,
    }
    return Analysis(
        source,
        metric,
        targets,
        list(by_name),
        reference,
        tables,
        method,
        [*notes, *_caveats(arms, left_out, targets, distances), *noise.notes],
    )


def _language_rows(series: _Series, distances: Distances, targets: Sequence[str]) -> list[Row]:
    """A row for every language that the arm has. For single runs the standard errors are the harness's."""
    seen = seen_by(series.arm.base_model)
    errors: dict[str, dict[str, float | None]] = {metric: {} for metric in series.scores}
    if series.run == MEAN:
        for metric, of_metric in errors.items():
            estimates = series.estimate(metric, list(np.eye(1 + len(targets))))
            of_metric |= dict(zip([distances.source, *targets], map(known, estimates.error), strict=True))
    rows = []
    for language in sorted({language for by_language in series.scores.values() for language in by_language}):
        row = series.label | {
            "language": language,
            "name": facts_of(language).name,
            "family": group_of(language, "family"),
            "branch": group_of(language, "branch"),
            "script": group_of(language, "script"),
            "macro_area": group_of(language, "macro_area"),
            "seen": None if seen is None else language in seen,
        }
        for metric, by_language in series.scores.items():
            score, at_source = by_language.get(language), by_language.get(distances.source)
            row |= {
                metric: score.value if score else None,
                f"{metric}_stderr": errors[metric].get(language, score.stderr) if score else None,
                f"{metric}_gap": at_source.value - score.value if score and at_source else None,
            }
        row |= {f"{kind}_distance": distances.values[kind].get(language) for kind in KINDS}
        rows.append(row | {"distance_method": distances.method})
    return rows


def _score_row(series: _Series, source: str, targets: Sequence[str], metric: str) -> Row:
    at_source, mean = np.eye(1, 1 + len(targets))[0], mean_over([True] * len(targets))
    estimates = series.estimate(metric, [at_source, mean, at_source - mean])
    return (
        series.label
        | {"runs": len(series.runs), "metric": metric, "target_languages": len(targets)}
        | _with_ends("source", estimates[0])
        | _with_ends("targets", estimates[1])
        | _with_ends("transfer_gap", estimates[2])
        | {"spread_over_runs": _spread([run.scores[metric] for run in series.runs], targets)}
    )


def _with_ends(name: str, estimate: Estimate) -> Row:
    """An estimate as entries of a row: the value under `name`, the ends of its interval beside it."""
    return {name: known(estimate.value), f"{name}_low": known(estimate.low), f"{name}_high": known(estimate.high)}


def _spread(run_scores: Sequence[Mapping[str, Score]], targets: Sequence[str]) -> float | None:
    """The standard deviation over runs of the mean over the target languages; None for a single run."""
    means = [basic.fmean(scores[language].value for language in targets) for scores in run_scores]
    return basic.stdev(means) if len(means) > 1 else None


def _group_rows(series: _Series, targets: Sequence[str], metric: str) -> Iterable[Row]:
    """Means per family, script and area, and of the languages that the base model saw and did not see."""
    groups = groups_of(series.arm, targets)
    source = np.eye(1, 1 + len(targets))[0]
    estimates = series.estimate(metric, [*groups.values(), *(source - weights for weights in groups.values())])
    for index, ((grouping, name), weights) in enumerate(groups.items()):
        yield (
            series.label
            | {"metric": metric, "grouping": grouping, "group": name, "languages": int(np.count_nonzero(weights))}
            | _with_ends("mean", estimates[index])
            | _with_ends("transfer_gap", estimates[len(groups) + index])
        )


def _correlation_rows(series: _Series, distances: Distances, metric: str, targets: Sequence[str]) -> list[Row]:
    """A row for each distance."""
    scores = series.values(metric, targets)
    vectors = {kind: distances.vector(kind, targets) for kind in KINDS}
    found = {
        (kind, name): correlate(scores[~np.isnan(vector)], vector[~np.isnan(vector)])
        for kind, vector in vectors.items()
        for name, correlate in (("pearson", pearson), ("spearman", spearman))
    }
    gradients = np.zeros((len(found), 1 + len(targets)))
    for index, (kind, name) in enumerate(found):
        gradients[index, 1:][~np.isnan(vectors[kind])] = np.nan_to_num(found[kind, name][1])
    noise = series.noises[metric]
    sources = noise.fixed_sources(series.measure(metric, gradients))
    estimates: dict[tuple[str, str], tuple[Estimate, float]] = {}
    for index, (kind, name) in enumerate(found):
        own = [Source(source.variance[[index]], source.freedom) for source in sources]
        count = int((~np.isnan(vectors[kind])).sum())
        estimates[kind, name] = correlation_estimate(found[kind, name][0], count, own, by_ranks=name == "spearman")
    corrected = {
        name: dict(zip(KINDS, holm([estimates[kind, name][1] for kind in KINDS]), strict=True))
        for name in ("pearson", "spearman")
    }
    rows = []
    for kind, vector in vectors.items():
        missing = int(np.isnan(vector).sum())
        row = series.label | {
            "metric": metric,
            "distance": kind,
            "languages": len(targets) - missing,
            "languages_without_distance": missing,
        }
        for name in ("pearson", "spearman"):
            estimate, p = estimates[kind, name]
            row |= _with_ends(name, estimate)
            row |= {f"{name}_p": known(p), f"{name}_p_holm": known(corrected[name][kind])}
        rows.append(row | {"distance_method": distances.method})
    return rows


def _halves_rows(all_series: Sequence[_Series], distances: Distances, metric: str, targets: Sequence[str]) -> list[Row]:
    """A row for each distance and series; none for a distance at which all targets are the same."""
    halves = halves_of(distances, targets)
    if not halves:
        return []
    weights = [part for _, close, distant in halves.values() for part in (close, distant, close - distant)]
    estimates = [series.estimate(metric, weights) for series in all_series]
    rows = []
    for index, (kind, (threshold, close, distant)) in enumerate(halves.items()):
        for series, of_series in zip(all_series, estimates, strict=True):
            rows.append(
                series.label
                | {
                    "metric": metric,
                    "distance": kind,
                    "threshold": threshold,
                    "close_languages": int(np.count_nonzero(close)),
                    "distant_languages": int(np.count_nonzero(distant)),
                }
                | _with_ends("close", of_series[3 * index])
                | _with_ends("distant", of_series[3 * index + 1])
                | _with_ends("gap", of_series[3 * index + 2])
                | {"distance_method": distances.method}
            )
    return rows


def _caveats(
    arms: Sequence[Arm], left_out: Iterable[str], targets: Sequence[str], distances: Distances
) -> Iterable[str]:
    """Lines about what is partial, left out or missing."""
    yield from learned_what_is_scored(arms)
    yield from (f"PARTIAL DATA: {line}" for line in partial_data(arms))
    yield from left_out
    for kind in KINDS:
        missing = [language for language in targets if language not in distances.values[kind]]
        if missing:
            named = ", ".join(missing[:8]) + (" ..." if len(missing) > 8 else "")
            yield f"no {kind} distance for {len(missing)} target languages ({named}): they are not in its correlation"
    used = sorted({distances.source, *targets} & distances.stand_ins.keys())
    if used:
        pairs = ", ".join(f"{language} {distances.stand_ins[language]}" for language in used)
        yield f"URIEL has no features of its own for some languages; those of another code stand in: {pairs}"
    unknown = sorted({str(arm.base_model) for arm in arms if seen_by(arm.base_model) is None})
    if unknown:
        yield f"which languages these base models saw is not known: {', '.join(unknown)}"
