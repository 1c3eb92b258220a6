#!/usr/bin/env python
"""Score a base model on SIB-200 with prompts that learn English alone; print and save tables with standard errors.

SIB200_DIR=sources/sib-200/data/annotated python -m recipes.mini_model.evaluate --model model --output scores

Prompts are trained and scored by the project's own commands, which are printed: four seeds on all training documents,
four on 8 per class, a longer prompt, prompts before the text, and the template that all start from; beside them the
model without a prompt, and with the harness's usual instruction.
Use the test split once, when a model is done: choose between models by the log of their training.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from lm_eval_spt.analysis.report import transfer_table
from lm_eval_spt.analysis.results import Score, mean_over_runs, read_run, results_files
from lm_eval_spt.cli.demo import run_printed
from lm_eval_spt.common.errors import show_user_errors_in_one_line
from lm_eval_spt.common.files import write
from recipes.mini_model.languages import LANGUAGES, SOURCE

MAJORITY = 0.25  # of the test documents are about science/technology
# The name of an arm in the table -> the group of tasks that the model is scored on without a prompt.
PLAIN = {"no prompt": "sib200", "instruction": "sib200_instruct"}
# The name of an arm in the table -> the trainer's settings, and the names of the prompt files that they make.
TRAINED = {
    "template, not trained": ("--epochs 0 --prompt-length 5", "template"),
    "suffix, all (4 seeds)": ("--seed 0 1 2 3", "all-seed*"),
    "suffix, 8 per class (4 seeds)": ("--shots 8 --seed 0 1 2 3", "few-seed*"),
    "suffix, P = 50 (1 seed)": ("--prompt-length 50", "long"),
    "prefix (2 seeds)": ("--placement prefix --seed 0 1", "prefix-seed*"),
}


def score(model: str, output: Path) -> None:
    """Train and score every arm: prompts into ``output/prompts``, the harness's results into ``output/scores``."""
    prompts, scores, source = output / "prompts", output / "scores", LANGUAGES[SOURCE]
    for settings, files in TRAINED.values():
        run_printed(
            f"lm-eval-spt train --model {shlex.quote(model)} --task sib200_{source} {settings} "
            f"--output {shlex.quote(str(prompts / files.partition('-')[0]))}.safetensors"
        )
    for group in PLAIN.values():
        run_printed(
            f"lm_eval --model spt --model_args pretrained={shlex.quote(model)} --tasks {_tasks(group)} "
            f"--batch_size auto --output_path {shlex.quote(str(scores / group))}"
        )
    run_printed(
        f"lm-eval-spt evaluate --prompts {shlex.quote(str(prompts))}/*.safetensors --tasks {_tasks('sib200')} "
        f"--model-args pretrained={shlex.quote(model)} --output {shlex.quote(str(scores))}"
    )


def tables(output: Path) -> str:
    """Write ``acc.md``, ``macro_f1.md`` and ``means.json`` from the results in ``output/scores``; return the first."""
    places = PLAIN | {arm: f"*+{files}@*" for arm, (_, files) in TRAINED.items()}
    runs = {
        arm: [read_run(file) for folder in sorted((output / "scores").glob(place)) for file in results_files(folder)]
        for arm, place in places.items()
    }
    written = {}
    for metric, majority in (("acc", MAJORITY), ("macro_f1", None)):
        arms = {arm: mean_over_runs(found, metric) for arm, found in runs.items()}
        written[metric] = transfer_table(arms, LANGUAGES[SOURCE], majority)
        write(output / f"{metric}.md", written[metric].encode())
    means = {arm: [_means(mean_over_runs([one])) for one in found] for arm, found in runs.items()}
    write(output / "means.json", (json.dumps(means, indent=1) + "\n").encode())
    return written["acc"]


def _tasks(group: str) -> str:
    return ",".join(f"{group}_{name}" for name in LANGUAGES.values())


def _means(scores: dict[str, Score]) -> dict[str, float]:
    """Return the accuracy in the source language and the mean of the others."""
    others = [score.value for language, score in scores.items() if language != LANGUAGES[SOURCE]]
    return {"source": scores[LANGUAGES[SOURCE]].value, "others": sum(others) / len(others)}


def main() -> int:
    show_user_errors_in_one_line()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini", help="model folder; default: the embedded model")
    parser.add_argument("--output", type=Path, default=Path("scores"), help="folder for prompts and scores")
    arguments = parser.parse_args()
    score(arguments.model, arguments.output)
    print("\n" + tables(arguments.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
