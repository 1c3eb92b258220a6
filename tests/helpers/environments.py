"""Environments to install the project into. They see the packages of the one that runs the tests, and nothing else."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

from tests.helpers.paths import ROOT

HOOK = ROOT / "lm_eval_spt.pth"
BUILT_FROM = ["setup.py", "setup.cfg", "pyproject.toml", "LICENSE", HOOK.name]
DEPENDENCIES = [
    path for path in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
]
IS_REGISTERED = """
import sys, lm_eval.models
from lm_eval.api.registry import model_registry
print("spt" in model_registry, "torch" in sys.modules)
"""


def run(*command: str | Path, status: int = 0, **environment: str) -> str:
    """Run a command far from the checkout and return what it printed on both streams."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run(
        command, cwd="/", env=kept | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == status, done.stdout
    return done.stdout.strip()


def make_environment(folder: Path) -> SimpleNamespace:
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    (packages / "dependencies.pth").write_text("\n".join(DEPENDENCIES), encoding="utf-8")
    return SimpleNamespace(python=python, packages=packages)


def content(folder: Path) -> set[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)) for path in files}
