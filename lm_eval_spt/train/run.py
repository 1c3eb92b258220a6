"""One training run: what it learns, how far it is, and what it wants to know next."""

from __future__ import annotations

import logging
import math
import platform
import re
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train import checkpoint
from lm_eval_spt.train.checkpoint import Many, has_form
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.examples import Examples
from lm_eval_spt.train.log import TrainingLog
from lm_eval_spt.train.mixture import epochs
from lm_eval_spt.train.objective import LossRequest, Outcome, weight_of
from lm_eval_spt.train.parameters import Snapshot, TrainableParameters
from lm_eval_spt.train.processes import Processes

logger = logging.getLogger(__name__)


class Diverged(Exception):
    """The loss is not a number any more."""


@dataclass(frozen=True)
class BatchRequest:
    """What a run waits for: the outcome of `asking`; for training with the gradient of its loss over `divisor`."""

    asking: LossRequest
    divisor: int
    training: bool


Program = Generator[BatchRequest, Outcome, None]
"""A run from where it stands to its end. It yields what it wants to know and is sent the outcome."""


class TrainingRun:
    """A run's settings, parameters and state, and the best prompt so far.

    Args:
        config: the settings.
        lm: holds the base model, which gets an adapter where the settings say so.
        examples: to learn from and to validate with.
        processes: those that share the run's batches.
    """

    def __init__(
        self,
        config: TrainingConfig,
        lm: SPTLM,
        examples: Examples,
        processes: Processes = Processes(),  # noqa: B008
    ) -> None:
        self.config, self.lm, self.examples, self.processes = config, lm, examples, processes
        torch.manual_seed(config.seed)
        self.learner = TrainableParameters(lm, config, examples.training)
        self.optimizer = self.learner.optimizer()
        self.steps = -(-len(examples.training) // config.batch_size) * config.epochs
        warmup = round(config.warmup_ratio * self.steps)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, warmup, self.steps)
        self.best: dict[str, Any] = {"epoch": 0}
        self.learned = self.learner.learned()
        self.output = Path(config.output)
        self.rows: list[dict[str, Any]] = []  # the log: validation before training, and each epoch
        # Of the epoch that is under way: each step's loss, weight and right answers.
        self.losses: list[float] = []
        self.weights: list[int] = []
        self.correct: list[int] = []
        self._seconds = 0.0
        self._log: TrainingLog | None = None

    def summary(self) -> str:
        """Return a line on what is tuned and with what."""
        tuned, total = self.learner.count(), sum(weight.numel() for weight in self.lm.model.parameters())
        return (
            f"{tuned:,} tuned parameters, {tuned / total:.4%} of {self.config.model} ({total:,}); "
            f"{len(self.examples.training)} training and {len(self.examples.validation)} validation documents"
        )

    # -- the program ---------------------------------------------------------------------------------------------------

    def program(self, bar: tqdm | None = None) -> Program:
        """Train for all epochs, or until patience ends, keeping what has the lowest validation loss.

        Raises:
            Diverged: a loss turned into NaN or infinity.
        """
        config, training = self.config, self.examples.training
        self._started = time.perf_counter() - self._seconds
        if self.processes.is_main:
            self._log = TrainingLog(self.output.with_suffix(".jsonl"), [{"settings": config.record()}, *self.rows])
        if not self.rows:
            yield from self._validate({})
        orders = epochs(self.examples.sizes, config.mixture, config.seed)
        for epoch in range(1, config.epochs + 1):
            order = next(orders)
            if epoch < len(self.rows):
                continue  # done before an interruption
            for start in range(len(self.losses) * config.batch_size, len(order), config.batch_size):
                yield from self._step([training[index] for index in order[start : start + config.batch_size]])
                if bar is not None:
                    bar.update()
                if config.checkpoint_steps and len(self.losses) % config.checkpoint_steps == 0:
                    self.save_checkpoint()
            weight = sum(self.weights)
            scores = {
                "loss": sum(self.losses) / weight,
                "accuracy": sum(self.correct) / len(order),
                "steps": [loss / own for loss, own in zip(self.losses, self.weights, strict=True)],
            }
            yield from self._validate(scores)
            self.losses, self.weights, self.correct = [], [], []
            self.save_checkpoint()
            if config.patience and epoch - self.best["epoch"] >= config.patience:
                self._say(f"no lower validation loss for {config.patience} epochs: stopped")
                break

    def _step(self, batch: list[Any]) -> Program:
        """Move the parameters once: by the gradient of a batch, which may be read in parts and by several processes."""
        config = self.config
        self.learner.train()
        self.optimizer.zero_grad(set_to_none=False)
        divisor = weight_of(batch, config.loss)
        sums = torch.zeros(2, device=self.lm.device)
        own = self.processes.share(batch)
        part = -(-len(own) // config.gradient_accumulation_steps) or 1
        for start in range(0, len(own), part):
            outcome = yield self._wanted(own[start : start + part], divisor, config.label_smoothing)
            sums += torch.tensor([float(outcome.loss), outcome.correct], device=sums.device)
        parameters = self.learner.parameters()
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.processes.sum(sums, *(parameter.grad for parameter in parameters if parameter.grad is not None))
        loss, correct = sums.tolist()
        if not math.isfinite(loss):
            raise Diverged(f"the training loss turned into {loss} in epoch {len(self.rows)}")
        nn.utils.clip_grad_norm_(parameters, config.clip)
        self.optimizer.step()
        self.schedule.step()
        self.losses.append(loss)
        self.weights.append(divisor)
        self.correct.append(round(correct))

    def _validate(self, training: dict[str, Any]) -> Program:
        config, epoch = self.config, len(self.rows)
        self.learner.train(False)
        by_length = sorted(self.examples.validation, key=lambda example: len(example.pairs[0][0]))
        sums = torch.zeros(3, device=self.lm.device)
        own = self.processes.share(by_length)
        for start in range(0, len(own), config.batch_size):
            outcome = yield self._wanted(own[start : start + config.batch_size], 1, training=False)
            sums += torch.tensor([float(outcome.loss), outcome.weight, outcome.correct], device=sums.device)
        self.processes.sum(sums)
        loss, weight, correct = sums.tolist()
        scores = {"loss": loss / weight, "accuracy": correct / len(by_length)}
        if not math.isfinite(scores["loss"]):
            raise Diverged(f"the validation loss turned into {scores['loss']} in epoch {epoch}")
        better = scores["loss"] < self.best.get("loss", math.inf)
        if better:
            self.best = {"epoch": epoch, **scores, "documents": len(by_length)}
            self.learned = self.learner.learned()
        self._seconds = time.perf_counter() - self._started
        self.rows.append({"epoch": epoch, "training": training, "validation": scores, "seconds": self._seconds})
        if self._log is not None:
            self._log.add(self.rows[-1])
        before = f"training {scores_of(training)}  " if training else "before training".ljust(35)
        self._say(
            f"epoch {epoch:>3}/{config.epochs}  {before}validation {scores_of(scores)}{'  best' if better else ''}"
        )

    def _wanted(
        self, examples: Sequence[Any], divisor: int, label_smoothing: float = 0.0, *, training: bool = True
    ) -> BatchRequest:
        config = self.config
        vectors = self.learner.vectors()
        return BatchRequest(
            LossRequest(examples, vectors, config.vectors_before, config.loss, label_smoothing), divisor, training
        )

    # -- what it leaves ------------------------------------------------------------------------------------------------

    def save(self, *, diverged: str | None = None, interrupted: bool = False) -> SoftPrompt | None:
        """Write the best prompt so far, and the model or adapter that belongs to it, with their provenance.

        Args:
            diverged: why the run came to no good end, if it did.
            interrupted: whether it came to no end at all, so that it can not be taken for a finished one.
        """
        config = self.config
        self.learner.base.load(self.learned.model)
        total = sum(weight.numel() for weight in self.lm.model.parameters())
        languages = [found[0] for name in config.tasks if (found := re.findall(r"[a-z]{3}_[A-Z][a-z]{3}$", name))]
        metadata: dict[str, Any] = {
            "placement": config.placement,
            "base_model": config.model,
            "base_model_revision": config.revision,
            "task_type": "SEQ_2_SEQ_LM" if self.lm.model.config.is_encoder_decoder else "CAUSAL_LM",
            "embedding_fingerprint": self.lm.fingerprint,
            "tasks": config.tasks,
            "source_languages": languages,
            "shots": config.shots,
            "seed": config.seed,
            "hyperparameters": config.hyperparameters(),
            "training_documents": len(self.examples.training),
            "validation": self.best,
            "tuned_parameters": self.learner.count(),
            "tuned_share": self.learner.count() / total,
            "versions": _versions(),
        }
        if config.placement == "both":
            metadata["num_prefix_tokens"] = config.vectors_before
        if diverged is not None:
            metadata["diverged"] = diverged
        if interrupted:
            metadata["interrupted"] = True
        if self.learner.start is not None:
            metadata["started_from"] = self.learner.start
        folder = config.model_folder
        if folder is not None:
            if self.processes.is_main:
                self.learner.base.save(folder, metadata)
            if config.tune == "lora":
                metadata["adapter"] = str(folder)
            else:
                metadata |= {"base_model": str(folder), "base_model_revision": None, "tuned_from": config.model}
        if self.learned.vectors is None:
            return None
        prompt = SoftPrompt(self.learned.vectors, metadata, name=self.output.stem)
        if self.processes.is_main:
            prompt.save(self.output)
        return prompt

    def save_checkpoint(self) -> None:
        """Write the state, to go on from here after an interruption; where it can not be written the run goes on."""
        if not self.config.checkpoint or not self.processes.is_main:
            return
        try:
            checkpoint.save(checkpoint.path_of(self.output), self.state())
        except UserError as error:
            logger.warning("this run can only be resumed from before epoch %d: %s", len(self.rows), error)

    def finish(self) -> None:
        """Remove what only an interruption would need."""
        if self.processes.is_main:
            path = checkpoint.path_of(self.output)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("%s is not needed any more, but can not be removed (%s)", path, error.strerror or error)

    def state(self) -> checkpoint.State:
        """Return all that decides how the run goes on."""
        return {
            "settings": self.config.identity(),
            "parameters": [parameter.detach() for parameter in self.learner.parameters()],
            "buffers": self.learner.buffers(),
            "optimizer": self.optimizer.state_dict()["state"],
            # The schedule itself knows its rates only from its first step on, which may not come in this process.
            "schedule": {
                "step": self.schedule.last_epoch,
                "lr": [group["lr"] for group in self.optimizer.param_groups],
            },
            "random": _random_state(),
            "rows": self.rows,
            "epoch": {"losses": self.losses, "weights": self.weights, "correct": self.correct},
            "best": self.best,
            "learned": {"vectors": self.learned.vectors, "model": self.learned.model},
        }

    def resume(self, state: checkpoint.State) -> None:
        """Go back to where :meth:`state` was taken.

        Raises:
            UserError: it is that of another configuration.
        """
        path = checkpoint.path_of(self.output)
        found, own = state.get("settings"), self.config.identity()
        if not isinstance(found, dict):
            found = {}
        if names := sorted(
            name for name in own if isinstance(found.get(name), Tensor) or found.get(name, ...) != own[name]
        ):
            raise UserError(
                f"{path} is of a run with other settings ({', '.join(names)}): give those, or delete it to start anew"
            )
        if (other := self._other_than_own(state)) is not None:
            raise UserError(f"{path} does not hold this run's state (its {other} is another): delete it to start anew")
        try:
            for parameter, value in zip(self.learner.parameters(), state["parameters"], strict=True):
                parameter.data.copy_(value)
            self.learner.load_buffers(state["buffers"])
            optimizer = self.optimizer.state_dict()
            optimizer["state"] = {int(number): of for number, of in state["optimizer"].items()}
            self.optimizer.load_state_dict(optimizer)
            schedule = state["schedule"]
            self.schedule.load_state_dict({**self.schedule.state_dict(), "last_epoch": schedule["step"]})
            for group, lr in zip(self.optimizer.param_groups, schedule["lr"], strict=True):
                group["lr"] = lr
            torch.set_rng_state(state["random"]["cpu"])
            if state["random"]["cuda"]:
                torch.cuda.set_rng_state_all(state["random"]["cuda"])
            self.rows, self.best = state["rows"], state["best"]
            epoch = state["epoch"]
            self.losses, self.weights, self.correct = epoch["losses"], epoch["weights"], epoch["correct"]
            self.learned = Snapshot(state["learned"]["vectors"], state["learned"]["model"])
            self._seconds = self.rows[-1]["seconds"]
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            raise UserError(f"{path} does not hold this run's state ({error!r}): delete it to start anew") from None

    def _other_than_own(self, state: checkpoint.State) -> str | None:
        """Return the name of an entry that is not what :meth:`state` returns after an epoch; None where all are."""
        scores = {"loss": float, "accuracy": float}
        row = {"epoch": int, "training": {}, "validation": scores, "seconds": float}
        later = row | {"training": scores | {"steps": Many(float)}}
        tuned = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        own = self.state()
        rows, epoch = state.get("rows", []), state.get("epoch", {})
        forms = own | {
            "optimizer": {
                str(number): {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
                for number, parameter in enumerate(tuned)
            },
            "schedule": {"step": int, "lr": [float for _ in self.optimizer.param_groups]},
            "random": own["random"] | {"cuda": Many(Tensor)},
            "rows": [row, *(later for _ in rows[1:])] if isinstance(rows, list) else [row],
            "epoch": {"losses": Many(float), "weights": Many(int), "correct": Many(int)},
            "best": {"epoch": int, **scores, "documents": int},
        }
        for name, form in forms.items():
            if name != "settings" and not has_form(state.get(name), form):
                return name
        if [row["epoch"] for row in rows] != list(range(len(rows))):
            return "rows"
        done = state["schedule"]["step"]
        if done < 0 or any(of["step"] != done for of in state["optimizer"].values()):
            return "optimizer"
        if len({len(of) for of in epoch.values()}) > 1 or min(epoch["weights"], default=1) < 1:
            return "epoch"
        return None

    def _say(self, line: str) -> None:
        if self.processes.is_main:
            tqdm.write(line)


def scores_of(scores: dict[str, float]) -> str:
    """Return a loss and an accuracy in words."""
    return f"loss {scores['loss']:.4f} accuracy {scores['accuracy']:.3f}"


def _random_state() -> dict[str, Any]:
    """Return the state of the random numbers that a tuned model's dropout draws."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _versions() -> dict[str, str]:
    libraries = ("lm_eval_spt", "torch", "transformers", "lm_eval", "datasets")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}
