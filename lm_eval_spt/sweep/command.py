"""``lm-eval-spt sweep``: plan, say what it takes, run what is left on an engine, say what failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lm_eval_spt.errors import UserError
from lm_eval_spt.sweep import local, slurm
from lm_eval_spt.sweep.cost import UTILISATION, TextSizes, check_disk, disk_needed, plan_work, speed_here
from lm_eval_spt.sweep.plan import MAX_RUNS, Plan, Run, read_plan
from lm_eval_spt.sweep.progress import Progress
from lm_eval_spt.sweep.records import Record, forget_failures, record_of

ENGINES = ("local", "ray", "slurm")


def sweep(
    file: str,
    *,
    output: str | None = None,
    targets: str | None = None,
    engine: str = "local",
    dry_run: bool = False,
    max_runs: int = MAX_RUNS,
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
        max_runs: how many runs the file may ask for.
        throughput: TFLOP/s for the estimate of time; default: measured here.
        shard: do this shard alone.
        workers, address: see :func:`lm_eval_spt.sweep.ray.run`.

    Raises:
        UserError: something in the file or the flags makes no sense, there is too little disk space, or runs failed.
    """
    if engine not in ENGINES:
        raise UserError(f"--engine is {engine!r}, expected one of {', '.join(ENGINES)}")
    plan = read_plan(Path(file), output, targets.split(",") if targets else None, max_runs)
    if shard is not None and not 0 <= shard < len(plan.shards):
        raise UserError(f"--shard is {shard}, but {file} has the shards 0 to {len(plan.shards) - 1}")
    numbers = list(range(len(plan.shards))) if shard is None else [shard]
    runs = [run for number in numbers for run in plan.shards[number]]
    records = {run.name: record_of(plan, run) for run in runs}
    left = [run for run in runs if not records[run.name].done]

    if dry_run:
        _print_runs(runs, records)
    sizes = TextSizes(plan.evaluate.get("include_path"), plan.evaluate.get("limit"))
    print(f"{plan.name}: {len(runs)} runs, {len(left)} to do, in {len(numbers)} shards; output: {plan.output}")
    work = _estimate(plan, left, sizes, throughput)
    check_disk(plan, disk_needed(plan, sizes, left))
    if dry_run or not left:
        return
    waiting = [number for number in numbers if any(run in left for run in plan.shards[number])]
    if engine == "slurm":
        flags = [f"--output={plan.output}", f"--max-runs={max_runs}", *([f"--targets={targets}"] if targets else [])]
        print(f"submit it with: sbatch {slurm.write_script(plan, waiting, Path(file), flags)}")
        return
    forget_failures(plan, runs)
    progress = Progress(plan, runs, work)
    if engine == "ray":
        from lm_eval_spt.sweep import ray

        ray.run(plan, waiting, progress.refresh, workers, address)
    else:
        local.run(plan, waiting, progress.refresh)
    if progress.failed:
        raise UserError(
            f"{len(progress.failed)} of {len(runs)} runs failed; {plan.output / 'logs'} has more on them, and the same "
            "command tries them again"
        )


def _estimate(plan: Plan, runs: Sequence[Run], sizes: TextSizes, throughput: float | None) -> dict[str, float]:
    """Print what `runs` take; return each run's share of the work by name: all the same where it can not be told."""
    names = [run.name for run in plan.runs]
    try:
        work, *others = [plan_work(plan, sizes, sharing) for sharing in ("shard", "run", "none")]
    except UserError as error:
        print(f"no estimate of the time: {error}")
        return dict.fromkeys(names, 1.0)
    source = "--throughput"
    if throughput is None:
        throughput = UTILISATION * speed_here() / 1e12
        source = f"{UTILISATION:.0%} of what matrix products reach here; another machine: --throughput"
    hours = [sum(found[run.name] for run in runs) / throughput / 3.6e15 for found in (work, *others)]
    print(f"about {_time(hours[0])} on one device at {throughput:.3g} TFLOP/s ({source})")
    print(f"without sharing contexts between runs {_time(hours[1])}, without keeping them at all {_time(hours[2])}")
    print("".join(f"assumed: {text}\n" for text in sizes.assumptions), end="")
    return work


def _time(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.1f} s"


def _print_runs(runs: Sequence[Run], records: dict[str, Record]) -> None:
    for run in runs:
        record = records[run.name]
        state = "done" if record.done else "failed" if record.error else "trained" if record.trained else "to do"
        print(f"{state:<8} {run.name}" + (f": {record.error}" if record.error else ""))
