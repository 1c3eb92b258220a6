"""Reports of a transfer analysis: for the terminal, in Markdown and LaTeX, and as data."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_spt.analysis.comparison import Row
from lm_eval_spt.analysis.results import Score
from lm_eval_spt.analysis.transfer import MEAN, Analysis
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import write

if TYPE_CHECKING:
    from rich.console import Console

Arms = Mapping[str, Mapping[str, Score]]
"""What is compared: a name for each arm, and its score in every language."""

FORMATS = (".md", ".tex", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Table:
    """A table to read: cells are text; the columns after the first `text_columns` hold numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


def tables(analysis: Analysis, majority: float | None = None) -> list[Table]:
    """Return the tables to read of an analysis: of the arms as a whole, scores in percent.

    Args:
        analysis: what is shown.
        majority: the score of always giving the most frequent answer, as a share of 1, shown beside the languages.
    """
    made = [
        _scores(analysis),
        *(_groups(analysis, grouping) for grouping in ("family", "script")),
        _correlations(analysis),
        _halves(analysis),
    ]
    if len(analysis.arms) > 1:
        made.append(_differences(analysis))
    arms: Arms = {
        arm: {
            row["language"]: Score(row[analysis.metric], row[f"{analysis.metric}_stderr"])
            for row in _of_arm(analysis, "languages", arm)
            if row[analysis.metric] is not None
        }
        for arm in analysis.arms
    }
    return [*made, language_table(arms, analysis.source, majority, f"{analysis.metric} per language")]


def language_table(arms: Arms, source: str, majority: float | None = None, title: str = "") -> Table:
    """Return a row per language, the source first, a column per arm, in percent with standard errors.

    Below stands the mean over the target languages that all arms have.

    Args:
        arms: scores by arm and language.
        source: the source language's code.
        majority: the score of always answering the most frequent class, as a share of 1, shown as a column of its own.
        title: the table's.
    """
    languages = sorted({language for scores in arms.values() for language in scores} - {source})
    constant = [] if majority is None else [f"{100 * majority:.1f}"]
    rows = []
    for language in [source, *languages]:
        label = f"**{language}** (source)" if language == source else language
        rows.append([label, *constant, *(_score(scores.get(language)) for scores in arms.values())])
    shared = [language for language in languages if all(language in scores for scores in arms.values())]
    means = [_score(mean_score([scores[language] for language in shared])) for scores in arms.values()]
    rows.append([f"**mean of {len(shared)} target languages**", *constant, *means])
    names = list(arms) if majority is None else ["majority class", *arms]
    return Table(title, ["language", *names], rows)


def transfer_table(arms: Arms, source: str, majority: float | None = None) -> str:
    """Return :func:`language_table` in Markdown."""
    return _markdown(language_table(arms, source, majority))


def mean_score(scores: Sequence[Score]) -> Score | None:
    """Return the mean of scores in several languages, None without any.

    It has no standard error: that does not follow from theirs, as the documents are translations of each other, so that
    the languages err together. :func:`lm_eval_spt.analysis.transfer.analyse` has an interval.
    """
    return Score(statistics.fmean(score.value for score in scores), None) if scores else None


def as_markdown(analysis: Analysis, majority: float | None = None) -> str:
    """Return all tables in Markdown, with the notes and how the numbers came about."""
    parts = [f"# Transfer from {analysis.source}\n"]
    parts += [f"## {table.title}\n\n{_markdown(table)}" for table in tables(analysis, majority) if table.rows]
    parts += ["## Notes\n\n" + "".join(f"- {line}\n" for line in _closing(analysis))]
    return "\n".join(parts)


def as_latex(analysis: Analysis) -> str:
    """Return all tables but that of the languages as LaTeX tables, for the package booktabs."""
    lines = [f"% {line}" for line in _closing(analysis)]
    for table in tables(analysis)[:-1]:
        if not table.rows:
            continue
        lines += [
            "",
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_latex(table.title)}}}",
            rf"  \begin{{tabular}}{{{'l' * table.text_columns + 'r' * (len(table.columns) - table.text_columns)}}}",
            r"    \toprule",
            f"    {' & '.join(map(_latex, table.columns))} \\\\",
            r"    \midrule",
            *(f"    {' & '.join(map(_latex, row))} \\\\" for row in table.rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    return "\n".join(lines) + "\n"


def as_json(analysis: Analysis) -> str:
    """Return all data as one JSON object: what was analysed and how, and ``tables`` of rows. NaN becomes null."""
    content = {
        "source": analysis.source,
        "metric": analysis.metric,
        "target_languages": list(analysis.targets),
        "arms": list(analysis.arms),
        "reference": analysis.reference,
        "method": dict(analysis.method),
        "notes": list(analysis.notes),
        "tables": {
            name: [{key: None if _is_nan(value) else value for key, value in row.items()} for row in rows]
            for name, rows in analysis.tables.items()
        },
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV; what is missing is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if _is_nan(value) else value for key, value in row.items()} for row in rows)
    return text.getvalue()


def as_parquet(analysis: Analysis, name: str) -> bytes:
    """Return a table as Parquet; the method and the notes are in its metadata, under ``lm_eval_spt``."""
    import pyarrow as pa
    from pyarrow import parquet

    facts = {key: getattr(analysis, key) for key in ("source", "metric", "reference", "method", "notes")}
    table = pa.Table.from_pylist(list(analysis.tables[name]))
    table = table.replace_schema_metadata({"lm_eval_spt": json.dumps(facts | {"method": dict(analysis.method)})})
    target = io.BytesIO()
    parquet.write_table(table, target)
    return target.getvalue()


def save(analysis: Analysis, place: Path, majority: float | None = None) -> list[Path]:
    """Write a report.

    Args:
        analysis: what is reported.
        place: a file whose ending is one of :data:`FORMATS` (of CSV and Parquet files, the table ``languages``); a
            name without an ending is a folder, for everything: each table as CSV and Parquet, and the other formats.
        majority: see :func:`tables`.

    Returns:
        The files written.

    Raises:
        UserError: the ending is none of them, or the file can not be written.
    """
    if place.suffix and place.suffix not in FORMATS:
        raise UserError(f"{place}: a report ends in {', '.join(FORMATS)}, or is a folder; choose one of them")
    if place.suffix:
        files = {place: "languages"}
    else:
        files = {place / f"transfer{ending}": "" for ending in (".md", ".tex", ".json")}
        files |= {place / f"{name}{ending}": name for name in analysis.tables for ending in (".csv", ".parquet")}
    for path, name in files.items():
        write(path, _encoded(analysis, path.suffix, name, majority))
    return list(files)


def show(analysis: Analysis, console: Console, majority: float | None = None, every_language: bool = False) -> None:
    """Print the tables in a terminal.

    Args:
        analysis: what is shown.
        console: rich's.
        majority: see :func:`tables`.
        every_language: show the table of the languages, however long it is; otherwise up to 60 of them.
    """
    from rich.table import Table as RichTable
    from rich.text import Text

    for table in tables(analysis, majority):
        if not table.rows:
            continue
        if len(table.rows) > 62 and not every_language:
            console.print(Text(f"{len(table.rows) - 2} target languages: --languages shows them all", style="dim"))
            continue
        shown = RichTable(title=Text(table.title), title_justify="left")
        for position, column in enumerate(table.columns):
            shown.add_column(Text(column), justify="left" if position < table.text_columns else "right")
        for row in table.rows:
            bold = row[0].startswith("**")
            shown.add_row(*(Text(cell.replace("**", "")) for cell in row), style="bold" if bold else None)
        console.print(shown)
        console.print()
    for line in _closing(analysis):
        console.print(Text(line, style="dim"))


def _encoded(analysis: Analysis, ending: str, table: str, majority: float | None) -> bytes:
    if ending == ".parquet":
        return as_parquet(analysis, table)
    texts = {
        ".md": lambda: as_markdown(analysis, majority),
        ".tex": lambda: as_latex(analysis),
        ".json": lambda: as_json(analysis),
        ".csv": lambda: as_csv(analysis.tables[table]),
    }
    return texts[ending]().encode()


def _scores(analysis: Analysis) -> Table:
    """A row per arm: source, mean of the targets, gap, seen and unseen; each metric below the other."""
    number = len(analysis.targets)
    columns = ["arm", "runs", "metric", analysis.source, f"mean of {number} targets", "over runs", "transfer gap"]
    rows = []
    for row in analysis.tables["scores"]:
        if row["run"] != MEAN:
            continue
        seen = {
            of["group"]: of["mean"]
            for of in _of_arm(analysis, "groups", row["arm"])
            if of["grouping"] == "seen" and of["metric"] == row["metric"]
        }
        spread = row["spread_over_runs"]
        rows.append(
            [
                row["arm"],
                str(row["runs"]),
                row["metric"],
                _score(None if row["source"] is None else Score(row["source"], row["source_stderr"])),
                _interval(row, "targets", 100, 1),
                "–" if spread is None else f"± {100 * spread:.1f}",
                _percent(row["transfer_gap"]),
                _percent(seen.get("seen")),
                _percent(seen.get("unseen")),
            ]
        )
    columns += ["seen", "unseen"]
    told = [column for column in range(len(columns)) if any(row[column] != "–" for row in rows)]
    return Table("Scores in percent", [columns[c] for c in told], [[row[c] for c in told] for row in rows])


def _groups(analysis: Analysis, grouping: str) -> Table:
    """A row per group, a column per arm."""
    means: dict[tuple[str, int], dict[str, float]] = {}
    for row in analysis.tables["groups"]:
        if (row["run"], row["metric"], row["grouping"]) == (MEAN, analysis.metric, grouping):
            means.setdefault((row["group"], row["languages"]), {})[row["arm"]] = row["mean"]
    rows = [
        [group, str(languages), *(_percent(of_arms.get(arm)) for arm in analysis.arms)]
        for (group, languages), of_arms in means.items()
    ]
    return Table(f"{analysis.metric} per {grouping}", [grouping, "languages", *analysis.arms], rows)


def _correlations(analysis: Analysis) -> Table:
    rows = [
        [
            row["arm"],
            row["distance"],
            str(row["languages"]),
            _interval(row, "pearson", 1, 2),
            _p(row["pearson_p_holm"]),
            _interval(row, "spearman", 1, 2),
            _p(row["spearman_p_holm"]),
        ]
        for row in analysis.tables["correlations"]
        if row["run"] == MEAN
    ]
    columns = ["arm", "distance", "languages", "Pearson r", "p (Holm)", "Spearman rho", "p (Holm)"]
    return Table(f"Correlation of {analysis.metric} with distance from {analysis.source}", columns, rows, 2)


def _halves(analysis: Analysis) -> Table:
    rows = [
        [
            row["arm"],
            row["distance"],
            f"{_percent(row['close'])} ({row['close_languages']})",
            f"{_percent(row['distant'])} ({row['distant_languages']})",
            _interval(row, "gap", 100, 1),
        ]
        for arm in analysis.arms
        for row in _of_arm(analysis, "halves", arm)
    ]
    columns = ["arm", "distance", "close (languages)", "distant (languages)", "gap"]
    return Table(f"{analysis.metric} in close and distant languages", columns, rows, 2)


def _differences(analysis: Analysis) -> Table:
    """Each arm minus the reference; the halves by the difference of their differences alone."""
    rows = []
    for arm in analysis.arms:
        for row in analysis.tables["differences"]:
            if row["arm"] == arm and not row["scope"].endswith((": close", ": distant")):
                bounds = {"difference_low": row["low"], "difference_high": row["high"]}
                shown = _interval(row | bounds, "difference", 100, 1)
                rows.append([arm, row["scope"], str(row["languages"]), shown, _p(row["p"])])
        single = [row for row in analysis.tables["language_differences"] if row["arm"] == arm]
        if single and single[0]["p_holm"] is not None:
            better, worse = (
                sum(row["p_holm"] < 0.05 and row["difference"] * sign > 0 for row in single) for sign in (1, -1)
            )
            rows.append([arm, "single languages", str(len(single)), f"{better} better, {worse} worse", "Holm < 0.05"])
    columns = ["arm", "over", "languages", "difference", "p"]
    return Table(f"{analysis.metric}: difference from {analysis.reference!r} in points", columns, rows, 2)


def _of_arm(analysis: Analysis, table: str, arm: str) -> Iterable[Row]:
    """The rows of an arm as a whole."""
    return (row for row in analysis.tables[table] if row["arm"] == arm and row["run"] == MEAN)


def _closing(analysis: Analysis) -> list[str]:
    return [*analysis.notes, *(f"{what}: {how}" for what, how in analysis.method.items())]


def _markdown(table: Table) -> str:
    alignments = "|---" * table.text_columns + "|---:" * (len(table.columns) - table.text_columns) + "|"
    rows = (f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in (table.columns, *table.rows))
    header, *body = rows
    return "\n".join([header, alignments, *body]) + "\n"


def _escaped(cell: str) -> str:
    """A cell in one piece, whatever an arm is called."""
    return " ".join(cell.replace("\\", "\\\\").replace("|", "\\|").split())


LATEX = {
    "\\": r"\textbackslash{}",
    "–": "--",
    "±": r"$\pm$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def _latex(cell: str) -> str:
    return "".join(LATEX.get(character, character) for character in cell)


def _score(score: Score | None) -> str:
    if score is None:
        return "–"
    return _percent(score.value) + ("" if score.stderr is None else f" ± {100 * score.stderr:.1f}")


def _percent(share: float | None) -> str:
    return "–" if share is None else _number(100 * share, 1)


def _number(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # adding 0 makes -0.0 plain


def _interval(row: Mapping[str, Any], name: str, factor: float, digits: int) -> str:
    """A value with its interval, such as ``-0.31 [-0.44, -0.17]``."""
    value, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    if _is_nan(value):
        return "–"
    shown = _number(factor * value, digits)
    if low is None or _is_nan(low):
        return shown
    return f"{shown} [{_number(factor * low, digits)}, {_number(factor * high, digits)}]"


def _p(p: float | None) -> str:
    if p is None or _is_nan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
