"""``make demo``: learn prompts on English, score them in many languages with the harness, compare.

Every command is printed before it runs, so that it can be repeated by hand. With the embedded model nothing is
downloaded.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lm_eval_spt.cli.command import execute
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.paths import MINI

SOURCE = "eng_Latn"
FOLDER = Path("results/demo")


@dataclass(frozen=True)
class Task:
    """What a demo learns from and scores.

    Attributes:
        targets: the group that is scored.
        instruction: the same documents with an instruction.
        training: settings of training, beside the model and the placement.
        majority: share of the largest class.
    """

    targets: str
    instruction: str
    training: str
    majority: float


TASKS = {
    "mini_topics": Task("mini_topics", "mini_topics_instruct", f"--task mini_topics_{SOURCE}", 1 / 7),
    # Not all 205 languages and 701 documents, so that it stays short.
    "sib200": Task("sib200_31", "sib200_instruct_31", f"--task sib200_{SOURCE} --shots 8", 0.25),
}


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Learn two prompts on English, score them and two baselines in many languages, and compare them. "
        f"With the embedded model this takes minutes on a CPU, and downloads nothing. Writes to {FOLDER}.",
        epilog=f"example: {prog} --model google/gemma-3-270m --task sib200 --dtype bfloat16",
    )
    parser.add_argument("--model", default=MINI, help="base model: a Hub id, a folder or a .gguf file (default: mini)")
    parser.add_argument(
        "--task",
        choices=TASKS,
        default="mini_topics",
        help="mini_topics (the default): 84 documents in each of 21 languages. sib200: learned from 8 documents of "
        "each class, scored on 204 documents in each of 31 languages",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "auto"), help="of the model; default: as it is stored"
    )
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Train two prompts, score four arms, and compare them."""
    from lm_eval_spt.analysis.report import transfer_table
    from lm_eval_spt.analysis.results import mean_over_runs, read_run, results_files
    from lm_eval_spt.common.files import write

    task, model = TASKS[arguments.task], arguments.model
    dtype = arguments.dtype
    if "," in model:
        raise UserError(f"--model is {model!r}, expected a name without commas (they separate model_args)")
    folder = FOLDER
    if (model, arguments.task) != (MINI, "mini_topics"):
        folder = FOLDER / f"{Path(model).name.removesuffix('.gguf')}-{arguments.task}"
    run_printed(
        f"lm-eval-spt train --model {shlex.quote(model)} {f'--dtype {dtype} ' if dtype else ''}{task.training} "
        f"--placement prefix suffix --output {shlex.quote(f'{folder}/{SOURCE}.safetensors')}"
    )
    base = f"pretrained={model}" + (f",dtype={dtype}" if dtype else "")
    arms = {
        "no prompt": (base, task.targets),
        "instruction": (base, task.instruction),
        "prefix prompt": (f"{base},prompt={folder}/{SOURCE}-placement_prefix.safetensors", task.targets),
        "suffix prompt": (f"{base},prompt={folder}/{SOURCE}-placement_suffix.safetensors", task.targets),
    }
    places = {name: folder / name.replace(" ", "_") for name in arms}
    for name, (model_args, tasks) in arms.items():
        for old in [*places[name].glob("**/results_*.json"), *places[name].glob("**/samples_*.jsonl")]:
            old.unlink()
        run_printed(
            f"lm_eval --model spt --model_args {shlex.quote(model_args)} --tasks {tasks} --batch_size auto "
            f"--log_samples --output_path {shlex.quote(str(places[name]))}"
        )
    named = " ".join(shlex.quote(f"{name}={place}") for name, place in places.items())
    page = folder / "leaderboard.html"
    run_printed(f"lm-eval-spt leaderboard {named} --source {SOURCE} --output {shlex.quote(str(page))}")

    runs = {name: mean_over_runs([read_run(path) for path in results_files(place)]) for name, place in places.items()}
    table = transfer_table(runs, SOURCE, majority=task.majority)
    write(folder / "table.md", table.encode())
    print(f"\nAccuracy in percent, the prompts learned on {SOURCE} alone:\n\n{table}")
    print(f"saved in {folder}/table.md; to look at more closely: {page}")


def run_printed(command: str) -> None:
    """Print a command and run it with the programs beside this interpreter; a failure ends this one as well."""
    print(f"\n$ {command}", flush=True)
    program, *arguments = shlex.split(command)
    status = subprocess.run([Path(sys.executable).parent / program, *arguments], check=False).returncode
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    sys.exit(execute(lambda: sys.modules[__name__], "python -m lm_eval_spt.cli.demo", sys.argv[1:]))
