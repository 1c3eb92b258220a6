"""``lm-eval-spt sweep``: plan, say what it takes, run what is left on an engine, say what failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.sweep import local, slurm
from lm_eval_spt.sweep.cost import UTILISATION, TextSizes, disk_free, disk_needed, plan_work, single_tasks, speed_here
from lm_eval_spt.sweep.plan import MAX_RUNS, Plan, SweepRun, evaluation_options, read_plan
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
    if throughput is not None and not throughput > 0:
        raise UserError(f"--throughput is {throughput}, expected TFLOP/s, a number above 0")
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


def _estimate(plan: Plan, runs: Sequence[SweepRun], sizes: TextSizes, throughput: float | None) -> dict[str, float]:
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


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def _print_runs(runs: Sequence[SweepRun], records: dict[str, Record]) -> None:
    for run in runs:
        record = records[run.name]
        state = "done" if record.done else "failed" if record.error else "trained" if record.trained else "to do"
        print(f"{state:<8} {run.name}" + (f": {record.error}" if record.error else ""))
