"""What sweep files take on a GPU, as a table for docs/scale.md: ::

    python -m lm_eval_spt.sweep.scale configs/paper/*.yaml --throughput 7.8

For every arm of every file: the GPU hours of its targets, and of the same tasks in all languages where the targets are
a ``_paper`` group, with contexts shared as :mod:`lm_eval_spt.sweep.cost` says.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from lm_eval_spt.sweep.cost import Sharing, TextSizes, model_size, plan_work, single_tasks
from lm_eval_spt.sweep.plan import Plan, read_plan

SHARING: tuple[Sharing, ...] = ("shard", "run", "none")

HEADER = (
    "| sweep | parameters, body and all | arm | runs | languages | tokens a text "
    "| GPU hours, shared | kept for each run | read in every step |\n|---|---:|---|---:|---:|---:|---:|---:|---:|"
)


def table(files: Sequence[Path], throughput: float) -> str:
    """Return the table in Markdown.

    Args:
        files: sweep files.
        throughput: of a GPU, in TFLOP/s.
    """
    sizes = TextSizes()
    lines = [HEADER]
    for languages in ("_paper", ""):
        total = [0.0, 0.0, 0.0]
        runs = 0
        for file in files:
            targets = [name.removesuffix("_paper") + languages for name in read_plan(file).runs[-1].targets]
            for line, number, hours in _rows(read_plan(file, targets=targets), sizes, throughput):
                lines.append(line)
                total = [before + more for before, more in zip(total, hours, strict=True)]
                runs += number
        lines.append(f"| all | | | {runs} | | | " + " | ".join(f"**{hours:,.0f}**" for hours in total) + " |")
    return "\n".join([*lines, "", *(f"Assumed: {text}." for text in sizes.assumptions)]) + "\n"


def _rows(plan: Plan, sizes: TextSizes, throughput: float) -> Iterator[tuple[str, int, list[float]]]:
    """Yield for each arm its row, its number of runs, and its hours under each way of sharing."""
    work = [plan_work(plan, sizes, sharing) for sharing in SHARING]
    for arm in dict.fromkeys(run.arm for run in plan.runs if run.prompted):
        runs = [run for run in plan.runs if run.arm == arm]
        hours = [sum(found[run.name] for run in runs) / throughput / 3.6e15 for found in work]
        config, targets = runs[0].config, runs[0].targets
        model = model_size(config.model, config.revision, config.trust_remote_code)
        test = sizes.test(config, targets)
        yield (
            f"| {plan.name} | {model.body / 1e6:,.0f} M, {model.total / 1e6:,.0f} M | {arm} | {len(runs)} "
            f"| {len(single_tasks(targets, plan.include_path))} | {test.tokens:.0f} | "
            + " | ".join(f"{value:,.1f}" for value in hours)
            + " |",
            len(runs),
            hours,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--throughput", type=float, required=True, metavar="TFLOPS")
    arguments = parser.parse_args()
    print(table(arguments.files, arguments.throughput), end="")


if __name__ == "__main__":
    main()
