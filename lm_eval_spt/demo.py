"""``make demo``: learn a prompt on English, score it in 21 languages with the harness, print and save the table.

Every command is printed before it runs, so that it can be repeated by hand. Nothing is downloaded.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from lm_eval_spt.files import write
from lm_eval_spt.transfer.report import transfer_table
from lm_eval_spt.transfer.results import mean_over_runs, read_run, results_files

SOURCE = "eng_Latn"
FOLDER = Path("results/demo")
PROMPT = FOLDER / f"{SOURCE}.safetensors"

ARMS = {
    "no prompt": ("pretrained=mini", "mini_topics"),
    "instruction": ("pretrained=mini", "mini_topics_instruct"),
    "soft prompt": (f"prompt={PROMPT}", "mini_topics"),
}


def run(*command: str) -> None:
    """Print a command and run it with this interpreter's environment; a failure ends the demo."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    beside = Path(sys.executable).parent / command[0]
    program = [str(beside)] if beside.exists() else [sys.executable, command[0]]
    status = subprocess.run([*program, *command[1:]], check=False).returncode
    if status:
        raise SystemExit(status)


def main() -> None:
    """Train, score three arms, and compare them."""
    run("lm-eval-spt", "train", "--model", "mini", "--task", f"mini_topics_{SOURCE}", "--output", str(PROMPT))
    arms = {}
    for name, (model_args, tasks) in ARMS.items():
        place = FOLDER / name.replace(" ", "_")
        for old in place.glob("**/results_*.json"):
            old.unlink()
        command = (
            f"lm_eval --model spt --model_args {model_args} --tasks {tasks} --batch_size auto --output_path {place}"
        )
        run(*shlex.split(command))
        arms[name] = mean_over_runs([read_run(path) for path in results_files(place)])
    table = transfer_table(arms, SOURCE, majority=1 / 7)
    write(FOLDER / "table.md", table.encode())
    print(f"\nAccuracy in percent, the prompt learned on {SOURCE} alone:\n\n{table}\nsaved in {FOLDER / 'table.md'}")


if __name__ == "__main__":
    main()
