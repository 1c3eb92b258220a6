"""Reading the harness's results files: which language scored how much.

Any model class of the harness writes them (``--output_path``), so that a soft prompt can be compared with anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_spt.errors import UserError

LANGUAGE = re.compile(r"_([a-z]{3}_[A-Z][a-z]{3})$")


@dataclass(frozen=True)
class Score:
    """A metric's value and its standard error, both as shares of 1; the error is None where the harness gave none."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class Run:
    """One results file.

    Attributes:
        path: where it lies.
        scores: language code to score.
        config: what the harness recorded of the model and the run.
    """

    path: Path
    scores: dict[str, Score]
    config: dict[str, Any]


def results_files(place: Path) -> list[Path]:
    """Return the results file `place`, or those anywhere under the folder `place`, sorted.

    Raises:
        UserError: there is none.
    """
    files = [place] if place.is_file() else sorted(place.glob("**/results_*.json"))
    if not files:
        raise UserError(f"{place} holds no results_*.json: expected what lm_eval --output_path wrote")
    return files


def read_run(path: Path, metric: str = "acc") -> Run:
    """Read one results file.

    Args:
        path: a ``results_<date>.json`` of the harness.
        metric: such as `acc` or `macro_f1`; of its filters the first is taken.

    Raises:
        UserError: it can not be read, is no results file, or holds no task that is named after a language.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tasks: dict[str, dict[str, Any]] = content["results"]
        config: dict[str, Any] = content["config"]
    except OSError as error:
        raise UserError(f"{path} can not be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a results file of the harness: {error}") from error
    scores = {}
    for task, values in tasks.items():
        language = LANGUAGE.search(task)
        found = next((key for key in values if key.startswith(f"{metric},")), None)
        if language is None or found is None:
            continue
        if language[1] in scores:
            raise UserError(f"{path} holds several tasks in {language[1]}: score one family of tasks at a time")
        stderr = values.get(found.replace(",", "_stderr,", 1))
        scores[language[1]] = Score(float(values[found]), float(stderr) if isinstance(stderr, int | float) else None)
    if not scores:
        raise UserError(f"{path} has no {metric!r} of a task whose name ends in a language code such as _eng_Latn")
    return Run(path, scores, config)


def mean_over_runs(runs: Iterable[Run]) -> dict[str, Score]:
    """Return the mean score per language over runs that differ in their seed, for the languages that all have.

    The standard error is the mean one of the runs: they share the test documents, so that more seeds do not shrink it.
    """
    runs = list(runs)
    languages = [language for language in runs[0].scores if all(language in run.scores for run in runs)]
    means = {}
    for language in languages:
        scores = [run.scores[language] for run in runs]
        errors = [score.stderr for score in scores if score.stderr is not None]
        value = sum(score.value for score in scores) / len(scores)
        means[language] = Score(value, sum(errors) / len(errors) if len(errors) == len(scores) else None)
    return means
