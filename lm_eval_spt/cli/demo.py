"""``lm-eval-spt demo``, ``make demo``: learn prompts on English, score them in 21 languages with the harness, compare.

Every command is printed before it runs, so that it can be repeated by hand. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from lm_eval_spt.cli.command import execute

SOURCE = "eng_Latn"
FOLDER = Path("results/demo")

ARMS = {
    "no prompt": ("pretrained=mini", "mini_topics"),
    "instruction": ("pretrained=mini", "mini_topics_instruct"),
    "prefix prompt": (f"prompt={FOLDER}/{SOURCE}-placement_prefix.safetensors", "mini_topics"),
    "suffix prompt": (f"prompt={FOLDER}/{SOURCE}-placement_suffix.safetensors", "mini_topics"),
}


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the command's parser."""
    return argparse.ArgumentParser(
        prog=prog,
        description="Learn two prompts on English with the embedded model, score them and two baselines in 21 "
        f"languages, and compare them. Takes minutes on a CPU, downloads nothing, writes to {FOLDER}.",
        epilog=f"example: {prog}",
    )


def run(arguments: argparse.Namespace) -> None:
    """Train two prompts, score four arms, and compare them."""
    from lm_eval_spt.analysis.report import transfer_table
    from lm_eval_spt.analysis.results import mean_over_runs, read_run, results_files
    from lm_eval_spt.common.files import write

    run_printed(
        f"lm-eval-spt train --model mini --task mini_topics_{SOURCE} --placement prefix suffix "
        f"--output {FOLDER}/{SOURCE}.safetensors"
    )
    places = {name: FOLDER / name.replace(" ", "_") for name in ARMS}
    for name, (model_args, tasks) in ARMS.items():
        for old in places[name].glob("**/results_*.json"):
            old.unlink()
        run_printed(
            f"lm_eval --model spt --model_args {model_args} --tasks {tasks} --batch_size auto "
            f"--output_path {places[name]}"
        )
    named = " ".join(shlex.quote(f"{name}={place}") for name, place in places.items())
    run_printed(f"lm-eval-spt leaderboard {named} --source {SOURCE} --output {FOLDER}/leaderboard.html")

    arms = {name: mean_over_runs([read_run(path) for path in results_files(place)]) for name, place in places.items()}
    table = transfer_table(arms, SOURCE, majority=1 / 7)
    write(FOLDER / "table.md", table.encode())
    print(f"\nAccuracy in percent, the prompts learned on {SOURCE} alone:\n\n{table}")
    print(f"saved in {FOLDER}/table.md; to look at more closely: {FOLDER}/leaderboard.html")


def run_printed(command: str) -> None:
    """Print a command and run it with the programs beside this interpreter; a failure ends this one as well."""
    print(f"\n$ {command}", flush=True)
    program, *arguments = shlex.split(command)
    status = subprocess.run([Path(sys.executable).parent / program, *arguments], check=False).returncode
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    sys.exit(execute(lambda: sys.modules[__name__], "python -m lm_eval_spt.cli.demo", sys.argv[1:]))
