"""Training: from settings to prompt files, and the loop of epochs, batches, steps and validation in between."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.inference.probe import not_finite
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train import checkpoint, trackers
from lm_eval_spt.train.base import Base, base_of, load_model
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.context_cache import ContextCache
from lm_eval_spt.train.examples import Example, rows_of
from lm_eval_spt.train.log import TrainingLog, log_path
from lm_eval_spt.train.mixture import epochs
from lm_eval_spt.train.objective import LossRequest, Outcome, weight_of
from lm_eval_spt.train.parameters import Snapshot
from lm_eval_spt.train.parts import parts_of
from lm_eval_spt.train.results import check_outputs, has_ended, save_results
from lm_eval_spt.train.run import Steps, TrainingRun, scores_in_words
from lm_eval_spt.train.scheduler import BatchRequest, Program, run_side_by_side
from lm_eval_spt.train.state import remove_checkpoint, resume, save_checkpoint

PASS_TOKENS, PASS_TOKENS_ON_CPU = 4096, 128
"""How many tokens are read in the time that one more pass through the model takes.

On a CPU these are 40 with a frozen model of 270 million parameters, and 160 where all of them are tuned.
"""

VALIDATION_BATCHES = 4
"""How many batches are validated at once where only prompts and answers are read: a few rows do not use a processor."""


def train(config: TrainingConfig, base: Base | None = None) -> SoftPrompt | None:
    """Learn a soft prompt, write it to `config.output`, and return it; None where the settings have no prompt.

    The prompt with the lowest validation loss is written, the initial one included. It is also written when training is
    interrupted (Ctrl-C) or its loss turns into NaN; the exception goes on to the caller. A tuned model or adapter goes
    to `config.model_folder`.

    Args:
        config: the settings.
        base: the base model of these settings, if an earlier run has loaded it; not used where the settings tune it.

    Raises:
        UserError: something in the settings can not be done, or the loss turned into NaN.
    """
    return train_together([config], base)[0]


def train_together(configs: Sequence[TrainingConfig], base: Base | None = None) -> list[SoftPrompt | None]:
    """Train runs of one base model side by side, each as :func:`train` would: their batches are read as one.

    Args:
        configs: the settings; all have one base model, and several leave it frozen.
        base: as for :func:`train`.

    Raises:
        UserError: as for :func:`train`; where a loss turned into NaN, after all other runs have ended.
    """
    for config in configs:
        check_outputs(config)
        if config.model_folder is not None:
            base = None
    if base is None:
        # What is told without a model comes first: a mistake in it need not wait for one.
        reading = {config.reading: config for config in configs}
        rows = {what: rows_of(config) for what, config in reading.items()}
        base = base_of(load_model(configs[0]), rows)
    names = _names(configs)
    runs = {
        number: _prepare(config, base, names[number]) for number, config in enumerate(configs) if not has_ended(config)
    }
    tracking = trackers.start(configs[0].tracker, [run.config for run in runs.values()], base.processes)
    total = sum(run.total_steps for run in runs.values())
    try:
        with tqdm(total=total, unit="step", leave=False, disable=None if base.processes.is_main else True) as bar:
            run_side_by_side(base.lm.model, [training_loop(run, tracking, bar) for run in runs.values()])
    except KeyboardInterrupt:
        for run in runs.values():
            save_results(run, interrupted=True)
            run.say(f"interrupted: the best prompt so far (epoch {run.best['epoch']}) is in {run.output}", sys.stderr)
        raise
    finally:
        tracking.end()
    prompts = [
        _finish(runs[number]) if number in runs else SoftPrompt.load(config.output) if config.prompt_length else None
        for number, config in enumerate(configs)
    ]
    for run in runs.values():
        if run.diverged is not None:
            raise UserError(
                f"{run.diverged}; the best prompt so far (epoch {run.best['epoch']}) is in {run.output}: "
                "try a smaller --lr"
            )
    return prompts


def _names(configs: Sequence[TrainingConfig]) -> list[str]:
    """Return what each run is called in printed lines: by its output where there are several, else nothing."""
    if len(configs) == 1:
        return [""]
    outputs = [Path(config.output).with_suffix("") for config in configs]
    stems = [output.name for output in outputs]
    if len(set(stems)) == len(stems):
        return stems
    common = os.path.commonpath([output.absolute().parent for output in outputs])
    return [output.absolute().relative_to(common).as_posix() for output in outputs]


def _prepare(config: TrainingConfig, base: Base, name: str) -> TrainingRun:
    """Return a run that is ready to start, or to go on from its checkpoint."""
    if base.lm.backend != "causal" and config.prompt_length and config.placement != "prefix":
        raise UserError(
            f"--placement {config.placement} does not work with {config.model!r}, an encoder-decoder model: its "
            "prompts stand before the text, use --placement prefix"
        )
    examples = base.reader.read(config)
    run = TrainingRun(config, base, examples, name)
    base.try_out(config, examples, run.parameters.vectors())
    run.say(run.summary())
    path = checkpoint.path_of(run.output)
    if config.resume and path.is_file():
        resume(run, checkpoint.load(path))
        run.say(f"going on after epoch {len(run.rows) - 1} of {run.output}")
    return run


def _finish(run: TrainingRun) -> SoftPrompt | None:
    """Write what a run has learned, and return its prompt."""
    prompt = save_results(run)
    remove_checkpoint(run)
    if run.diverged is None:
        written = " and ".join(str(path) for path in (prompt and run.output, run.config.model_folder) if path)
        run.say(f"{written}: epoch {run.best['epoch']}, validation {scores_in_words(run.best)}")
    return prompt


# -- the loop ----------------------------------------------------------------------------------------------------------


def training_loop(run: TrainingRun, tracking: trackers.Tracking | None = None, bar: tqdm[Any] | None = None) -> Program:
    """Train for all epochs, or until patience ends, keeping what has the lowest validation loss.

    The model is not called here: the loop yields a request for a batch's loss and is sent the outcome, so that the
    scheduler can read the batches of several runs as one. A generator can wait in the middle of a loop; without it
    the loop's position would have to be kept by hand.

    Args:
        run: goes on from its state. A loss that is not finite ends it, and is put down as `run.diverged`.
        tracking: gets the log's rows.
        bar: gets the steps.

    Raises:
        UserError: the loss is not finite before the first step.
    """
    config, examples = run.config, run.examples
    started = time.perf_counter() - (run.rows[-1]["seconds"] if run.rows else 0.0)
    path = log_path(run.output) if run.processes.is_main else None
    log = TrainingLog(path, [{"settings": config.record()}, *run.rows])
    cache = run.base.context_cache(config, examples)
    orders = islice(epochs(examples.sizes, config.mixture, config.seed), max(0, len(run.rows) - 1), None)

    while len(run.rows) <= config.epochs and not run.out_of_patience:
        epoch = len(run.rows)
        order = next(orders) if epoch else []  # epoch 0 has no steps: it validates the initial prompt
        for start in range(len(run.steps) * config.batch_size, len(order), config.batch_size):
            batch = [examples.training[number] for number in order[start : start + config.batch_size]]
            loss, correct = yield from _loss_and_gradient(run, batch, cache)
            if not math.isfinite(loss):
                if epoch == 1 and start == 0:  # before the first step nothing can have diverged
                    raise not_finite(run.lm.model)
                run.diverged = f"the training loss turned into {loss} in epoch {epoch}"
                return
            run.optimization.step()
            run.steps.add(loss, weight_of(batch, config.loss), correct)
            if bar is not None:
                bar.update()
            if config.checkpoint_steps and len(run.steps) % config.checkpoint_steps == 0:
                save_checkpoint(run)

        training, validation = run.steps.scores(len(order)), (yield from _validate(run, cache))
        if not math.isfinite(validation["loss"]):
            if epoch == 0:
                raise not_finite(run.lm.model)
            run.diverged = f"the validation loss turned into {validation['loss']} in epoch {epoch}"
            return
        is_best = validation["loss"] < run.best.get("loss", math.inf)
        if is_best:
            run.best = {"epoch": epoch, **validation, "documents": len(examples.validation)}
            run.snapshot = run.parameters.snapshot()
        if epoch and config.average_checkpoints and (vectors := run.parameters.snapshot().vectors) is not None:
            run.recent = [*run.recent, vectors][-config.average_checkpoints :]
        seconds = time.perf_counter() - started
        row = {"epoch": epoch, "training": training, "validation": validation, "seconds": seconds}
        run.rows.append(row)
        run.steps = Steps()
        log.add(row)
        if tracking is not None:
            tracking.log(config.output, row)
        run.say(_epoch_line(row, config.epochs, is_best))
        if epoch:  # before the first step there is nothing to lose
            save_checkpoint(run)

    if run.out_of_patience:
        run.say(f"no lower validation loss for {config.patience} epochs: stopped")
    if run.recent:
        yield from _try_average(run, cache)


def _try_average(run: TrainingRun, cache: ContextCache | None) -> Generator[BatchRequest, Outcome, None]:
    """Validate the mean of the last epochs' vectors, and keep it where it is better or the settings say so.

    Averaging checkpoints steadies few-shot cross-lingual transfer: Schmidt et al. 2023, arXiv 2305.16834.
    """
    last, count = len(run.rows) - 1, len(run.recent)
    mean = torch.stack(run.recent).double().mean(dim=0).float()
    validation = yield from _validate(run, cache, mean.to(run.lm.device))
    is_best = validation["loss"] < run.best["loss"]
    run.say(
        f"mean of epochs {last - count + 1} to {last}  validation {scores_in_words(validation)}"
        f"{'  best' if is_best else ''}"
    )
    if is_best or run.config.keep == "average":
        documents = len(run.examples.validation)
        run.best = {"epoch": last, "averaged_epochs": count, **validation, "documents": documents}
        run.snapshot = Snapshot(mean)


def _loss_and_gradient(
    run: TrainingRun, batch: list[Example], cache: ContextCache | None
) -> Generator[BatchRequest, Outcome, tuple[float, int]]:
    """Leave the gradient of a batch's mean loss in the parameters, and return its summed loss and right answers.

    The processes share the batch, and each may read its share in parts.
    """
    config = run.config
    run.parameters.train()
    run.optimization.zero_grad()
    divisor = weight_of(batch, config.loss)
    sums = torch.zeros(2, device=run.lm.device)
    share = run.processes.share(batch)
    size = -(-len(share) // config.gradient_accumulation_steps) or 1
    for part in _parts(run, share, size, cache):
        loss_request = _loss_request(run, part, config.label_smoothing)
        outcome = yield BatchRequest(loss_request, cache, divisor, config.activation_checkpointing)
        sums += torch.tensor([float(outcome.loss), outcome.correct], device=sums.device)
    run.optimization.sum_over_processes(sums)
    loss, correct = sums.tolist()
    return loss, round(correct)


def _validate(
    run: TrainingRun, cache: ContextCache | None, vectors: Tensor | None = None
) -> Generator[BatchRequest, Outcome, dict[str, float]]:
    """Return loss and accuracy on the validation documents, which the processes share.

    Args:
        run, cache: the run, and where its texts are.
        vectors: a prompt in the place of the run's own.
    """
    config = run.config
    run.parameters.train(False)
    by_length = sorted(run.examples.validation, key=lambda example: len(example.pairs[0][0]))
    sums = torch.zeros(3, device=run.lm.device)
    share = run.processes.share(by_length)
    size = config.batch_size * (VALIDATION_BATCHES if cache is not None else 1)
    for part in _parts(run, share, size, cache):
        request = _loss_request(run, part)
        outcome = yield BatchRequest(request if vectors is None else replace(request, vectors=vectors), cache)
        sums += torch.tensor([float(outcome.loss), outcome.weight, outcome.correct], device=sums.device)
    run.processes.sum(sums)
    loss, weight, correct = sums.tolist()
    return {"loss": loss / weight, "accuracy": correct / len(by_length)}


def _parts(
    run: TrainingRun, examples: Sequence[Example], size: int, cache: ContextCache | None
) -> Iterable[Sequence[Example]]:
    """Return examples in the parts in which they are read, of `size` at most."""
    if cache is not None:  # texts have been read, and several runs may share a part
        return (examples[start : start + size] for start in range(0, len(examples), size))
    return parts_of(examples, size, PASS_TOKENS_ON_CPU if run.lm.device.type == "cpu" else PASS_TOKENS)


def _loss_request(run: TrainingRun, examples: Sequence[Example], label_smoothing: float = 0.0) -> LossRequest:
    config = run.config
    return LossRequest(examples, run.parameters.vectors(), config.vectors_before, config.loss, label_smoothing)


def _epoch_line(row: dict[str, Any], epochs: int, is_best: bool) -> str:
    training = f"training {scores_in_words(row['training'])}" if row["training"] else "before training"
    best = "  best" if is_best else ""
    return f"epoch {row['epoch']:>3}/{epochs}  {training:<33}  validation {scores_in_words(row['validation'])}{best}"
