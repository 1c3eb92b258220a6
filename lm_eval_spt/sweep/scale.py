"""The cost of sweep files on a GPU, as a table for docs/scale.md: ::

    python -m lm_eval_spt.sweep.scale configs/paper/*.yaml --throughput 7.8

For every arm of every file the GPU hours of its targets, and, if these are a ``_paper`` group, of the same tasks in all
languages; for each way to share contexts that :mod:`lm_eval_spt.sweep.cost` names.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lm_eval_spt.sweep.cost import SHARING, ModelSize, TextSizes, gpu_hours, model_size, plan_work, single_tasks
from lm_eval_spt.sweep.plan import Plan, read_plan

HEADER = (
    "| sweep | parameters, body and all | arm | runs | languages | tokens a text "
    "| GPU hours, shared | kept for each run | read in every step |\n|---|---:|---|---:|---:|---:|---:|---:|---:|"
)


@dataclass(frozen=True)
class ArmCost:
    """The cost of an arm of a sweep file.

    Attributes:
        sweep: the sweep's name.
        model: the size of its base model.
        arm: the arm's name.
        runs: the number of its runs.
        languages: the number of its target tasks.
        tokens: the mean number of tokens in a test document.
        hours: GPU hours for each of :data:`~lm_eval_spt.sweep.cost.SHARING`.
    """

    sweep: str
    model: ModelSize
    arm: str
    runs: int
    languages: int
    tokens: float
    hours: Sequence[float]


def table(files: Sequence[Path], throughput: float) -> str:
    """Return the table in Markdown.

    Args:
        files: sweep files.
        throughput: of a GPU, in TFLOP/s.
    """
    sizes = TextSizes()
    lines = [HEADER]
    for languages in ("_paper", ""):
        costs: list[ArmCost] = []
        for file in files:
            targets = [name.removesuffix("_paper") + languages for name in read_plan(file).runs[-1].targets]
            costs += arm_costs(read_plan(file, targets=targets), sizes, throughput)
        lines += [*map(_row, costs), _total_row(costs)]
    return "\n".join([*lines, "", *(f"Assumed: {text}." for text in sizes.assumptions)]) + "\n"


def arm_costs(plan: Plan, sizes: TextSizes, throughput: float) -> Iterator[ArmCost]:
    """Yield the cost of each arm of a sweep, its baselines left out."""
    work = [plan_work(plan, sizes, sharing) for sharing in SHARING]
    for arm in dict.fromkeys(run.arm for run in plan.runs if run.prompted):
        runs = [run for run in plan.runs if run.arm == arm]
        config, targets = runs[0].config, runs[0].targets
        yield ArmCost(
            plan.name,
            model_size(config.model, config.revision, config.trust_remote_code),
            arm,
            len(runs),
            len(single_tasks(targets, plan.include_path)),
            sizes.test(config, targets).tokens,
            [gpu_hours(shared_work, runs, throughput) for shared_work in work],
        )


def _row(cost: ArmCost) -> str:
    return (
        f"| {cost.sweep} | {cost.model.body / 1e6:,.0f} M, {cost.model.total / 1e6:,.0f} M | {cost.arm} | {cost.runs} "
        f"| {cost.languages} | {cost.tokens:.0f} | " + " | ".join(f"{hours:,.1f}" for hours in cost.hours) + " |"
    )


def _total_row(costs: Sequence[ArmCost]) -> str:
    runs = sum(cost.runs for cost in costs)
    totals = [sum(hours) for hours in zip(*(cost.hours for cost in costs), strict=True)]
    return f"| all | | | {runs} | | | " + " | ".join(f"**{hours:,.0f}**" for hours in totals) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--throughput", type=float, required=True, metavar="TFLOPS")
    arguments = parser.parse_args()
    print(table(arguments.files, arguments.throughput), end="")


if __name__ == "__main__":
    main()
