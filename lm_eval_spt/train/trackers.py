"""Optional experiment trackers (TensorBoard, Weights & Biases, Trackio, ...) by way of accelerate; off by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.processes import Processes

if TYPE_CHECKING:
    from lm_eval_spt.train.run import TrainingRun

PROJECT = "lm_eval_spt"


class Tracking:
    """A tracker for each run, or none."""

    def __init__(self, trackers: dict[str, Any] | None = None) -> None:
        self._trackers = trackers or {}

    def log(self, run: TrainingRun) -> None:
        """Hand on the newest line of a run's log."""
        if tracker := self._trackers.get(run.config.output):
            row = run.rows[-1]
            scores = {f"{split}/{name}": row[split][name] for split in ("training", "validation")
                      for name in ("loss", "accuracy") if name in row[split]}  # fmt: skip
            tracker.log(scores, step=row["epoch"])

    def end(self) -> None:
        """Finish all trackers."""
        for tracker in self._trackers.values():
            tracker.finish()


def start(name: str | None, configs: Sequence[TrainingConfig], processes: Processes) -> Tracking:
    """Start a tracker of this name for each run, in the main process alone.

    Raises:
        UserError: accelerate knows no such tracker, or it is not installed.
    """
    if name is None or not processes.is_main:
        return Tracking()
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    here = sorted(str(tracker) for tracker in get_available_trackers())
    known = {str(kind): of for kind, of in LOGGER_TYPE_TO_CLASS.items()}
    if name not in here:
        what = "is not installed" if name in known else "is unknown"
        raise UserError(f"--tracker {name} {what}: here are {', '.join(here) or 'none'}; pip install {name} brings it")
    trackers = {}
    for config in configs:
        of = known[name]
        folder = {"logging_dir": config.output.rpartition("/")[0] or "."} if of.requires_logging_directory else {}
        run = config.output.rpartition("/")[2].removesuffix(".safetensors")
        tracker = of(run if of.requires_logging_directory else PROJECT, **folder)
        if hasattr(tracker, "start"):
            tracker.start()
        settings = {key: value for key, value in asdict(config).items() if isinstance(value, int | float | str | bool)}
        tracker.store_init_configuration(settings)
        trackers[config.output] = tracker
    return Tracking(trackers)
