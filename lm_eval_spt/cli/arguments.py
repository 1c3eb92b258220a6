"""What the arguments of several commands have in common: types, and results under a name."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

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
        name, _, place = ("", "", text) if Path(text).exists() else text.rpartition("=")
        places.append((name or None, Path(place)))
    return places


def print_notices(notices: Sequence[str]) -> None:
    """Say on stderr what else the user should know."""
    for notice in notices:
        print(notice if notice.isprintable() else repr(notice), file=sys.stderr)
