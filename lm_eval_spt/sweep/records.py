"""What is known of every run of a sweep: one small JSON file for each, ``<output>/runs/<name>.json``.

They are what tells a sweep that goes on, its progress and every engine which runs are done, so that nothing else has to
be kept or sent: deleting a record has its run done again.
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
from lm_eval_spt.sweep.plan import Plan, SweepRun
from lm_eval_spt.train.config import TrainingConfig

MAX_RECORD = 2**20
"""Bytes of such a file."""


@dataclass(frozen=True)
class Record:
    """How far a run is.

    Attributes:
        settings: what it was trained with.
        scoring: the tasks and options that it was scored with.
        training_seconds: how long it trained, its share where runs train together; None: it is not trained yet.
        scoring_seconds: the same of scoring.
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
        return self.training_seconds is not None

    @property
    def done(self) -> bool:
        return self.results is not None and self.error is None


def record_of(plan: Plan, run: SweepRun) -> Record:
    """Return what is known of a run: an empty record where nothing is, or where its files are gone.

    Raises:
        UserError: it was trained with other settings than it has now.
    """
    fresh = Record(run.settings(), _scoring(plan, run))
    path = _path(plan, run)
    try:
        record = _checked(parse_json(read_text(path, MAX_RECORD)), run)
        if record.trained and (differing := _differences(record.settings, fresh.settings)):
            raise UserError(
                f"{path} holds a run with other settings ({differing}): choose another output folder, or delete that "
                "file to have the run done again"
            )
    except FileNotFoundError:
        return fresh
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no record of a run ({error}): delete it to have the run done again") from error
    kept = [run.config.model_folder, Path(run.config.output) if run.config.prompt_length else None]
    if record.trained and not all(map(os.path.exists, filter(None, kept))):
        return fresh
    same = record.scoring == fresh.scoring and not _differences(record.settings, fresh.settings)
    if same and _has_results(plan, record):
        return record
    return replace(fresh, training_seconds=record.training_seconds, error=record.error)


def _has_results(plan: Plan, record: Record) -> bool:
    """Tell whether the results that a record names are there, with the answers where the sweep wants them."""
    if record.results is None:
        return False
    path = plan.output / record.results
    samples = path.parent.glob(f"samples_*_{path.stem.removeprefix('results_')}.jsonl")
    return path.is_file() and (not plan.evaluate.get("log_samples") or any(samples))


def _checked(content: Any, run: SweepRun) -> Record:
    """Return what a record's file holds; ValueError or TypeError where that is not what :func:`keep` writes."""
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
    """Write a run's record, whole or not at all."""
    write(_path(plan, run), (json.dumps(asdict(record), indent=2) + "\n").encode())


def forget_failures(plan: Plan, runs: Iterable[SweepRun]) -> None:
    """Have those of the runs that failed tried again."""
    for run in runs:
        record = record_of(plan, run)
        if record.error is not None:
            save_record(plan, run, replace(record, error=None))


def _path(plan: Plan, run: SweepRun) -> Path:
    return plan.output / "runs" / f"{run.name}.json"


def _scoring(plan: Plan, run: SweepRun) -> dict[str, Any]:
    elsewhere = {"include_path": plan.include_path} if plan.include_path else {}
    return {"targets": list(run.targets), **plan.evaluate, **elsewhere}


def _differences(recorded: dict[str, Any], now: dict[str, Any]) -> str:
    """Return in words what differs; a setting that was not there yet when the record was made had its default."""
    defaults = {field.name: field.default for field in fields(TrainingConfig)}
    differing = [
        f"{name} {recorded.get(name, defaults.get(name))!r} there, {value!r} now"
        for name, value in now.items()
        if recorded.get(name, defaults.get(name)) != value
    ]
    return "; ".join(differing)
