"""Records: a small JSON file for each run of a sweep, ``<output>/runs/<name>.json``.

They alone say which runs are done: to a sweep that is continued, to its progress and to every engine. If a record is
deleted, its run is done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePath
from typing import Any

from lm_eval_spt.common.errors import UserError, printable
from lm_eval_spt.common.files import is_text, parse_json, read_text, write
from lm_eval_spt.harness.samples import samples_path
from lm_eval_spt.sweep.plan import Plan, SweepRun
from lm_eval_spt.train.config import differences

MAX_RECORD = 2**20
"""Bytes of a record's file."""


@dataclass(frozen=True)
class Record:
    """The state of a run.

    Attributes:
        settings: the settings that it was trained with.
        scoring: the tasks and options that it was scored with.
        training_seconds: the time of its training, or its share if runs train together; None before it is trained.
        scoring_seconds: the time of its scoring, in the same way.
        results: the results file, relative to the sweep's folder.
        error: why it failed, in one line.
    """

    settings: dict[str, Any]
    scoring: dict[str, Any]
    training_seconds: float | None = None
    scoring_seconds: float | None = None
    results: str | None = None
    error: str | None = None

    @property
    def trained(self) -> bool:
        """Whether the training is done."""
        return self.training_seconds is not None

    @property
    def done(self) -> bool:
        """Whether training and scoring are done."""
        return self.results is not None and self.error is None


def record_of(plan: Plan, run: SweepRun) -> Record:
    """Return a run's record: an empty one if there is none, or if the run's files are gone.

    Raises:
        UserError: the run was trained with other settings than it has now, or the file is no record.
    """
    fresh = Record(run.settings(), _scoring(plan, run))
    path = _path(plan, run)
    try:
        record = _checked(parse_json(read_text(path, MAX_RECORD)), run)
        if record.trained and (differing := differences(record.settings, fresh.settings)):
            raise UserError(
                f"{path} holds a run with other settings ({differing}): choose another output folder, or delete that "
                "file to have the run done again"
            )
    except (FileNotFoundError, NotADirectoryError):
        return fresh
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no record of a run ({error}): delete it to have the run done again") from error
    kept = [*run.files, run.config.model_folder]
    if record.trained and not all(os.path.exists(place) for place in kept if place is not None):
        return fresh
    same = record.scoring == fresh.scoring and not differences(record.settings, fresh.settings)
    if same and _has_results(plan, record):
        return record
    return replace(fresh, training_seconds=record.training_seconds, error=record.error)


def is_recorded(plan: Plan, run: SweepRun) -> bool:
    """Tell whether a run has a record: from the moment its training begins, whether or not it ended."""
    return _path(plan, run).exists()


def _has_results(plan: Plan, record: Record) -> bool:
    """Tell whether the results that a record names are there, with their samples."""
    if record.results is None:
        return False
    path = plan.output / record.results
    samples = path.parent.glob(f"samples_*_{path.stem.removeprefix('results_')}.jsonl")
    full = not plan.evaluate.get("log_samples") or any(samples)
    return path.is_file() and samples_path(path).is_file() and full


def _checked(content: Any, run: SweepRun) -> Record:
    """Return the record in a parsed file; raise ValueError or TypeError if :func:`save_record` did not write it."""
    if not isinstance(content, dict):
        raise TypeError("no object")
    known = {field.name for field in fields(Record)}
    record = Record(**{name: value for name, value in content.items() if name in known})
    for name in ("settings", "scoring"):
        if not isinstance(getattr(record, name), dict):
            raise TypeError(f"its {name} are no object")
    for name in ("training_seconds", "scoring_seconds"):
        if not isinstance(getattr(record, name), int | float | None):
            raise TypeError(f"its {name} are no number")
    if not (isinstance(record.error, str | None) and (record.results is None or is_text(record.results))):
        raise TypeError("its error or its results are no text")
    if record.results is not None and PurePath(record.results).parent != PurePath("results", run.name):
        raise ValueError("its results are elsewhere")
    return record if record.error is None else replace(record, error=printable(record.error))


def save_record(plan: Plan, run: SweepRun, record: Record) -> None:
    """Write a run's record, whole or not at all.

    Raises:
        UserError: it can not be written.
    """
    write(_path(plan, run), (json.dumps(asdict(record), indent=2) + "\n").encode())


def forget_failures(plan: Plan, runs: Iterable[SweepRun]) -> None:
    """Take the error out of the records of runs that failed, so that they are tried again."""
    for run in runs:
        record = record_of(plan, run)
        if record.error is not None:
            save_record(plan, run, replace(record, error=None))


def _path(plan: Plan, run: SweepRun) -> Path:
    return plan.output / "runs" / f"{run.name}.json"


def _scoring(plan: Plan, run: SweepRun) -> dict[str, Any]:
    elsewhere = {"include_path": plan.include_path} if plan.include_path else {}
    return {"targets": list(run.targets), **plan.evaluate, **elsewhere}
