"""The engine for one machine: shard after shard, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lm_eval_spt.sweep.execute import Worker
from lm_eval_spt.sweep.plan import Plan


def run(plan: Plan, shards: Sequence[int], report: Callable[[], None]) -> None:
    """Do the shards of these numbers.

    Args:
        plan: the sweep.
        shards: the numbers.
        report: called whenever records have changed.
    """
    worker = Worker(plan)
    for number in shards:
        worker.run(number, report)
