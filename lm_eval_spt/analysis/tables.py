"""Tables to read, made from an analysis: cells hold numbers, and each column knows how they are shown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_spt.analysis.comparison import Row
from lm_eval_spt.analysis.noise import SIGNIFICANCE
from lm_eval_spt.analysis.results import Score
from lm_eval_spt.analysis.statistics import Estimate
from lm_eval_spt.analysis.transfer import MEAN, Analysis

MISSING = "–"
"""What is shown where there is no number."""

ArmScores = Mapping[str, Mapping[str, Score]]
"""The scores of arms: arm's name to language to score."""


@dataclass(frozen=True)
class Strong:
    """Text that stands out, and plain text after it."""

    text: str
    rest: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.rest}".rstrip()


@dataclass(frozen=True)
class GroupMean:
    """A mean score, and over how many languages it is."""

    value: float
    languages: int


Cell = str | Strong | int | float | Score | Estimate | GroupMean | None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: the heading.
        show: turns a number of the column into text; text stands as it is.
    """

    name: str
    show: Callable[[Any], str] = str

    def text(self, cell: Cell) -> str:
        """Return a cell of this column as text."""
        if is_missing(cell):
            return MISSING
        return str(cell) if isinstance(cell, str | Strong) else self.show(cell)


@dataclass(frozen=True)
class Table:
    """A table to read.

    Attributes:
        title: what it is about.
        columns: its columns; all after the first `text_columns` are aligned to the right.
        rows: a cell for each column.
        text_columns: how many columns at the left are aligned to the left.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    text_columns: int = 1

    def texts(self, row: Sequence[Cell]) -> list[str]:
        """Return a row's cells as text."""
        return [column.text(cell) for column, cell in zip(self.columns, row, strict=True)]


def is_missing(cell: object) -> bool:
    """Tell whether a cell holds no number: None, NaN, or an estimate of NaN."""
    value = cell.value if isinstance(cell, Estimate) else cell
    return value is None or (isinstance(value, float) and math.isnan(value))


def percent(cell: float | Score | Estimate | GroupMean) -> str:
    """Return a share of 1 in percent, such as ``62.1 ± 3.4``, ``62.1 [58.0, 66.2]`` or ``62.1 (12)``."""
    if isinstance(cell, Estimate):
        return _interval(cell, 100, 1)
    shown = _number(100 * (cell.value if isinstance(cell, Score | GroupMean) else cell), 1)
    if isinstance(cell, GroupMean):
        return f"{shown} ({cell.languages})"
    return f"{shown} ± {100 * cell.stderr:.1f}" if isinstance(cell, Score) and cell.stderr is not None else shown


def correlation(cell: Estimate) -> str:
    """Return a correlation with its interval, such as ``-0.31 [-0.44, -0.17]``."""
    return _interval(cell, 1, 2)


def spread(share: float) -> str:
    """Return a standard deviation in percent, such as ``± 1.2``."""
    return f"± {100 * share:.1f}"


def p_value(p: float) -> str:
    """Return a p-value, such as ``0.012`` or ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def arm_tables(analysis: Analysis) -> list[Table]:
    """Return all tables to read but that of the languages: of the arms as a whole, scores in percent."""
    tables = [
        _scores(analysis),
        *(_groups(analysis, grouping) for grouping in ("family", "script")),
        _correlations(analysis),
        _halves(analysis),
    ]
    return [*tables, _differences(analysis)] if len(analysis.arms) > 1 else tables


def analysis_tables(analysis: Analysis, majority: float | None = None) -> list[Table]:
    """Return all tables to read; that of the languages is the last.

    Args:
        analysis: what is shown.
        majority: see :func:`language_table`.
    """
    metric = analysis.metric
    scores: ArmScores = {
        arm: {
            row["language"]: Score(row[metric], row[f"{metric}_stderr"])
            for row in analysis.rows("languages", arm=arm, run=MEAN)
            if row[metric] is not None
        }
        for arm in analysis.arms
    }
    means = {row["arm"]: _estimate(row, "targets") for row in analysis.rows("scores", run=MEAN, metric=metric)}
    title = f"{metric} per language"
    languages = language_table(scores, analysis.source, majority, title, means, analysis.targets)
    return [*arm_tables(analysis), languages]


def language_table(
    scores: ArmScores,
    source: str,
    majority: float | None = None,
    title: str = "",
    means: Mapping[str, Estimate] | None = None,
    targets: Sequence[str] | None = None,
) -> Table:
    """Return a row per language, the source first, and a column per arm.

    The last row is the mean over the target languages.

    Args:
        scores: scores by arm and language.
        source: the source language's code.
        majority: the score of always giving the most frequent answer, as a share of 1, shown as a column of its own.
        title: the table's.
        means: for arms whose interval is known, the mean over the target languages.
        targets: these; default: all but the source that all arms have.
    """
    languages = sorted({language for by_language in scores.values() for language in by_language} - {source})
    if targets is None:
        targets = [language for language in languages if all(language in of_arm for of_arm in scores.values())]
    constant: list[Cell] = [] if majority is None else [majority]

    def row(label: Cell, language: str) -> list[Cell]:
        return [label, *constant, *(by_language.get(language) for by_language in scores.values())]

    last = [
        (means or {}).get(arm) or mean_score([by_language[language] for language in targets])
        for arm, by_language in scores.items()
    ]
    rows = [
        row(Strong(source, "(source)"), source),
        *(row(language, language) for language in languages),
        [Strong(f"mean of {len(targets)} target languages"), *constant, *last],
    ]
    names = list(scores) if majority is None else ["majority class", *scores]
    return Table(title, [Column("language"), *(Column(name, percent) for name in names)], rows)


def mean_score(scores: Sequence[Score]) -> Score | None:
    """Return the mean of scores in several languages, None without any.

    The mean has no standard error: the languages' errors do not give it. The documents are translations of each other,
    so that the languages err together. :class:`lm_eval_spt.analysis.noise.Noise` has its interval.
    """
    return Score(statistics.fmean(score.value for score in scores), None) if scores else None


def _scores(analysis: Analysis) -> Table:
    """A row per arm and metric: source, mean of the targets, gap, seen and unseen. Empty columns are left out."""
    columns = [
        Column("arm"),
        Column("runs"),
        Column("metric"),
        Column(analysis.source, percent),
        Column(f"mean of {len(analysis.targets)} targets", percent),
        Column("over runs", spread),
        Column("transfer gap", percent),
        Column("seen", percent),
        Column("unseen", percent),
    ]
    rows: list[list[Cell]] = []
    for row in analysis.rows("scores", run=MEAN):
        groups = analysis.rows("groups", arm=row["arm"], run=MEAN, metric=row["metric"], grouping="seen")
        means = {group["group"]: _estimate(group, "mean") for group in groups}
        rows.append(
            [
                row["arm"],
                row["runs"],
                row["metric"],
                _estimate(row, "source"),
                _estimate(row, "targets"),
                row["spread_over_runs"],
                _estimate(row, "transfer_gap"),
                means.get("seen"),
                means.get("unseen"),
            ]
        )
    filled = [position for position in range(len(columns)) if not all(is_missing(row[position]) for row in rows)]
    return Table(
        "Scores in percent",
        [columns[position] for position in filled],
        [[row[position] for position in filled] for row in rows],
    )


def _groups(analysis: Analysis, grouping: str) -> Table:
    """A row per group, a column per arm."""
    means: dict[tuple[str, int], dict[str, Estimate]] = {}
    for row in analysis.rows("groups", run=MEAN, metric=analysis.metric, grouping=grouping):
        means.setdefault((row["group"], row["languages"]), {})[row["arm"]] = _estimate(row, "mean")
    columns = [Column(grouping), Column("languages"), *(Column(arm, percent) for arm in analysis.arms)]
    rows = [
        [group, languages, *(by_arm.get(arm) for arm in analysis.arms)] for (group, languages), by_arm in means.items()
    ]
    return Table(f"{analysis.metric} per {grouping}", columns, rows)


def _correlations(analysis: Analysis) -> Table:
    """A row per arm and distance."""
    columns = [
        Column("arm"),
        Column("distance"),
        Column("languages"),
        Column("Pearson r", correlation),
        Column("p (Holm)", p_value),
        Column("Spearman rho", correlation),
        Column("p (Holm)", p_value),
    ]
    rows = [
        [
            row["arm"],
            row["distance"],
            row["languages"],
            _estimate(row, "pearson"),
            row["pearson_p_holm"],
            _estimate(row, "spearman"),
            row["spearman_p_holm"],
        ]
        for row in analysis.rows("correlations", run=MEAN)
    ]
    return Table(f"Correlation of {analysis.metric} with distance from {analysis.source}", columns, rows, 2)


def _halves(analysis: Analysis) -> Table:
    """A row per arm and distance."""
    columns = [
        Column("arm"),
        Column("distance"),
        Column("close (languages)", percent),
        Column("distant (languages)", percent),
        Column("gap", percent),
    ]
    rows = [
        [
            arm,
            row["distance"],
            GroupMean(row["close"], row["close_languages"]),
            GroupMean(row["distant"], row["distant_languages"]),
            _estimate(row, "gap"),
        ]
        for arm in analysis.arms
        for row in analysis.rows("halves", arm=arm, run=MEAN)
    ]
    return Table(f"{analysis.metric} in close and distant languages", columns, rows, 2)


def _differences(analysis: Analysis) -> Table:
    """Each arm minus the reference; of the halves only how their differences differ."""
    columns = [
        Column("arm"),
        Column("over"),
        Column("languages"),
        Column("difference", percent),
        Column("p", p_value),
        Column("80% power at", percent),
    ]
    rows: list[list[Cell]] = []
    for arm in analysis.arms:
        for row in analysis.rows("differences", arm=arm):
            if not row["scope"].endswith((": close", ": distant")) and not row["scope"].startswith("family: "):
                difference = _estimate(row, "difference", "low", "high")
                rows.append([arm, row["scope"], row["languages"], difference, row["p"], row["detectable"]])
        languages = analysis.rows("language_differences", arm=arm)
        if languages and languages[0]["p_holm"] is not None:
            changed = [row["difference"] for row in languages if row["p_holm"] < SIGNIFICANCE]
            better, worse = sum(change > 0 for change in changed), sum(change < 0 for change in changed)
            counts = f"{better} better, {worse} worse"
            smallest = statistics.median(row["detectable"] for row in languages)
            rows.append([arm, "single languages", len(languages), counts, f"Holm < {SIGNIFICANCE}", smallest])
    return Table(f"{analysis.metric}: difference from {analysis.reference!r} in points", columns, rows, 2)


def _estimate(row: Row, value: str, low: str = "", high: str = "") -> Estimate:
    """The estimate in a row under these keys; by default its ends are under ``<value>_low`` and ``<value>_high``."""
    ends = (row[low or f"{value}_low"], row[high or f"{value}_high"])
    return Estimate(row[value], *(math.nan if end is None else end for end in ends))


def _interval(estimate: Estimate, factor: float, digits: int) -> str:
    """An estimate with its interval, where it has one."""
    shown = _number(factor * estimate.value, digits)
    if math.isnan(estimate.low):
        return shown
    return f"{shown} [{_number(factor * estimate.low, digits)}, {_number(factor * estimate.high, digits)}]"


def _number(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # adding 0 makes -0.0 plain
