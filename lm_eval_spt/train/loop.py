"""A training run from settings to prompt file."""

from __future__ import annotations

import json
import logging
import math
import platform
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from lm_eval_spt.errors import UserError
from lm_eval_spt.lm import SPTLM
from lm_eval_spt.prompt import SoftPrompt
from lm_eval_spt.scoring import tokens_that_fit
from lm_eval_spt.train import contexts
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.contexts import ContextCache
from lm_eval_spt.train.examples import Example, choose, encode, load_tasks, read_documents
from lm_eval_spt.train.learner import Learner
from lm_eval_spt.train.mixture import epochs
from lm_eval_spt.train.objective import Outcome, evaluate
from lm_eval_spt.train.tuning import check_replaceable

logger = logging.getLogger(__name__)

HELD_OUT = 10  # every tenth training document validates where a task has no validation split


class Diverged(Exception):
    """The loss is not a number any more."""


@dataclass
class Frozen:
    """The base model, and the keys and values of the texts it has read; both serve any number of runs."""

    lm: SPTLM
    cache: ContextCache


def load_frozen(config: TrainingConfig) -> Frozen:
    """Load the base model of a run.

    Raises:
        UserError: it can not be loaded, or is no causal LM.
    """
    lm = SPTLM(
        pretrained=config.model,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        add_bos_token=config.add_bos_token,
    )
    return freeze(lm)


def freeze(lm: SPTLM) -> Frozen:
    """Return a loaded base model with an empty cache, ready for training prompts."""
    lm.model.requires_grad_(False)
    return Frozen(lm, ContextCache(lm.model, tokens_that_fit(lm.model, lm.device)))


def train(config: TrainingConfig, frozen: Frozen | None = None) -> SoftPrompt | None:
    """Learn a soft prompt, write it to `config.output`, and return it; None where the settings have no prompt.

    What has the lowest validation loss is written, the start included. It is also written when training is interrupted
    (Ctrl-C) or its loss turns into NaN; the exception goes on to the caller. A tuned model or adapter goes to
    `config.model_folder`.

    Args:
        config: the settings.
        frozen: the base model of these settings, if an earlier run has loaded it; it is left alone where the settings
            tune it.

    Raises:
        UserError: something in the settings can not be done, or the loss turned into NaN.
    """
    output = Path(config.output)
    _check_writable(output)
    tasks = load_tasks(config.tasks, config.include_path)
    if config.model_folder is not None:
        check_replaceable(config.model_folder)
        frozen = None
    frozen = frozen or load_frozen(config)
    lm = frozen.lm
    if lm.backend != "causal" and config.prompt_length and config.placement != "prefix":
        raise UserError(
            f"--placement {config.placement} does not work with {config.model!r}, an encoder-decoder model: its "
            "prompts stand before the text, use --placement prefix"
        )
    max_length = min(config.max_length or lm.max_length, lm.max_length)
    if config.prompt_length >= max_length:
        raise UserError(
            f"--prompt-length {config.prompt_length} leaves no room for text: {config.model!r} reads at most "
            f"{max_length} tokens"
        )

    training: list[Example] = []
    validation: list[Example] = []
    sizes: list[int] = []
    for task in tasks:
        documents = read_documents(task, "training")
        if task.has_validation_docs():
            held_out = read_documents(task, "validation")
        else:
            logger.warning("%s has no validation split: every tenth training document validates", task.task_name)
            held_out = documents[::HELD_OUT]
            documents = [document for index, document in enumerate(documents) if index % HELD_OUT]
        placed = (lm, config.placement, config.prompt_length, max_length, config.truncation_side)
        training += encode(choose(documents, config.shots, config.seed, "training"), *placed)
        validation += encode(choose(held_out, config.validation_shots, config.seed, "validation"), *placed)
        sizes.append(len(training) - sum(sizes))

    run = _Run(config, frozen, training, validation, sizes)
    print(run.summary(), flush=True)
    with _log(output.with_suffix(".jsonl"), config) as log:
        try:
            run.train(log)
        except Diverged as error:
            run.save(output)
            raise UserError(
                f"{error}; the best prompt so far (epoch {run.best['epoch']}) is in {output}: try a smaller --lr"
            ) from error
        except KeyboardInterrupt:
            run.save(output)
            print(f"interrupted: the best prompt so far (epoch {run.best['epoch']}) is in {output}", file=sys.stderr)
            raise
    prompt = run.save(output)
    written = " and ".join(str(path) for path in (prompt and output, config.model_folder) if path)
    print(f"{written}: epoch {run.best['epoch']}, validation {_scores(run.best)}")
    return prompt


class _Run:
    """A run's state: the vectors, the examples, and the best prompt so far."""

    def __init__(
        self,
        config: TrainingConfig,
        frozen: Frozen,
        training: Sequence[Example],
        validation: Sequence[Example],
        sizes: Sequence[int],
    ) -> None:
        self.config, self.lm = config, frozen.lm
        self.training, self.validation, self.sizes = training, validation, sizes
        torch.manual_seed(config.seed)
        self.learner = Learner(self.lm, config, training)
        self.model: PreTrainedModel = self.lm.model
        self.cache = self._cache_contexts(frozen.cache)
        self.best: dict[str, Any] = {"epoch": 0, "loss": float("inf")}
        self.learned = self.learner.learned()

    def summary(self) -> str:
        """Return a line on what is tuned and with what."""
        tuned, total = self.learner.count(), sum(weight.numel() for weight in self.model.parameters())
        return (
            f"{tuned:,} tuned parameters, {tuned / total:.4%} of {self.config.model} ({total:,}); "
            f"{len(self.training)} training and {len(self.validation)} validation documents"
        )

    def train(self, log: TextIO) -> None:
        """Train for all epochs, or until patience ends, keeping what has the lowest validation loss."""
        config = self.config
        steps = -(-len(self.training) // config.batch_size) * config.epochs
        optimizer = self.learner.optimizer()
        schedule = get_linear_schedule_with_warmup(optimizer, round(config.warmup_ratio * steps), steps)
        orders = epochs(self.sizes, config.mixture, config.seed)
        started = time.perf_counter()
        self._validate(0, {}, log, started)
        bar = tqdm(total=steps, unit="step", leave=False, disable=None)
        with bar:
            for epoch in range(1, config.epochs + 1):
                loss = weight = correct = 0.0
                self.learner.train()
                losses = []
                for batch in _batches(self.training, next(orders), config.batch_size):
                    outcome = self._evaluate(batch, config.label_smoothing)
                    value = outcome.loss.item()
                    if not math.isfinite(value):
                        raise Diverged(f"the training loss turned into {value} in epoch {epoch}")
                    optimizer.zero_grad()
                    (outcome.loss / outcome.weight).backward()
                    nn.utils.clip_grad_norm_(self.learner.parameters(), config.clip)
                    optimizer.step()
                    schedule.step()
                    bar.update()
                    losses.append(value / outcome.weight)
                    loss, weight, correct = loss + value, weight + outcome.weight, correct + outcome.correct
                scores = {"loss": loss / weight, "accuracy": correct / len(self.training), "steps": losses}
                self._validate(epoch, scores, log, started)
                if config.patience and epoch - self.best["epoch"] >= config.patience:
                    tqdm.write(f"no lower validation loss for {config.patience} epochs: stopped")
                    break

    def _evaluate(self, batch: Sequence[Example], label_smoothing: float = 0.0) -> Outcome:
        config = self.config
        vectors = self.learner.vectors()
        return evaluate(self.model, batch, vectors, config.vectors_before, config.loss, self.cache, label_smoothing)

    def _validate(self, epoch: int, training: dict[str, Any], log: TextIO, started: float) -> None:
        loss = weight = correct = 0.0
        self.learner.train(False)
        with torch.no_grad():
            by_length = sorted(self.validation, key=lambda example: len(example.pairs[0][0]))
            for start in range(0, len(by_length), self.config.batch_size):
                outcome = self._evaluate(by_length[start : start + self.config.batch_size])
                loss, weight, correct = loss + float(outcome.loss), weight + outcome.weight, correct + outcome.correct
        scores = {"loss": loss / weight, "accuracy": correct / len(self.validation)}
        if not math.isfinite(scores["loss"]):
            raise Diverged(f"the validation loss turned into {scores['loss']} in epoch {epoch}")
        better = scores["loss"] < self.best["loss"]
        if better:
            self.best = {"epoch": epoch, **scores, "documents": len(self.validation)}
            self.learned = self.learner.learned()
        row = {"epoch": epoch, "training": training, "validation": scores, "seconds": time.perf_counter() - started}
        print(json.dumps(row), file=log, flush=True)
        before = f"training {_scores(training)}  " if training else "before training".ljust(35)
        tqdm.write(
            f"epoch {epoch:>3}/{self.config.epochs}  {before}validation {_scores(scores)}{'  best' if better else ''}"
        )

    def save(self, output: Path) -> SoftPrompt | None:
        """Write the best prompt so far, and the model or adapter that belongs to it, with their provenance."""
        config = self.config
        self.learner.base.load(self.learned.model)
        total = sum(weight.numel() for weight in self.model.parameters())
        languages = [found[0] for name in config.tasks if (found := re.findall(r"[a-z]{3}_[A-Z][a-z]{3}$", name))]
        metadata: dict[str, Any] = {
            "placement": config.placement,
            "base_model": config.model,
            "base_model_revision": config.revision,
            "embedding_fingerprint": self.lm.fingerprint,
            "tasks": config.tasks,
            "source_languages": languages,
            "shots": config.shots,
            "seed": config.seed,
            "hyperparameters": config.hyperparameters(),
            "training_documents": len(self.training),
            "validation": self.best,
            "tuned_parameters": self.learner.count(),
            "tuned_share": self.learner.count() / total,
            "versions": _versions(),
        }
        if config.placement == "both":
            metadata["num_prefix_tokens"] = config.vectors_before
        if self.learner.start is not None:
            metadata["started_from"] = self.learner.start
        folder = config.model_folder
        if folder is not None:
            self.learner.base.save(folder, metadata)
            if config.tune == "lora":
                metadata["adapter"] = str(folder)
            else:
                metadata |= {"base_model": str(folder), "base_model_revision": None, "tuned_from": config.model}
        if self.learned.vectors is None:
            return None
        prompt = SoftPrompt(self.learned.vectors, metadata, name=output.stem)
        prompt.save(output)
        return prompt

    def _cache_contexts(self, cache: ContextCache) -> ContextCache | None:
        config = self.config
        if config.placement != "suffix" or config.tune != "prompt" or config.context_cache == "off":
            return None
        texts = [context for example in [*self.training, *self.validation] for context, _ in example.pairs]
        if self.config.context_cache == "auto" and not contexts.fits(self.model, texts):
            return None
        cache.add(texts)
        return cache


def _batches(examples: Sequence[Example], order: Sequence[int], size: int) -> Iterator[list[Example]]:
    """Yield the examples in this order, in batches."""
    for start in range(0, len(order), size):
        yield [examples[index] for index in order[start : start + size]]


def _scores(scores: dict[str, float]) -> str:
    return f"loss {scores['loss']:.4f} accuracy {scores['accuracy']:.3f}"


def _versions() -> dict[str, str]:
    libraries = ("lm_eval_spt", "torch", "transformers", "lm_eval", "datasets")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}


def _check_writable(output: Path) -> None:
    """Find out before training whether its result can be written.

    Raises:
        UserError: it can not.
    """
    probe = output.with_name(f".{output.name}.probe")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
        if output.is_dir():
            raise IsADirectoryError(21, "Is a directory")
    except OSError as error:
        raise UserError(f"--output {output} can not be written: {error.strerror}") from error


def _log(path: Path, config: TrainingConfig) -> TextIO:
    log = path.open("w", encoding="utf-8")
    print(json.dumps({"settings": asdict(config)}), file=log, flush=True)
    return log
