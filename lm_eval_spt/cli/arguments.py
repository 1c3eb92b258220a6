"""What the arguments of several commands have in common: types, and results under a name."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm_eval_spt.analysis.arms import Arm

RESULTS = "results_*.json of the harness, or folders that hold some: of this prompt, and of what to compare it with"


def finite(text: str) -> float:
    """Return a number."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} given, expected a number")
    return number


def share(text: str) -> float:
    """Return a number from 0 to 1."""
    if not 0 <= (number := finite(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} given, expected a share from 0 to 1, such as 0.25")
    return number


def positive(text: str) -> int:
    """Return a whole number from 1 on."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} given, expected a whole number from 1 on")
    return number


def named_places(given: Iterable[str]) -> list[tuple[str | None, Path]]:
    """Return `[NAME=]PATH` arguments as name, None without one, and path."""
    places = []
    for text in given:
        parts = text.split("=")
        cuts = [number for number in range(len(parts)) if Path("=".join(parts[number:])).exists()]
        cut = cuts[0] if cuts else len(parts) - 1
        places.append(("=".join(parts[:cut]) or None, Path("=".join(parts[cut:]))))
    return places


def add_source_and_metric(parser: argparse.ArgumentParser) -> None:
    """Add the flags of what is analysed."""
    parser.add_argument(
        "--source",
        metavar="LANGUAGE",
        help="source language, such as eng_Latn, en or English (default: the one that the prompts were trained on, or "
        "English)",
    )
    parser.add_argument("--metric", help="such as macro_f1 (default: the first that the task reports)")


def source_and_metric(arguments: argparse.Namespace, arms: Sequence[Arm]) -> tuple[str, str]:
    """Return the source language's code and the metric: what the user said, or what the results say."""
    from lm_eval_spt.analysis.arms import common_metrics, source_language
    from lm_eval_spt.analysis.languages import source_code

    source = source_code(arguments.source) if arguments.source else source_language(arms)
    return source, arguments.metric or next(iter(common_metrics(arms)), "acc")


def add_languages(parser: argparse.ArgumentParser) -> None:
    """Add the flag with which the user says the languages of tasks."""
    parser.add_argument(
        "--languages",
        metavar="FILE",
        help="YAML or CSV that says the languages of tasks whose names do not, or not clearly: a task's name, or a "
        "pattern such as 'pisa_{ch}*', and its language",
    )


def languages(arguments: argparse.Namespace) -> dict[str, str]:
    """Return what the flag of :func:`add_languages` gives: patterns of tasks' names with their languages."""
    from lm_eval_spt.analysis.task_languages import read_languages

    return read_languages(Path(arguments.languages)) if arguments.languages else {}


def print_notices(notices: Sequence[str]) -> None:
    """Say on stderr what else the user should know."""
    for notice in notices:
        print(notice if notice.isprintable() else repr(notice), file=sys.stderr)
