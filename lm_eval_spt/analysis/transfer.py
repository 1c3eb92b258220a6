"""A transfer analysis: its numbers, as lists of rows for reports, figures and other tools.

Scores are shares of 1. The transfer gap is the score in the source language minus the mean over the target languages.
"""

from __future__ import annotations

import statistics as basic
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lm_eval_spt.analysis.arms import Arm, learned_what_is_scored, left_out_languages, partial_data
from lm_eval_spt.analysis.comparison import Comparison, Row, compare
from lm_eval_spt.analysis.distances import KINDS, Distances
from lm_eval_spt.analysis.languages import language as facts_of
from lm_eval_spt.analysis.languages import seen_by
from lm_eval_spt.analysis.results import EvaluationRun, Score, mean_over_runs
from lm_eval_spt.analysis.statistics import METHODS, correlate, halves, holm
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
        targets: the target languages that all arms have; means are over these.
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
    """An arm as a whole, or one of its runs, with its scores by metric and language: rows are made for each."""

    arm: Arm
    run: str
    runs: Sequence[EvaluationRun]
    scores: Mapping[str, Mapping[str, Score]]

    @property
    def label(self) -> Row:
        return {"arm": self.arm.name, "run": self.run}

    def values(self, metric: str, languages: Sequence[str]) -> np.ndarray:
        return np.array([self.scores[metric][language].value for language in languages])


def analyse(
    arms: Sequence[Arm],
    distances: Distances,
    metric: str = "acc",
    reference: str | None = None,
    over_documents: bool = True,
    notes: Iterable[str] = (),
) -> Analysis:
    """Analyse how the scores of arms carry over from the source language to others.

    Args:
        arms: from :func:`lm_eval_spt.analysis.arms.read_arms`.
        distances: the distances from the source language to all others.
        metric: the metric of correlations, halves and differences; any that all runs have.
        reference: the name of the arm that the others are compared with; default: the first.
        over_documents: for the differences resample documents, if the harness logged its samples; otherwise languages.
        notes: lines to begin the notes with.

    Raises:
        UserError: an arm lacks the metric or the source language, the arms have no target language in common, or there
            is no arm called `reference`.
    """
    source = distances.source
    for arm in arms:
        if not arm.scores(metric):
            raise UserError(f"{arm.name!r} has no {metric!r} in all its runs: its metrics are {_metrics_of(arm)}")
        if source not in arm.scores(metric):
            raise UserError(f"{arm.name!r} has no score in the source language {source}: score it, or give --source")
    by_name = {arm.name: arm for arm in arms}
    reference = arms[0].name if reference is None else reference
    if reference not in by_name:
        raise UserError(f"there is no arm {reference!r} to compare with: the arms are {', '.join(map(repr, by_name))}")
    metrics = [metric, *(other for other in METRICS if other != metric and all(arm.scores(other) for arm in arms))]
    languages = [{language for name in metrics for language in arm.scores(name)} - {source} for arm in arms]
    targets = sorted(set.intersection(*(set(arm.scores(name)) for arm in arms for name in metrics)) - {source})
    if not targets:
        raise UserError(f"the arms have no target language in common (source: {source}): score them in the same ones")

    single = [(arm, str(run.path), [run]) for arm in arms if len(arm.runs) > 1 for run in arm.runs]
    all_series = [
        _Series(arm, run, runs, {name: mean_over_runs(runs, name) for name in metrics})
        for arm, run, runs in [*((arm, MEAN, arm.runs) for arm in arms), *single]
    ]
    differences = compare(arms, by_name[reference], distances, metric, targets, over_documents)
    tables = {
        "languages": [row for series in all_series for row in _language_rows(series, distances)],
        "scores": [
            _score_row(series, source, targets, name, differences if name == metric and series.run == MEAN else None)
            for name in metrics
            for series in all_series
        ],
        "groups": [
            row for name in metrics for series in all_series for row in _group_rows(series, source, targets, name)
        ],
        "correlations": _correlation_rows(all_series, distances, metric, targets),
        "halves": _halves_rows(all_series, distances, metric, targets),
        "differences": differences.means,
        "language_differences": differences.per_language,
    }
    method = {
        "scores": "means over target languages, each counting the same; of several runs, the mean of their scores; "
        "standard errors are the harness's",
        "distances": distances.method,
        "correlations": METHODS["correlation"],
        "halves": METHODS["halves"],
        "means and differences": METHODS[differences.resampled],
    }
    return Analysis(
        source,
        metric,
        targets,
        list(by_name),
        reference,
        tables,
        method,
        [*notes, *_caveats(arms, languages, targets, distances), *differences.notes],
    )


def group_of(language: str, grouping: str) -> str | None:
    """Return the ``family``, ``branch``, ``script`` or ``macro_area`` of a language's code; None if it is unknown."""
    known = facts_of(language)
    return (known.script_name if grouping == "script" else getattr(known, grouping)) or None


def _language_rows(series: _Series, distances: Distances) -> list[Row]:
    """A row for every language that the arm has."""
    seen = seen_by(series.arm.base_model)
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
                f"{metric}_stderr": score.stderr if score else None,
                f"{metric}_gap": at_source.value - score.value if score and at_source else None,
            }
        row |= {f"{kind}_distance": distances.values[kind].get(language) for kind in KINDS}
        rows.append(row | {"distance_method": distances.method})
    return rows


def _score_row(series: _Series, source: str, targets: Sequence[str], metric: str, intervals: Comparison | None) -> Row:
    scores = series.scores[metric]
    mean = float(series.values(metric, targets).mean())
    at_source = scores.get(source)
    return series.label | {
        "runs": len(series.runs),
        "metric": metric,
        "source": at_source.value if at_source else None,
        "source_stderr": at_source.stderr if at_source else None,
        "targets": mean,
        "targets_low": intervals.target_means[series.arm.name].low if intervals else None,
        "targets_high": intervals.target_means[series.arm.name].high if intervals else None,
        "target_languages": len(targets),
        "spread_over_runs": _spread([run.scores[metric] for run in series.runs], targets),
        "transfer_gap": at_source.value - mean if at_source else None,
    }


def _spread(run_scores: Sequence[Mapping[str, Score]], targets: Sequence[str]) -> float | None:
    """The standard deviation over runs of the mean over the target languages; None for a single run."""
    means = [basic.fmean(scores[language].value for language in targets) for scores in run_scores]
    return basic.stdev(means) if len(means) > 1 else None


def _group_rows(series: _Series, source: str, targets: Sequence[str], metric: str) -> Iterable[Row]:
    """Means per family, script and area, and of the languages that the base model saw and did not see."""
    scores = series.scores[metric]
    seen = seen_by(series.arm.base_model)
    for grouping in ("family", "script", "macro_area", "seen"):
        groups: dict[str, list[str]] = {}
        for language in targets:
            if grouping != "seen":
                group = group_of(language, grouping)
            else:
                group = None if seen is None else "seen" if language in seen else "unseen"
            groups.setdefault(group or "unknown", []).append(language)
        for name, members in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
            mean = basic.fmean(scores[language].value for language in members)
            yield series.label | {
                "metric": metric,
                "grouping": grouping,
                "group": name,
                "languages": len(members),
                "mean": mean,
                "transfer_gap": scores[source].value - mean if source in scores else None,
            }


def _correlation_rows(
    all_series: Sequence[_Series], distances: Distances, metric: str, targets: Sequence[str]
) -> list[Row]:
    """A row for each series and distance."""
    values = np.array([series.values(metric, targets) for series in all_series])
    table = correlate(values, np.array([distances.vector(kind, targets) for kind in KINDS]))
    rows = []
    for series, correlations in zip(all_series, table, strict=True):
        pearson_corrected = holm([correlation.pearson_p for correlation in correlations])
        spearman_corrected = holm([correlation.spearman_p for correlation in correlations])
        for position, (kind, correlation) in enumerate(zip(KINDS, correlations, strict=True)):
            rows.append(
                series.label
                | {
                    "metric": metric,
                    "distance": kind,
                    "languages": correlation.languages,
                    "languages_without_distance": len(targets) - correlation.languages,
                    "pearson": correlation.pearson.value,
                    "pearson_low": correlation.pearson.low,
                    "pearson_high": correlation.pearson.high,
                    "pearson_p": correlation.pearson_p,
                    "pearson_p_holm": pearson_corrected[position],
                    "spearman": correlation.spearman.value,
                    "spearman_low": correlation.spearman.low,
                    "spearman_high": correlation.spearman.high,
                    "spearman_p": correlation.spearman_p,
                    "spearman_p_holm": spearman_corrected[position],
                    "distance_method": distances.method,
                }
            )
    return rows


def _halves_rows(all_series: Sequence[_Series], distances: Distances, metric: str, targets: Sequence[str]) -> list[Row]:
    """A row for each distance and series; none for a distance at which all targets are the same."""
    values = np.array([series.values(metric, targets) for series in all_series])
    rows = []
    for kind in KINDS:
        for series, split in zip(all_series, halves(values, distances.vector(kind, targets)), strict=False):
            rows.append(
                series.label
                | {
                    "metric": metric,
                    "distance": kind,
                    "threshold": split.threshold,
                    "close_languages": split.close_languages,
                    "distant_languages": split.distant_languages,
                    "close": split.close,
                    "distant": split.distant,
                    "gap": split.gap.value,
                    "gap_low": split.gap.low,
                    "gap_high": split.gap.high,
                    "distance_method": distances.method,
                }
            )
    return rows


def _metrics_of(arm: Arm) -> str:
    return ", ".join(sorted(set.intersection(*(set(run.scores) for run in arm.runs)))) or "none"


def _caveats(
    arms: Sequence[Arm], languages: Sequence[set[str]], targets: Sequence[str], distances: Distances
) -> Iterable[str]:
    """Lines about what is partial, left out or missing."""
    yield from learned_what_is_scored(arms)
    yield from (f"PARTIAL DATA: {line}" for line in partial_data(arms))
    if left_out := left_out_languages(arms, languages, targets):
        yield f"means are over {left_out}"
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
