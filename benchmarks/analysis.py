"""Time and memory of `transfer` and `leaderboard` with many runs: python -m benchmarks.analysis

It makes up 200 runs (50 arms of four seeds) of 205 languages and 204 documents, with compact samples, and gives them to
both commands in a process of their own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from lm_eval_spt.analysis.languages import languages

PROGRAM = """
import pathlib, re, resource, sys
from lm_eval_spt.cli import main
main(sys.argv[1:])
status = pathlib.Path("/proc/self/status")  # a child's ru_maxrss begins with its parent's
print(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1] if status.exists() else 0, file=sys.stderr)
print(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), file=sys.stderr)
"""


def make_runs(folder: Path, arms: int, seeds: int, documents: int) -> list[str]:
    """Write results and samples, and return the commands' arguments."""
    codes = list(languages())
    random = np.random.default_rng(0)
    labels, hard = random.integers(0, 7, documents), random.random(documents)
    level = random.uniform(0.3, 0.7, len(codes))
    tasks = [f"sib200_{code}" for code in codes]
    texts = {
        "task": pa.array(np.repeat(tasks, documents)).dictionary_encode(),
        "doc_id": pa.array(
            np.tile([str(1000 + number) for number in range(documents)], len(codes))
        ).dictionary_encode(),
        "target": pa.array(np.tile(labels.astype(str), len(codes))).dictionary_encode(),
    }
    for arm in range(arms):
        for seed in range(seeds):
            chance = level[:, None] + 0.002 * arm + random.normal(0, 0.015) + random.normal(0, 0.01, (len(codes), 1))
            right = 0.6 * hard + 0.4 * random.random((len(codes), documents)) < chance
            predicted = np.where(right, labels, (labels + random.integers(1, 7, right.shape)) % 7)
            run = folder / f"arm{arm}" / f"seed{seed}"
            run.mkdir(parents=True)
            pairs = np.stack([np.broadcast_to(labels, right.shape), predicted], axis=-1).reshape(-1, 2).astype(np.int32)
            columns = texts | {
                "acc": pa.array(right.ravel().astype(float)),
                "macro_f1": pa.FixedSizeListArray.from_arrays(pa.array(pairs.ravel()), 2).cast(pa.list_(pa.int32())),
            }
            parquet.write_table(pa.table(columns), run / "samples_1.parquet")
            scores = {
                task: {"acc,none": float(of_task.mean()), "acc_stderr,none": 0.03, "macro_f1,none": f1}
                for task, of_task, f1 in zip(tasks, right, _macro_f1(labels, predicted), strict=True)
            }
            metadata = {"seed": seed, "tasks": ["sib200_eng_Latn"], "hyperparameters": {"lr": arm}}
            config = {"model": "spt", "prompt_digest": f"{arm:04}{seed:04}", "prompt_name": f"p{arm}-{seed}"}
            config |= {"prompt_metadata": metadata, "model_args": {"pretrained": "mini"}}
            content = {"results": scores, "config": config, "date": 1.75e9, "model_name": "mini"}
            (run / "results_1.json").write_text(json.dumps(content))
    return [f"arm {arm}={folder / f'arm{arm}'}" for arm in range(arms)]


def _macro_f1(labels: np.ndarray, predicted: np.ndarray) -> list[float]:
    """Macro-F1 in each language, all classes occurring."""
    scores = []
    for one in range(7):
        hits = ((predicted == one) & (labels == one)).sum(axis=1)
        scores.append(2 * hits / ((predicted == one).sum(axis=1) + (labels == one).sum()))
    return np.mean(scores, axis=0).tolist()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--documents", type=int, default=204)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        arguments = make_runs(Path(name) / "runs", options.arms, options.seeds, options.documents)
        page = Path(name) / "page.html"
        for command in (["transfer", *arguments], ["leaderboard", *arguments, "--output", str(page)]):
            started = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", PROGRAM, *command], check=True, capture_output=True, text=True)
            memory, processor = done.stderr.splitlines()[-2:]
            wall = time.perf_counter() - started
            print(
                f"{command[0]}: {float(processor):.1f} s of the processor, {wall:.1f} s, {int(memory) / 2**20:.2f} GB"
            )
            notes = [line for line in (done.stdout + done.stderr).splitlines() if "samples beside" in line]
            print("\n".join(notes) or "samples were read")


if __name__ == "__main__":
    main()
