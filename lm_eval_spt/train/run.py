"""A training run: its settings, its examples, what it learns, and how far it has come."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from tqdm import tqdm

from lm_eval_spt.train.base import Base
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.examples import Examples
from lm_eval_spt.train.optimization import Optimization
from lm_eval_spt.train.parameters import TrainableParameters


@dataclass
class Steps:
    """The steps of the epoch that is under way.

    Attributes:
        losses: each step's loss, summed over its batch.
        weights: by what to divide it.
        correct: each step's right answers.
    """

    losses: list[float] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)
    correct: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.losses)

    def add(self, loss: float, weight: int, correct: int) -> None:
        """Add a step."""
        self.losses.append(loss)
        self.weights.append(weight)
        self.correct.append(correct)

    def scores(self, documents: int) -> dict[str, Any]:
        """Return the epoch's training scores over so many documents; none without a step."""
        if not self.losses:
            return {}
        return {
            "loss": sum(self.losses) / sum(self.weights),
            "accuracy": sum(self.correct) / documents,
            "steps": [loss / weight for loss, weight in zip(self.losses, self.weights, strict=True)],
        }


class TrainingRun:
    """A run and its state; :func:`lm_eval_spt.train.loop.training_loop` trains it.

    Args:
        config: the settings.
        base: the base model, which gets an adapter where the settings say so.
        examples: to learn from and to validate with.
        name: begins every line that is printed; empty for a run by itself.

    Attributes:
        parameters: what is learned.
        optimization: moves them.
        rows: the log: validation before training, then each epoch.
        steps: of the epoch that is under way.
        best: epoch and validation scores of the best epoch so far.
        snapshot: what had been learned then.
        recent: the vectors after each of the last epochs, as many as are averaged.
        diverged: why the run can not go on, once a loss was not finite.
    """

    def __init__(self, config: TrainingConfig, base: Base, examples: Examples, name: str = "") -> None:
        self.config, self.base, self.examples, self.name = config, base, examples, name
        self.lm, self.processes = base.lm, base.processes
        self.output = Path(config.output)
        torch.manual_seed(config.seed)
        self.parameters = TrainableParameters(base.lm, config, examples.training)
        self.total_steps = -(-len(examples.training) // config.batch_size) * config.epochs
        self.optimization = Optimization(self.parameters, config, self.total_steps, self.processes)
        self.rows: list[dict[str, Any]] = []
        self.steps = Steps()
        self.best: dict[str, Any] = {"epoch": 0}
        self.snapshot = self.parameters.snapshot()
        self.recent: list[Tensor] = []
        self.diverged: str | None = None

    @property
    def out_of_patience(self) -> bool:
        """Whether validation has not improved for as many epochs as the settings allow."""
        patience = self.config.patience
        return patience is not None and len(self.rows) - 1 - self.best["epoch"] >= patience

    def summary(self) -> str:
        """Return a line on what is tuned and with what."""
        tuned, total = self.parameters.count(), self.parameters.model.size()
        return (
            f"{tuned:,} tuned parameters, {tuned / total:.4%} of {self.config.model} ({total:,}); "
            f"{len(self.examples.training)} training and {len(self.examples.validation)} validation documents"
        )

    def say(self, line: str, file: TextIO | None = None) -> None:
        """Print a line, in the main process alone; default: to standard output."""
        if self.processes.is_main:
            file = file or sys.stdout
            tqdm.write(f"{self.name}: {line}" if self.name else line, file=file)
            file.flush()


def scores_in_words(scores: dict[str, float]) -> str:
    """Return a loss and an accuracy as they are printed."""
    return f"loss {scores['loss']:.4f} accuracy {scores['accuracy']:.3f}"
