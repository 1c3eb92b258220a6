"""The state of a run: what a checkpoint holds, and what is checked before a run goes on from it."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.train import checkpoint
from lm_eval_spt.train.checkpoint import Many, State, has_form
from lm_eval_spt.train.parameters import Snapshot
from lm_eval_spt.train.run import Steps, TrainingRun

logger = logging.getLogger(__name__)


def save_checkpoint(run: TrainingRun) -> None:
    """Write the state, to go on from here after an interruption; where it can not be written the run goes on."""
    if not run.config.checkpoint or not run.processes.is_main:
        return
    try:
        checkpoint.save(checkpoint.path_of(run.output), state_of(run))
    except UserError as error:
        logger.warning("this run can only be resumed from before epoch %d: %s", len(run.rows), error)


def remove_checkpoint(run: TrainingRun) -> None:
    """Remove the checkpoint of a run that has ended."""
    if run.processes.is_main:
        path = checkpoint.path_of(run.output)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s is not needed any more, but can not be removed (%s)", path, error.strerror or error)


def state_of(run: TrainingRun) -> State:
    """Return all that decides how a run goes on."""
    return {
        "settings": run.config.identity(),
        "parameters": [parameter.detach() for parameter in run.parameters.parameters()],
        "buffers": run.parameters.buffers(),
        **run.optimization.state(),
        "random": _random_state(),
        "rows": run.rows,
        "epoch": vars(run.steps),
        "best": run.best,
        "learned": vars(run.snapshot),
        "recent": run.recent,
    }


def resume(run: TrainingRun, state: State) -> None:
    """Go back to where :func:`state_of` was called.

    Raises:
        UserError: the state is of other settings, or is not a whole one.
    """
    path = checkpoint.path_of(run.output)
    if names := _other_settings(run, state):
        raise UserError(
            f"{path} is of a run with other settings ({', '.join(names)}): give those, or delete it to start anew"
        )
    if (name := _misfit(run, state)) is not None:
        raise UserError(f"{path} does not hold this run's state (its {name} is another): delete it to start anew")
    try:
        run.parameters.load(state["parameters"])
        run.parameters.load_buffers(state["buffers"])
        run.optimization.load(state)
        torch.set_rng_state(state["random"]["cpu"])
        if state["random"]["cuda"]:
            torch.cuda.set_rng_state_all(state["random"]["cuda"])
        run.rows, run.best = state["rows"], state["best"]
        run.steps, run.snapshot = Steps(**state["epoch"]), Snapshot(**state["learned"])
        run.recent = state["recent"]
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        raise UserError(f"{path} does not hold this run's state ({error!r}): delete it to start anew") from None


def _other_settings(run: TrainingRun, state: State) -> list[str]:
    """Return the names of the settings that differ."""
    saved = state.get("settings")
    if not isinstance(saved, dict):
        saved = {}
    return sorted(
        name
        for name, value in run.config.identity().items()
        if isinstance(saved.get(name), Tensor) or saved.get(name, ...) != value
    )


def _misfit(run: TrainingRun, state: State) -> str | None:
    """Return the name of an entry that :func:`state_of` could not have returned after a step; None if all are right."""
    scores = {"loss": float, "accuracy": float}
    row = {"epoch": int, "training": {}, "validation": scores, "seconds": float}
    later = row | {"training": scores | {"steps": Many(float)}}
    own = state_of(run)
    rows, epoch = state.get("rows", []), state.get("epoch", {})
    forms = (
        own
        | run.optimization.state_form()
        | {
            "random": own["random"] | {"cuda": Many(Tensor)},
            "rows": [row, *(later for _ in rows[1:])] if isinstance(rows, list) else [row],
            "epoch": {"losses": Many(float), "weights": Many(int), "correct": Many(int)},
            "best": {"epoch": int, **scores, "documents": int},
            "recent": [own["learned"]["vectors"]] * min(run.config.average_checkpoints or 0, max(0, len(rows) - 1)),
        }
    )
    for name, form in forms.items():
        if name != "settings" and not has_form(state.get(name), form):
            return name
    if [row["epoch"] for row in rows] != list(range(len(rows))):
        return "rows"
    done = state["schedule"]["step"]
    if done < 0 or any(moments["step"] != done for moments in state["optimizer"].values()):
        return "optimizer"
    if len({len(values) for values in epoch.values()}) > 1 or min(epoch["weights"], default=1) < 1:
        return "epoch"
    return None


def _random_state() -> dict[str, Any]:
    """Return the state of the random numbers that a tuned model's dropout draws."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}
