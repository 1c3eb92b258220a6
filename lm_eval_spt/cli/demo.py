"""``make demo``: learn prompts on English, score them in 21 languages with the harness, compare them.

Every command is printed before it runs, so that it can be repeated by hand. Nothing is downloaded.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from lm_eval_spt.analysis.report import transfer_table
from lm_eval_spt.analysis.results import mean_over_runs, read_run, results_files
from lm_eval_spt.common.files import write

SOURCE = "eng_Latn"
FOLDER = Path("results/demo")

ARMS = {
    "no prompt": ("pretrained=mini", "mini_topics"),
    "instruction": ("pretrained=mini", "mini_topics_instruct"),
    "prefix prompt": (f"prompt={FOLDER}/{SOURCE}-placementprefix.safetensors", "mini_topics"),
    "suffix prompt": (f"prompt={FOLDER}/{SOURCE}-placementsuffix.safetensors", "mini_topics"),
}


def run(command: str) -> None:
    """Print a command and run it with the programs beside this interpreter; a failure ends the demo."""
    print(f"\n$ {command}", flush=True)
    program, *arguments = shlex.split(command)
    status = subprocess.run([Path(sys.executable).parent / program, *arguments], check=False).returncode
    if status:
        raise SystemExit(status)


def main() -> None:
    """Train two prompts, score four arms, and compare them."""
    run(
        f"lm-eval-spt train --model mini --task mini_topics_{SOURCE} --placement prefix suffix "
        f"--output {FOLDER}/{SOURCE}.safetensors"
    )
    places = {name: FOLDER / name.replace(" ", "_") for name in ARMS}
    for name, (model_args, tasks) in ARMS.items():
        for old in places[name].glob("**/results_*.json"):
            old.unlink()
        run(
            f"lm_eval --model spt --model_args {model_args} --tasks {tasks} --batch_size auto "
            f"--output_path {places[name]}"
        )
    named = " ".join(shlex.quote(f"{name}={place}") for name, place in places.items())
    run(f"lm-eval-spt leaderboard {named} --source {SOURCE} --output {FOLDER}/leaderboard.html")

    arms = {name: mean_over_runs([read_run(path) for path in results_files(place)]) for name, place in places.items()}
    table = transfer_table(arms, SOURCE, majority=1 / 7)
    write(FOLDER / "table.md", table.encode())
    print(f"\nAccuracy in percent, the prompts learned on {SOURCE} alone:\n\n{table}")
    print(f"saved in {FOLDER}/table.md; to look at more closely: {FOLDER}/leaderboard.html")


if __name__ == "__main__":
    main()
