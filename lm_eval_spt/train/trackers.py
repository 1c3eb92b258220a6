"""Optional experiment trackers (TensorBoard, Weights & Biases, Trackio, ...) through accelerate; off by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.processes import Processes

PROJECT = "lm_eval_spt"


class Tracking:
    """A tracker for each run, or none.

    Args:
        trackers: accelerate's trackers by their runs' outputs.
    """

    def __init__(self, trackers: dict[str, Any] | None = None) -> None:
        self._trackers = trackers or {}

    def log(self, output: str, row: dict[str, Any]) -> None:
        """Hand on a row of the log of the run that writes `output`."""
        if tracker := self._trackers.get(output):
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

    available = sorted(str(tracker) for tracker in get_available_trackers())
    known = {str(kind): tracker_class for kind, tracker_class in LOGGER_TYPE_TO_CLASS.items()}
    if name not in available:
        problem = "is not installed" if name in known else "is unknown"
        raise UserError(
            f"--tracker {name} {problem}: here are {', '.join(available) or 'none'}; pip install {name} brings it"
        )
    tracker_class = known[name]
    trackers = {}
    for config in configs:
        output = Path(config.output)
        if tracker_class.requires_logging_directory:
            tracker = tracker_class(output.stem, logging_dir=str(output.parent))
        else:
            tracker = tracker_class(PROJECT)
        if hasattr(tracker, "start"):
            tracker.start()
        settings = {key: value for key, value in asdict(config).items() if isinstance(value, int | float | str | bool)}
        tracker.store_init_configuration(settings)
        trackers[config.output] = tracker
    return Tracking(trackers)
