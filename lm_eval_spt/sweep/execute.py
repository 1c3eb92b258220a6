"""Training and scoring the runs of a shard, on one device.

Runs that leave the base model frozen are trained together and scored together, on a model that is loaded once. Runs
that tune it are done one by one.
"""

from __future__ import annotations

import os
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.evaluate import evaluate_model, evaluate_prompts
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.prompt.compose import compose
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.sweep.plan import Plan, SweepRun
from lm_eval_spt.sweep.records import is_recorded, record_of, save_record
from lm_eval_spt.train.base import Base, base_of, load_model, loading
from lm_eval_spt.train.grid import train_grid

Report = Callable[[], None]
"""A callback for changed records."""


class Worker:
    """Trains and scores shards one after the other, and keeps the last loaded base model.

    All output of a shard is in the sweep's folder: prompts, results, records, and a log of the printed text.

    Args:
        plan: the sweep.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._base: tuple[Any, ...] = ()
        self._lm: SPTLM | None = None

    def run(self, number: int, report: Report = lambda: None) -> None:
        """Do what is left of shard `number`. A run that fails does not stop the others.

        Args:
            number: the shard's position in the plan.
            report: called whenever records have changed.

        Raises:
            UserError: the log or a record can not be written.
        """
        shard = self.plan.shards[number]
        if not self._left(shard):
            return
        log = self.plan.output / "logs" / f"shard{number:03}.txt"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
                if shard[0].frozen:
                    self._run_frozen(shard, report)
                else:
                    self._run_tuned(shard, report)
        except OSError as error:
            raise UserError(f"{log}: can not be written ({error.strerror or error}): what is done is kept") from error

    def _run_frozen(self, shard: Sequence[SweepRun], report: Report) -> None:
        """Do runs that share a base model and the texts that it reads."""
        try:
            lm = self._load(shard[0])
        except Exception as error:
            for run in self._left(shard):
                self._fail(run, error)
            report()
            return
        untrained = [run for run in self._left(shard) if run.prompted and not record_of(self.plan, run).trained]
        self._attempt(untrained, partial(self._train, base_of(lm)), report)
        scored_together: dict[Any, list[SweepRun]] = {}
        for run in self._left(shard):
            config = run.config
            scored_together.setdefault((run.prompted, run.targets, config.data, config.columns), []).append(run)
        for (prompted, *_), runs in scored_together.items():
            self._attempt(runs, partial(self._score_prompts if prompted else self._score_baselines, lm), report)

    def _run_tuned(self, shard: Sequence[SweepRun], report: Report) -> None:
        """Do runs that change the model: each loads a model of its own."""
        self._lm = None
        for run in self._left(shard):
            if not record_of(self.plan, run).trained:
                self._attempt([run], partial(self._train, None), report)
            if self._left([run]):
                self._attempt([run], self._score_tuned, report)

    def _left(self, shard: Sequence[SweepRun]) -> list[SweepRun]:
        """Return the runs of a shard that are neither done nor failed."""
        records = {run.name: record_of(self.plan, run) for run in shard}
        return [run for run in shard if not records[run.name].done and records[run.name].error is None]

    def _attempt(self, runs: Sequence[SweepRun], work: Callable[[Sequence[SweepRun]], None], report: Report) -> None:
        """Do `work` for all runs together; if that fails, for each half of them, down to the single runs that fail."""
        if not runs:
            return
        try:
            work(runs)
        except Exception as error:
            if len(runs) > 1:
                middle = len(runs) // 2
                self._attempt(runs[:middle], work, report)
                self._attempt(runs[middle:], work, report)
                return
            self._fail(runs[0], error)
        report()

    def _fail(self, run: SweepRun, error: Exception) -> None:
        """Record why a run failed, in one line; the log has the traceback."""
        traceback.print_exception(error)
        text = " ".join(str(error).split())
        reason = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
        save_record(self.plan, run, replace(record_of(self.plan, run), error=reason))

    def _load(self, run: SweepRun) -> SPTLM:
        """Return the base model of a run."""
        if self._lm is None or self._base != run.base:
            self._lm = None  # frees its memory before the next model is loaded
            self._lm, self._base = load_model(run.config), run.base
        return self._lm

    def _train(self, base: Base | None, runs: Sequence[SweepRun]) -> None:
        started = time.perf_counter()
        trained = [run for run in runs if not run.members]
        if trained:
            begun = [is_recorded(self.plan, run) for run in trained]  # without a record it is done again
            for run in trained:
                save_record(self.plan, run, record_of(self.plan, run))
            train_grid([replace(run.config, resume=resume) for run, resume in zip(trained, begun, strict=True)], base)
        seconds = (time.perf_counter() - started) / max(1, len(trained))
        for run in runs:
            members = [SoftPrompt.load(member.config.output) for member in run.members]
            if run.combination == "average":
                compose(members, "mean").save(run.config.output)
            record = replace(record_of(self.plan, run), settings=run.settings())
            save_record(self.plan, run, replace(record, training_seconds=0.0 if members else seconds))

    def _score_prompts(self, lm: SPTLM | None, runs: Sequence[SweepRun], **model_arguments: str) -> None:
        """Score prompts together.

        Args:
            lm: their loaded base model; None if it was tuned and has to be loaded from `model_arguments`.
            runs: the runs.
            model_arguments: further arguments of the model, such as ``peft``.
        """
        started = time.perf_counter()
        config = runs[0].config
        given = loading(config) | model_arguments
        if lm is not None:  # it is where it is
            given = {name: value for name, value in given.items() if name not in ("parallelize", "device_map")}
        paths = evaluate_prompts(
            [run.prompt for run in runs],
            runs[0].targets,
            str(self._scoring_folder),
            model_args=",".join(f"{name}={value}" for name, value in given.items()),
            base=lm,
            device=config.device,
            include_path=self.plan.include_path,
            data=config.data,
            columns=config.columns,
            **self.plan.evaluate,
        )
        seconds = (time.perf_counter() - started) / len(runs)
        for run, path in zip(runs, paths, strict=True):
            self._keep_results(run, path, seconds)

    def _score_baselines(self, lm: SPTLM, runs: Sequence[SweepRun]) -> None:
        for run in runs:
            self._score_model(run, _base(run), lm)

    def _score_tuned(self, runs: Sequence[SweepRun]) -> None:
        """Score tuned models, each with the prompt that was trained along with it, if there is one."""
        for run in runs:
            folder = str(run.config.model_folder)
            changed = _base(run) | {"peft": folder} if run.config.tune == "lora" else {"pretrained": folder}
            if run.config.prompt_length:
                self._score_prompts(None, [run], **changed)
            else:
                self._score_model(run, changed)

    def _score_model(self, run: SweepRun, arguments: dict[str, str], lm: SPTLM | None = None) -> None:
        """Score a model without a prompt; `lm` is that model if it is already loaded."""
        started = time.perf_counter()
        config = run.config
        options = {"data": config.data, "columns": config.columns} | self.plan.evaluate
        settings: dict[str, Any] = {"device": config.device, "batch_size": options.pop("batch_size", "auto")}
        if lm:
            model = SPTLM.from_loaded(lm, **settings, add_bos_token=config.add_bos_token)
        else:
            model = SPTLM(**settings | loading(config) | arguments)
        if options.get("use_cache"):  # a cache of answers belongs to one model; prompts have theirs already
            options["use_cache"] += f"-{run.name}"
        folder = str(self._scoring_folder / run.name)
        path = evaluate_model(model, arguments, run.targets, folder, include_path=self.plan.include_path, **options)
        self._keep_results(run, path, time.perf_counter() - started)

    @property
    def _scoring_folder(self) -> Path:
        """The folder that the harness writes to, into folders that it names, before results are moved."""
        return self.plan.output / "scoring"

    def _keep_results(self, run: SweepRun, path: Path, seconds: float) -> None:
        """Move a run's results from the harness's folder to ``results/<name>``, where they replace older ones."""
        place = self.plan.output / "results" / run.name
        place.mkdir(parents=True, exist_ok=True)
        date = path.stem.removeprefix("results_")
        older = [file for file in place.iterdir() if date not in file.name]
        samples = sorted(path.parent.glob(f"samples_*{date}.*"))
        for file in (*samples, path):  # the results file last: once it is there, all files are
            file.replace(place / file.name)
        results = str((place / path.name).relative_to(self.plan.output))
        save_record(self.plan, run, replace(record_of(self.plan, run), scoring_seconds=seconds, results=results))
        for file in older:
            file.unlink()
        shutil.rmtree(path.parent)  # may also hold half-written files of a lost worker
        with suppress(OSError):  # not empty if other results wait there
            os.removedirs(path.parent.parent)


def _base(run: SweepRun) -> dict[str, str]:
    """Return the arguments by which the harness's command line would find a run's base model."""
    config = run.config
    return {"pretrained": config.model} | ({"gguf_file": config.gguf_file} if config.gguf_file else {})
