"""One step of a run: gradients from all processes, clipping, AdamW, and the schedule of the learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.parameters import TrainableParameters
from lm_eval_spt.train.processes import Processes


def learning_rate(step: int, warmup: int, steps: int) -> float:
    """Return the share of the peak learning rate after `step` steps of `steps`, of which the first `warmup` rise."""
    if step < warmup:
        return step / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))


class Optimization:
    """AdamW with clipped gradients and a learning rate that rises linearly and then falls linearly to 0.

    Args:
        parameters: what is learned.
        config: the settings.
        steps: how many steps the whole run takes.
        processes: the processes that share a step's batch.
    """

    def __init__(
        self, parameters: TrainableParameters, config: TrainingConfig, steps: int, processes: Processes
    ) -> None:
        # One pass over the memory for each step, where AdamW's default takes ten.
        self._optimizer = torch.optim.AdamW(parameters.groups(), weight_decay=config.weight_decay, fused=True)
        # transformers has this schedule, too, but in a module that imports PEFT, which takes a second or two.
        warmup = round(config.warmup_ratio * steps)
        self._schedule = LambdaLR(self._optimizer, lambda step: learning_rate(step, warmup, steps))
        self._learned = parameters
        self._parameters = parameters.parameters()
        self._clip = config.clip
        self._processes = processes

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        self._optimizer.zero_grad(set_to_none=False)

    def sum_over_processes(self, *sums: Tensor) -> None:
        """Replace the gradients, and other sums, by their sums over all processes."""
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        self._processes.sum(*sums, *gradients)

    def step(self) -> None:
        """Move the parameters by their gradients, and the schedule by a step."""
        nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._optimizer.step()
        self._learned.model.write_back()
        self._schedule.step()

    def state(self) -> dict[str, Any]:
        """Return AdamW's moments, and how far the schedule is with which learning rates."""
        return {
            "optimizer": self._optimizer.state_dict()["state"],
            # The schedule itself knows its rates only from its first step on, which may not come in this process.
            "schedule": {
                "step": self._schedule.last_epoch,
                "lr": [group["lr"] for group in self._optimizer.param_groups],
            },
        }

    def state_form(self) -> dict[str, Any]:
        """Return the form of :meth:`state` after a step or more, as :func:`~checkpoint.has_form` takes it."""
        tuned = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        return {
            "optimizer": {
                str(number): {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
                for number, parameter in enumerate(tuned)
            },
            "schedule": {"step": int, "lr": [float for _ in self._optimizer.param_groups]},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state` returned."""
        optimizer = self._optimizer.state_dict()
        optimizer["state"] = {int(number): moments for number, moments in state["optimizer"].items()}
        self._optimizer.load_state_dict(optimizer)
        schedule = state["schedule"]
        self._schedule.load_state_dict({**self._schedule.state_dict(), "last_epoch": schedule["step"]})
        for group, lr in zip(self._optimizer.param_groups, schedule["lr"], strict=True):
            group["lr"] = lr
