"""What the repository may hold."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.helpers.paths import ROOT

MODEL = {"lm_eval_spt/mini/model.safetensors", "lm_eval_spt/mini/tokenizer.json"}
LARGEST = 8_000_000  # bytes of everything else


def test_the_working_tree_is_small() -> None:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("this is no checkout, or git is not installed: what belongs to the repository is not known")
    # Whoever owns the files.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.split(b"\0")
    files = {os.fsdecode(name) for name in names if name}
    assert files > MODEL
    sizes = {name: (ROOT / name).lstat().st_size for name in files - MODEL if (ROOT / name).exists()}
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:5]
    assert sum(sizes.values()) < LARGEST, f"{sum(sizes.values()):,} bytes; the largest files are {largest}"
