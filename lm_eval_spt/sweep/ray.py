"""The engine for a Ray cluster: an actor for each device holds the base model and does one shard after the other.

All nodes must see the sweep's folder under the same path. That folder alone says what is done: when a worker is lost,
another one continues its shard.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.sweep.execute import Worker
from lm_eval_spt.sweep.plan import Plan
from lm_eval_spt.sweep.records import record_of, save_record

ATTEMPTS = 3
"""How many workers a shard may lose before its runs count as failed."""


class RemoteWorker:
    """A worker in a process of its own. It works in the driver's folder, so that relative paths stay valid."""

    def __init__(self, plan: Plan, folder: str) -> None:
        os.chdir(folder)
        self._worker = Worker(plan)

    def run(self, number: int) -> None:
        """Do shard `number`."""
        self._worker.run(number)


def run(
    plan: Plan,
    shards: Sequence[int],
    report: Callable[[], None],
    workers: int | None = None,
    address: str | None = None,
) -> None:
    """Do the shards of these numbers on a cluster.

    Args:
        plan: the sweep.
        shards: the numbers.
        report: called about every second.
        workers: how many shards are done at a time; default: one for each GPU of the cluster, or, without GPUs, one for
            each node.
        address: the cluster's address, as ``ray.init`` takes it; default: the environment variable RAY_ADDRESS, or else
            a cluster of this machine for this sweep alone.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    ray = _import()
    address = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"address": address} if address else _own_cluster(workers)
    try:
        ray.init(**options, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError) as error:
        raise UserError(
            f"--address {address}: no Ray cluster answers there ({' '.join(str(error).split())})"
        ) from error
    try:
        _work_off(ray, plan, shards, report, workers)
    finally:
        ray.shutdown()


def _import() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray needs Ray: pip install 'lm_eval_spt[ray]'") from error
    return ray


def _own_cluster(workers: int | None) -> dict[str, Any]:
    return {
        "num_cpus": max(workers or 1, os.cpu_count() or 1),
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
    }


def _work_off(ray: Any, plan: Plan, shards: Sequence[int], report: Callable[[], None], workers: int | None) -> None:
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    workers = workers or gpus or len(ray.nodes())
    share = {"num_gpus": 1 if gpus >= workers else gpus / workers, "num_cpus": max(1, cpus // workers)}
    remote = ray.remote(**share)(RemoteWorker)

    waiting, lost = deque(shards), Counter[int]()
    idle = [remote.remote(plan, os.getcwd()) for _ in range(min(workers, len(shards)))]
    busy: dict[Any, tuple[Any, int]] = {}
    while waiting or busy:
        while waiting and idle:
            worker, number = idle.pop(), waiting.popleft()
            busy[worker.run.remote(number)] = (worker, number)
        ended, _ = ray.wait(list(busy), timeout=1)
        for answer in ended:
            worker, number = busy.pop(answer)
            try:
                ray.get(answer)
                idle.append(worker)
            except ray.exceptions.RayActorError as error:
                lost[number] += 1
                print(f"shard {number}: its worker was lost, {lost[number]} of {ATTEMPTS} times", file=sys.stderr)
                if lost[number] < ATTEMPTS:
                    waiting.appendleft(number)
                else:
                    _give_up(plan, number, f"its worker was lost {ATTEMPTS} times: {str(error).splitlines()[0]}")
                idle.append(remote.remote(plan, os.getcwd()))
        report()


def _give_up(plan: Plan, number: int, reason: str) -> None:
    for run in plan.shards[number]:
        record = record_of(plan, run)
        if not record.done and record.error is None:
            save_record(plan, run, replace(record, error=reason))
