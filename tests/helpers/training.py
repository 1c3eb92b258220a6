"""Small training runs on the embedded model, and ways to stop them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import strategies as st
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.harness.patches import with_loaded
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train import scheduler
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.examples import Example
from lm_eval_spt.train.loop import train

TASK = "mini_topics_eng_Latn"


def settings_for(output: Path, **changes) -> TrainingConfig:
    small = {"epochs": 2, "shots": 2, "validation_shots": 1, "prompt_length": 4, "batch_size": 4}
    return TrainingConfig(**{"model": "mini", "task": TASK, "output": str(output)} | small | changes)


def run(output: Path, **changes) -> tuple[SoftPrompt | None, list[dict]]:
    """Train a small run on the embedded model; returns the prompt and the log's rows, one for each epoch."""
    small = {"epochs": 3, "shots": 4, "validation_shots": 3, "prompt_length": 4, "batch_size": 7, "lr": 0.02}
    prompt = train(TrainingConfig(**{"model": "mini", "task": TASK, "output": str(output)} | small | changes))
    return prompt, [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()[1:]]


def accuracy(**model_args) -> float:
    """What the harness says on the 21 validation documents."""
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    loaded = manager.load([TASK])
    (task,) = loaded["tasks"].values()
    task.config.test_split = None  # then the harness scores the validation split
    lm = SPTLM(device="cpu", **model_args)
    results = simple_evaluate(model=lm, tasks=[TASK], task_manager=with_loaded(manager, loaded), bootstrap_iters=0)
    return results["results"][TASK]["acc,none"]


def examples_of(data: st.DataObject) -> list[Example]:
    ids = st.integers(4, 20479)
    choices = data.draw(st.lists(st.lists(ids, min_size=1, max_size=4), min_size=2, max_size=5, unique_by=tuple))
    contexts = data.draw(st.lists(st.lists(ids, min_size=1, max_size=12), min_size=1, max_size=5))
    return [
        Example(
            tuple((tuple(context), tuple(choice)) for choice in choices), data.draw(st.integers(0, len(choices) - 1))
        )
        for context in contexts
    ]


class Stopped(Exception):
    """Stands for the end of a process at a given moment."""


def stopped_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = scheduler.evaluate
    left = calls

    def evaluate_some(*arguments):
        nonlocal left
        if not left:
            raise Stopped
        left -= 1
        return shared(*arguments)

    monkeypatch.setattr(scheduler, "evaluate", evaluate_some)
