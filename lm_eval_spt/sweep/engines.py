"""What runs the shards of a sweep: this process, or the workers of a Ray cluster.

The third engine, Slurm, runs this command itself, a shard in each job (:mod:`lm_eval_spt.sweep.slurm`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lm_eval_spt.sweep import local
from lm_eval_spt.sweep.plan import Plan, SweepRun
from lm_eval_spt.sweep.progress import Progress
from lm_eval_spt.sweep.records import forget_failures

ENGINES = ("local", "ray")


def run_shards(
    plan: Plan,
    shards: Sequence[int],
    runs: Sequence[SweepRun],
    work: Mapping[str, float],
    engine: str = "local",
    *,
    workers: int | None = None,
    address: str | None = None,
) -> dict[str, str]:
    """Do what is left of some shards, and print a line for every run that ends.

    Args:
        plan: the sweep.
        shards: their numbers.
        runs: what is counted: those of these shards, and others that are done already.
        work: what each run takes, by name, in any unit: the time left is reckoned from it.
        engine: one of `ENGINES`.
        workers, address: for Ray, see :func:`lm_eval_spt.sweep.ray.run`.

    Returns:
        The runs that failed, by name, and why.
    """
    forget_failures(plan, runs)
    progress = Progress(plan, runs, work)
    if engine == "ray":
        from lm_eval_spt.sweep import ray  # an extra, which may not be installed

        ray.run(plan, shards, progress.refresh, workers, address)
    else:
        local.run(plan, shards, progress.refresh)
    return progress.failed
