"""Reports of a transfer analysis: for the terminal, in Markdown and LaTeX, and as data."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_spt.analysis.comparison import Row
from lm_eval_spt.analysis.statistics import Estimate
from lm_eval_spt.analysis.tables import (
    ArmScores,
    Cell,
    Column,
    Strong,
    Table,
    analysis_tables,
    arm_tables,
    language_table,
)
from lm_eval_spt.analysis.transfer import Analysis
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import write

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = (".md", ".tex", ".json", ".csv", ".parquet")

MAX_SHOWN_LANGUAGES = 60
"""A terminal shows the table of the languages if it has no more target languages than these."""

MARKUP = re.compile(r"[\\|`*]|<(?=[a-zA-Z/!?])|\](?=[(\[])")
"""What is markup in Markdown: some characters wherever they stand, others where a tag or a link's address follows."""

LATEX = {
    "\\": r"\textbackslash{}",
    "–": "--",
    "±": r"$\pm$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    '"': "''",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def transfer_table(
    scores: ArmScores,
    source: str,
    majority: float | None = None,
    means: Mapping[str, Estimate] | None = None,
    targets: Sequence[str] | None = None,
) -> str:
    """Return :func:`lm_eval_spt.analysis.tables.language_table` in Markdown."""
    return _markdown(language_table(scores, source, majority, means=means, targets=targets))


def as_markdown(analysis: Analysis, majority: float | None = None) -> str:
    """Return all tables in Markdown, with the notes and how the numbers came about."""
    parts = [f"# Transfer from {analysis.source}\n"]
    parts += [f"## {table.title}\n\n{_markdown(table)}" for table in analysis_tables(analysis, majority) if table.rows]
    parts += ["## Notes\n\n" + "".join(f"- {line}\n" for line in _closing(analysis))]
    return "\n".join(parts)


def as_latex(analysis: Analysis) -> str:
    """Return all tables but that of the languages as LaTeX tables, made smaller where they are wider than a line."""
    lines = [r"% \usepackage{booktabs,graphicx}", *(f"% {line}" for line in _closing(analysis))]
    for table in arm_tables(analysis):
        if not table.rows:
            continue
        lines += [
            "",
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{latex(table.title)}}}",
            r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"  \begin{{tabular}}{{{'l' * table.text_columns + 'r' * (len(table.columns) - table.text_columns)}}}",
            r"    \toprule",
            f"    {' & '.join(latex(column.name) for column in table.columns)} \\\\",
            r"    \midrule",
            *(f"    {' & '.join(map(latex, table.texts(row)))} \\\\" for row in table.rows),
            r"    \bottomrule",
            r"  \end{tabular}}",
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


def check_ending(place: Path) -> None:
    """Raise UserError if a report can not be saved under this name, whatever it holds."""
    if place.suffix and place.suffix not in FORMATS:
        raise UserError(f"{place}: a report ends in {', '.join(FORMATS)}, or is a folder; choose one of them")


def save(analysis: Analysis, place: Path, majority: float | None = None) -> list[Path]:
    """Write a report.

    Args:
        analysis: what is reported.
        place: a file whose ending is one of :data:`FORMATS` (of CSV and Parquet files, the table ``languages``); a
            name without an ending is a folder, for everything: each table as CSV and Parquet, and the other formats.
        majority: see :func:`lm_eval_spt.analysis.tables.language_table`.

    Returns:
        The files written.

    Raises:
        UserError: the ending is none of them, or the file can not be written.
    """
    check_ending(place)
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
        majority: see :func:`lm_eval_spt.analysis.tables.language_table`.
        every_language: show the table of the languages, however long it is; otherwise up to 60 of them.
    """
    from rich.table import Table as RichTable
    from rich.text import Text

    *tables, languages = analysis_tables(analysis, majority)
    targets = len(languages.rows) - 2  # without the source and the mean
    short = every_language or targets <= MAX_SHOWN_LANGUAGES
    for table in [*tables, languages] if short else tables:
        if not table.rows:
            continue
        shown = RichTable(title=Text(table.title), title_justify="left")
        for position, column in enumerate(table.columns):
            shown.add_column(Text(column.name), justify="left" if position < table.text_columns else "right")
        for row in table.rows:
            shown.add_row(*map(Text, table.texts(row)), style="bold" if isinstance(row[0], Strong) else None)
        console.print(shown)
        console.print()
    if not short:
        console.print(Text(f"{targets} target languages: --all-languages shows them all", style="dim"))
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


def _closing(analysis: Analysis) -> list[str]:
    return [*analysis.notes, *(f"{what}: {how}" for what, how in analysis.method.items())]


def _markdown(table: Table) -> str:
    alignments = "|---" * table.text_columns + "|---:" * (len(table.columns) - table.text_columns) + "|"
    header = [escaped(column.name) for column in table.columns]
    rows = [[_markdown_cell(*pair) for pair in zip(table.columns, row, strict=True)] for row in table.rows]
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return "\n".join([lines[0], alignments, *lines[1:]]) + "\n"


def _markdown_cell(column: Column, cell: Cell) -> str:
    if isinstance(cell, Strong):
        return f"**{escaped(cell.text)}** {escaped(cell.rest)}".rstrip()
    return escaped(column.text(cell))


def escaped(text: str) -> str:
    """Return text for Markdown, in one line, that stays text and in its cell, whatever an arm is called."""
    return " ".join(MARKUP.sub(r"\\\g<0>", text).split())


def latex(text: str) -> str:
    """Return text for LaTeX."""
    return "".join(LATEX.get(character, character) for character in text)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
