"""``lm-eval-spt sweep``: plan, say what it takes, run what is left on an engine, say what failed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_spt.cli.arguments import positive
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import check_writable

if TYPE_CHECKING:
    from lm_eval_spt.sweep.cost import TextSizes
    from lm_eval_spt.sweep.plan import Plan, SweepRun
    from lm_eval_spt.sweep.records import Record


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Plan the runs that a YAML file of axes asks for, say what they take, train and score them. Every "
        "run leaves a prompt, a results file and a record under its name; what is there already is not done again, and "
        "a run that fails does not keep the others from going on.",
        epilog=f"example: {prog} configs/paper/xglm-564m.yaml --dry-run",
    )
    parser.add_argument("file", metavar="FILE", help="the sweep file: see docs/sweeps.md")
    parser.add_argument("--dry-run", action="store_true", help="only print the plan, its state and its cost")
    parser.add_argument("--output", metavar="FOLDER", help="instead of the file's (default: sweeps/<name of the file>)")
    parser.add_argument("--targets", metavar="TASKS", help="instead of the file's, comma separated")
    parser.add_argument(
        "--engine", default="local", help="local: in this process; ray; slurm: write an array job (default: local)"
    )
    parser.add_argument("--max-runs", type=positive, metavar="N", help="refuse larger sweeps (default: 500)")
    parser.add_argument(
        "--throughput", type=float, metavar="TFLOPS", help="of a device, to estimate the time (default: measured here)"
    )
    parser.add_argument("--shard", type=int, metavar="N", help="do only this shard: what a job of --engine slurm does")
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="with ray: shards at a time (default: one for each GPU or node)"
    )
    parser.add_argument(
        "--address", metavar="ADDRESS", help="of the Ray cluster (default: RAY_ADDRESS, else one of this machine alone)"
    )
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Train and score all prompts that a sweep file asks for, or what is left of them."""
    sweep(**vars(arguments))


def sweep(
    file: str,
    *,
    output: str | None = None,
    targets: str | None = None,
    engine: str = "local",
    dry_run: bool = False,
    max_runs: int | None = None,
    throughput: float | None = None,
    shard: int | None = None,
    workers: int | None = None,
    address: str | None = None,
) -> None:
    """Run what is left of a sweep.

    Args:
        file: the sweep file, see :mod:`lm_eval_spt.sweep.plan`.
        output, targets: replace what the file says; targets are comma separated.
        engine: ``local``, ``ray`` or ``slurm``.
        dry_run: only print the plan with its cost.
        max_runs: how many runs the file may ask for; default: :data:`lm_eval_spt.sweep.plan.MAX_RUNS`.
        throughput: TFLOP/s for the estimate of time; default: measured here.
        shard: do this shard alone.
        workers, address: see :func:`lm_eval_spt.sweep.ray.run`.

    Raises:
        UserError: something in the file or the flags makes no sense, there is too little disk space, or runs failed.
    """
    from lm_eval_spt.sweep.cost import TextSizes, disk_free, disk_needed, single_tasks
    from lm_eval_spt.sweep.engines import ENGINES, run_shards
    from lm_eval_spt.sweep.plan import MAX_RUNS, evaluation_options, read_plan
    from lm_eval_spt.sweep.records import record_of
    from lm_eval_spt.sweep.slurm import write_script

    if throughput is not None and not throughput > 0:
        raise UserError(f"--throughput is {throughput}, expected TFLOP/s, a number above 0")
    if engine not in (*ENGINES, "slurm"):
        raise UserError(f"--engine is {engine!r}, expected one of {', '.join((*ENGINES, 'slurm'))}")
    max_runs = max_runs or MAX_RUNS
    plan = read_plan(Path(file), output, targets.split(",") if targets else None, max_runs)
    if shard is not None and not 0 <= shard < len(plan.shards):
        raise UserError(f"--shard is {shard}, but {file} has the shards 0 to {len(plan.shards) - 1}")
    numbers = list(range(len(plan.shards))) if shard is None else [shard]
    runs = [run for number in numbers for run in plan.shards[number]]
    records = {run.name: record_of(plan, run) for run in runs}
    left = [run for run in runs if not records[run.name].done]

    if dry_run:
        _print_runs(runs, records)
    for tasks in {run.targets for run in left} | {tuple(run.config.tasks) for run in left if run.prompted}:
        single_tasks(tasks, plan.include_path)  # a name that is wrong shows at once
    sizes = TextSizes(plan.include_path, plan.evaluate.get("limit"), evaluation_options(plan.evaluate))
    print(f"{plan.name}: {len(runs)} runs, {len(left)} to do, in {len(numbers)} shards; output: {plan.output}")
    if not left:
        return
    work = _estimate(plan, left, sizes, throughput)
    needed, free = disk_needed(plan, sizes, left), disk_free(plan)
    print(f"disk: about {_size(needed)}, {_size(free)} are free")
    if dry_run:
        return
    if needed > free:
        raise UserError(
            f"the sweep needs about {_size(needed)} in {plan.output}, where {_size(free)} are free: choose another "
            "place with --output, or make room"
        )
    check_writable(plan.output, is_folder=True)
    waiting = [number for number in numbers if any(run in left for run in plan.shards[number])]
    if engine == "slurm":
        flags = [f"--output={plan.output}", f"--max-runs={max_runs}", *([f"--targets={targets}"] if targets else [])]
        print(f"submit it with: sbatch {write_script(plan, waiting, Path(file), flags)}")
        return
    failed = run_shards(plan, waiting, runs, work, engine, workers=workers, address=address)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed; {plan.output / 'logs'} has more on them, and the same "
            "command tries them again"
        )


def _estimate(plan: Plan, runs: Sequence[SweepRun], sizes: TextSizes, throughput: float | None) -> dict[str, float]:
    """Print what `runs` take; return each run's share of the work by name: all the same where it can not be told."""
    import torch

    from lm_eval_spt.sweep.cost import UTILISATION, plan_work, speed_here
    from lm_eval_spt.train.base import dtype_of

    names = [run.name for run in plan.runs]
    try:
        work, *others = [plan_work(plan, sizes, sharing) for sharing in ("shard", "run", "none")]
    except UserError as error:
        print(f"no estimate of the time: {error}")
        return dict.fromkeys(names, 1.0)
    source = "--throughput"
    if throughput is None:
        dtype = "float32"
        with suppress(UserError):  # of some models only the size is known here
            dtypes = {dtype_of(run.config) for run in runs}
            dtype = dtypes.pop() if len(dtypes) == 1 else dtype
        throughput = UTILISATION * speed_here(getattr(torch, dtype)) / 1e12
        source = f"{UTILISATION:.0%} of what {dtype} matrix products reach here; another machine: --throughput"
    hours = [sum(shares[run.name] for run in runs) / throughput / 3.6e15 for shares in (work, *others)]
    print(f"about {_time(hours[0])} on one device at {throughput:.3g} TFLOP/s ({source})")
    print(f"without sharing contexts between runs {_time(hours[1])}, without keeping them at all {_time(hours[2])}")
    print("".join(f"assumed: {text}\n" for text in sizes.assumptions), end="")
    return work


def _time(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.1f} s"


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def _print_runs(runs: Sequence[SweepRun], records: dict[str, Record]) -> None:
    for run in runs:
        record = records[run.name]
        state = "done" if record.done else "failed" if record.error else "trained" if record.trained else "to do"
        print(f"{state:<8} {run.name}" + (f": {record.error}" if record.error else ""))
