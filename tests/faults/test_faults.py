"""A short run of ``make faults``, and disks that really are full."""

from __future__ import annotations

import os
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import write, written_together
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train.log import TrainingLog
from tests.faults.trial import Broken, Trials, jobs, temporary_root

INJECTIONS = {"write": 30, "train": 3, "evaluate": 4, "resume": 1, "ranks": 1, "sweep": 2}


@pytest.fixture(scope="module")
def root():
    with temporary_root() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def trials(root):
    return Trials(root)


@pytest.fixture(scope="module")
def all_jobs(root):
    return jobs(root)


@pytest.mark.faults
@pytest.mark.parametrize("name", INJECTIONS)
def test_a_fault_does_no_harm(trials, all_jobs, name):
    for number in range(INJECTIONS[name]):
        trials.inject(all_jobs[name], random.Random(f"test {number}"))


@pytest.mark.faults
def test_a_training_run_goes_on_after_every_kill(trials, all_jobs):
    assert trials.kill_again_and_again(all_jobs["resume"], 3, random.Random(0)) >= 1


@pytest.mark.faults
def test_the_trials_notice_that_no_memory_ran_out(trials, all_jobs):
    """A hook that the scorer never comes by would let every trial pass."""
    with pytest.raises(Broken, match="OOM never struck"):
        trials.inject(replace(all_jobs["write"], name="no scorer", faults=["OOM"]), random.Random(0))


@pytest.mark.faults
def test_the_trials_find_fault_with_a_careless_write(trials, all_jobs):
    job = replace(
        all_jobs["write"],
        name="careless",
        command=lambda folder: ["write carelessly", str(folder / "file"), "400000"],
        faults=["SIGKILL"],
    )
    with pytest.raises(Broken, match="careless: SIGKILL.*damaged: ValueError: neither old nor"):
        for number in range(40):
            trials.inject(job, random.Random(number))


# -- real disks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(small_disk):
    write(small_disk / "file", b"old")
    with pytest.raises(UserError, match="file: can not be written \\(No space left on device\\)"):
        write(small_disk / "file", b"new" * 50_000)
    assert (small_disk / "file").read_bytes() == b"old" and os.listdir(small_disk) == ["file"]
    prompt = SoftPrompt(torch.zeros(100, 1000))
    with pytest.raises(UserError, match="No space left on device"):
        prompt.save(small_disk / "p.safetensors")
    with pytest.raises(UserError, match="No space left on device"), written_together(small_disk, "z") as folder:
        (folder / "z").write_bytes(b"z")
        (folder / "a").write_bytes(b"a" * 100_000)
    assert os.listdir(small_disk) == ["file"]  # what comes last is not there without the rest


def test_a_read_only_disk(small_disk):
    write(small_disk / "file", b"old")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(UserError, match="can not be written \\(Read-only file system\\)"):
        write(small_disk / "file", b"new")
    assert (small_disk / "file").read_bytes() == b"old"


def test_a_log_that_can_not_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    log = TrainingLog(tmp_path / "file" / "log.jsonl", [{"settings": {}}])
    log.add({"epoch": 0})
    warnings = [record.message for record in caplog.records if "the log of the training" in record.message]
    assert len(warnings) == 1 and "log.jsonl: can not be written" in warnings[0]
    good = TrainingLog(tmp_path / "log.jsonl", [{"settings": {}}])
    good.add({"epoch": 0})
    assert (tmp_path / "log.jsonl").read_text() == '{"settings": {}}\n{"epoch": 0}\n'


def test_a_long_name_and_many_writers_of_one_file(tmp_path):
    write(tmp_path / ("x" * 255), b"a")
    assert [len(name) for name in os.listdir(tmp_path)] == [255]
