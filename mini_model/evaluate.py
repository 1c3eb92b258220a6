#!/usr/bin/env python
"""Score a base model on SIB-200 with prompts that learn English alone; print and save a table with standard errors.

SIB200_DIR=sources/sib-200/data/annotated python -m mini_model.evaluate --model model --output scores

Prompts are trained and scored by the project's own commands, which are printed: four seeds on all training documents,
four on 8 per class, prompts before the text, and the template that all start from; beside them no prompt at all.
Use the test split once, when a model is done: choose between models by the log of their training.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from lm_eval_spt.demo import run
from lm_eval_spt.errors import show_user_errors_in_one_line
from lm_eval_spt.files import write
from lm_eval_spt.transfer.report import transfer_table
from lm_eval_spt.transfer.results import mean_over_runs, read_run, results_files
from mini_model.languages import LANGUAGES, SOURCE

TASKS = ",".join(f"sib200_{name}" for name in LANGUAGES.values())
MAJORITY = 0.25  # of the test documents are about science/technology
# The name of an arm in the table -> the trainer's settings, and the names of the prompt files that they make.
ARMS = {
    "template, not trained": ("--epochs 0 --prompt-length 5", "template"),
    "suffix, all": ("--seed 0 1 2 3", "all-seed*"),
    "suffix, 8 per class": ("--shots 8 --seed 0 1 2 3", "few-seed*"),
    "prefix, all": ("--placement prefix --seed 0 1", "prefix-seed*"),
}


def evaluate(model: str, output: Path) -> str:
    """Train and score every arm, into `output`; return the table, also written to ``table.md``."""
    prompts, places = output / "prompts", {"no prompt": "none"}
    for arm, (settings, files) in ARMS.items():
        name = files.partition("-")[0]
        run(
            f"lm-eval-spt train --model {shlex.quote(model)} --task sib200_{LANGUAGES[SOURCE]} {settings} "
            f"--output {shlex.quote(str(prompts / f'{name}.safetensors'))}"
        )
        places[arm] = files
    run(
        f"lm_eval --model spt --model_args pretrained={shlex.quote(model)} --tasks {TASKS} --batch_size auto "
        f"--output_path {shlex.quote(str(output / 'scores' / 'none'))}"
    )
    run(
        f"lm-eval-spt evaluate --prompts {shlex.quote(str(prompts / '*.safetensors'))} --tasks {TASKS} "
        f"--output {shlex.quote(str(output / 'scores'))}"
    )
    arms = {}
    for arm, files in places.items():
        folders = [output / "scores" / "none"] if files == "none" else sorted((output / "scores").glob(f"*+{files}@*"))
        arms[arm] = mean_over_runs([read_run(path) for folder in folders for path in results_files(folder)])
    table = transfer_table(arms, LANGUAGES[SOURCE], majority=MAJORITY)
    write(output / "table.md", table.encode())
    means = {arm: _means({language: score.value for language, score in scores.items()}) for arm, scores in arms.items()}
    write(output / "means.json", json.dumps(means, indent=1).encode())
    return table


def _means(scores: dict[str, float]) -> dict[str, float]:
    """Return the score of the source language and the mean of the others."""
    others = [score for language, score in scores.items() if language != LANGUAGES[SOURCE]]
    return {"source": scores[LANGUAGES[SOURCE]], "others": sum(others) / len(others)}


def main() -> int:
    show_user_errors_in_one_line()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini", help="model folder; default: the embedded model")
    parser.add_argument("--output", type=Path, default=Path("scores"), help="folder for prompts and scores")
    arguments = parser.parse_args()
    print("\n" + evaluate(arguments.model, arguments.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
