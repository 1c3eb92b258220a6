"""Training and scoring the runs of a shard, on one device."""

from __future__ import annotations

import os
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_eval_spt.errors import UserError
from lm_eval_spt.evaluate import evaluate_base, evaluate_prompts
from lm_eval_spt.sweep.plan import BASE, Plan, Run
from lm_eval_spt.sweep.records import keep, record_of
from lm_eval_spt.train.grid import train_grid
from lm_eval_spt.train.loop import Frozen, load_frozen

Report = Callable[[], None]
"""Called whenever records have changed."""


class Worker:
    """Trains and scores shards, one after the other, and keeps the base model that it loaded last.

    Everything that a shard leaves is in the sweep's folder: prompts, results, records, and a log of what was printed.

    Args:
        plan: the sweep.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._base: tuple[Any, ...] | None = None
        self._frozen: Frozen | None = None

    def run(self, number: int, report: Report = lambda: None) -> None:
        """Do what is left to do of shard `number`; a run that fails does not keep the others from going on."""
        shard = self.plan.shards[number]
        if not any(self._is_left(run) for run in shard):
            return
        log = self.plan.output / "logs" / f"shard{number:03}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
            untrained = [run for run in shard if run.prompted and not record_of(self.plan, run).trained]
            self._attempt([run for run in untrained if self._is_left(run)], self._train, report)
            waiting: dict[tuple[bool, tuple[str, ...]], list[Run]] = {}
            for run in shard:
                if self._is_left(run):
                    waiting.setdefault((run.prompted, run.targets), []).append(run)
            for (prompted, _), runs in waiting.items():
                self._attempt(runs, self._score_prompts if prompted else self._score_base, report)

    def _is_left(self, run: Run) -> bool:
        record = record_of(self.plan, run)
        return not record.done and record.error is None

    def _attempt(self, runs: Sequence[Run], work: Callable[[Sequence[Run]], None], report: Report) -> None:
        """Do `work` for all runs together; where that fails, for each half, until those that fail are found."""
        if not runs:
            return
        try:
            work(runs)
        except Exception as error:
            print(traceback.format_exc(), flush=True)
            if len(runs) > 1:
                middle = len(runs) // 2
                self._attempt(runs[:middle], work, report)
                self._attempt(runs[middle:], work, report)
                return
            record = record_of(self.plan, runs[0])
            keep(self.plan, runs[0], replace(record, error=_in_one_line(error)))
        report()

    def _load(self, run: Run) -> Frozen:
        """Return the base model of a run."""
        if self._frozen is None or self._base != run.base:
            self._frozen = None  # frees the memory before the next one is loaded
            self._frozen, self._base = load_frozen(run.config), run.base
        return self._frozen

    def _train(self, runs: Sequence[Run]) -> None:
        started = time.perf_counter()
        train_grid([run.config for run in runs], self._load(runs[0]))
        seconds = (time.perf_counter() - started) / len(runs)
        for run in runs:
            keep(self.plan, run, replace(record_of(self.plan, run), settings=run.settings(), training_seconds=seconds))

    def _score_prompts(self, runs: Sequence[Run]) -> None:
        started = time.perf_counter()
        config = runs[0].config
        given = {name: getattr(config, name) for name in BASE if name not in ("model", "device")}
        paths = evaluate_prompts(
            [run.config.output for run in runs],
            runs[0].targets,
            str(self._scoring_folder),
            model_args=",".join(f"{name}={value}" for name, value in given.items() if value is not None),
            base=self._load(runs[0]).lm,
            device=config.device,
            **self.plan.evaluate,
        )
        seconds = (time.perf_counter() - started) / len(runs)
        for run, path in zip(runs, paths, strict=True):
            self._keep_results(run, path, seconds)

    def _score_base(self, runs: Sequence[Run]) -> None:
        for run in runs:
            started = time.perf_counter()
            folder = str(self._scoring_folder / run.name)
            path = evaluate_base(self._load(run).lm, run.targets, folder, **self.plan.evaluate)
            self._keep_results(run, path, time.perf_counter() - started)

    @property
    def _scoring_folder(self) -> Path:
        """Where the harness writes, in folders that it names itself, before results get their places."""
        return self.plan.output / "scoring"

    def _keep_results(self, run: Run, path: Path, seconds: float) -> None:
        """Move a run's results from the harness's folder to ``results/<name>``, in place of older ones."""
        place = self.plan.output / "results" / run.name
        place.mkdir(parents=True, exist_ok=True)
        older = list(place.iterdir())
        date = path.stem.removeprefix("results_")
        for file in path.parent.glob(f"*{date}.json*"):
            file.replace(place / file.name)
        results = str((place / path.name).relative_to(self.plan.output))
        keep(self.plan, run, replace(record_of(self.plan, run), scoring_seconds=seconds, results=results))
        for file in older:
            file.unlink()
        shutil.rmtree(path.parent)  # with what a worker that was lost may have written halfway
        with suppress(OSError):  # other results may be waiting there
            os.removedirs(path.parent.parent)


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
