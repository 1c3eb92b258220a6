"""What the repository may hold."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from lm_eval_spt.common.files import parse_yaml
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


def test_the_hooks_check_what_make_lint_does() -> None:
    hooks = parse_yaml((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    lines = subprocess.run(
        ["make", "-n", "lint", "VENV=.venv"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    commands = [line.split() for line in lines.splitlines() if line.startswith((".venv/bin/ruff", ".venv/bin/mypy"))]
    assert [hook["entry"].split()[:2] for hook in hooks] == [command[:2] for command in commands]
    assert hooks[-1]["entry"].split() == commands[-1]
