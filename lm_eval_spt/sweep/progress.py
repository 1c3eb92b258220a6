"""The progress of a sweep: a line for every run that ends, with the numbers of runs done, failed and left, and the
remaining time."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

from lm_eval_spt.sweep.plan import Plan, SweepRun
from lm_eval_spt.sweep.records import record_of


class Progress:
    """Reads the records of runs that have not ended, and prints a line for each that has ended since.

    Args:
        plan: the sweep.
        runs: the runs to watch.
        work: the work of each run by name, in any unit; the remaining time is estimated from it.

    Attributes:
        done: the number of runs that are done.
        failed: the name of each run that failed, to the reason.
    """

    def __init__(self, plan: Plan, runs: Sequence[SweepRun], work: Mapping[str, float]) -> None:
        self._output = sys.stdout  # the terminal, also while the output of training goes into a log
        self._work = work
        self._plan = plan
        self._left: list[SweepRun] = []
        self.done, self.failed = 0, dict[str, str]()
        for run in runs:
            if record_of(plan, run).done:
                self.done += 1
            else:
                self._left.append(run)
        self._started = time.monotonic()
        self._work_to_do = self._work_left()
        self._print(f"{len(runs)} runs")

    def refresh(self) -> None:
        """Read the records again."""
        for run in list(self._left):
            record = record_of(self._plan, run)
            if not record.done and record.error is None:
                continue
            self._left.remove(run)
            if record.error is None:
                self.done += 1
                self._print(f"done    {run.name}")
            else:
                self.failed[run.name] = record.error
                self._print(f"failed  {run.name}: {record.error}")

    def _work_left(self) -> float:
        return sum(self._work[run.name] for run in self._left)

    def _print(self, event: str) -> None:
        counts = f"{self.done} done, {len(self.failed)} failed, {len(self._left)} left"
        finished = self._work_to_do - self._work_left()
        if self._left and finished:
            seconds = (time.monotonic() - self._started) * self._work_left() / finished
            counts += f", {timedelta(seconds=round(seconds))} to go"
        print(f"{event}  [{counts}]", file=self._output, flush=True)
