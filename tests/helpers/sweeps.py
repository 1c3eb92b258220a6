"""Small sweeps of the embedded model, and what they leave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.sweep.plan import Plan

TARGETS = ["mini_topics_eng_Latn", "mini_topics_deu_Latn"]


LIMIT = 6


def sweep_file(folder: Path, **changes) -> Path:
    """Write a small sweep file; None takes a key away."""
    content = {
        "output": str(folder / "out"),
        "targets": TARGETS,
        "settings": {
            "model": "mini", "task": "mini_topics_eng_Latn", "device": "cpu",
            "epochs": 1, "shots": 2, "validation_shots": 1, "prompt_length": 3,
        },
        "axes": {"seed": [0, 1]},
        "evaluate": {"limit": LIMIT},
    }  # fmt: skip
    content |= changes
    path = folder / "tiny.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in content.items() if value is not None}, sort_keys=False)
    )
    return path


def record(output: Path, run: str) -> dict:
    return json.loads((output / "runs" / f"{run}.json").read_text())


def scores(output: Path, run: str) -> dict:
    (path,) = (output / "results" / run).glob("results_*.json")
    return json.loads(path.read_text())["results"]


def score(lm: SPTLM, tasks=TARGETS) -> dict:
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    return simple_evaluate(model=lm, tasks=list(tasks), task_manager=manager, limit=LIMIT, bootstrap_iters=0)["results"]


def forbid_training(monkeypatch) -> None:
    monkeypatch.setattr("lm_eval_spt.sweep.execute.train_grid", None)


def copy_sweep(done: tuple[Path, Plan], folder: Path) -> Path:
    """A copy of the sweep that has run, to change."""
    shutil.copytree(done[1].output, folder / "out")
    content = yaml.safe_load(done[0].read_text()) | {"output": str(folder / "out")}
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file
