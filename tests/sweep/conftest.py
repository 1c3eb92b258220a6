"""A sweep that has run, made once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lm_eval_spt.cli.sweep import sweep
from lm_eval_spt.sweep.plan import Plan, read_plan
from tests.helpers.sweeps import TARGETS, sweep_file


@pytest.fixture(scope="session")
def done(tmp_path_factory) -> tuple[Path, Plan]:
    """The file and the plan of a sweep that has run: two arms, two seeds, a baseline."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    file = sweep_file(
        tmp_path_factory.mktemp("sweep"),
        arms={"suffix": {}, "prefix": {"placement": "prefix"}},
        baselines={"none": TARGETS},
        shard_size=3,
    )
    sweep(str(file), throughput=0.1)
    torch.set_num_threads(threads)
    return file, read_plan(file)
