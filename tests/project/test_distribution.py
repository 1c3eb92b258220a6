"""What is published, an sdist and the wheel that is made of it: what they hold, and that they work once installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from email import message_from_string
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.environments import BUILT_FROM, IS_REGISTERED, content, make_environment, run
from tests.helpers.paths import ROOT

BUILD = "from setuptools import build_meta; print(build_meta.build_{kind}({folder!r}))"
LARGEST = 25 * 2**20  # bytes of a wheel; most of it is the embedded model

DATA = {
    ".csv": ("lm_eval_spt/analysis/",),
    ".css": ("lm_eval_spt/analysis/html/",),
    ".html": ("lm_eval_spt/analysis/html/",),
    ".js": ("lm_eval_spt/analysis/html/",),
    ".json": ("lm_eval_spt/mini/", "lm_eval_spt/analysis/html/"),
    ".safetensors": ("lm_eval_spt/mini/",),
    ".md": ("lm_eval_spt/mini/", "lm_eval_spt/analysis/html/", "lm_eval_spt/tasks/"),
    ".txt": ("lm_eval_spt/tasks/",),
    ".yaml": ("lm_eval_spt/tasks/",),
    ".tsv": ("lm_eval_spt/tasks/mini_topics/data/",),
    ".typed": ("lm_eval_spt/",),
    "": ("lm_eval_spt/tasks/",),  # the template that the tasks include
}
"""Where in the package files of an ending may lie that are not Python."""


def build(kind: str, sources: Path, folder: Path) -> Path:
    """Build a ``wheel`` or an ``sdist`` of `sources` as pip would, but without a network."""
    code = BUILD.format(kind=kind, folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], cwd=sources, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


def constraints(name: str) -> list[Requirement]:
    """Return what a file of constraints asks for."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The sdist of a checkout with things lying about that do not belong to it, and the wheel of that sdist."""
    checkout, folder = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    for name in (*BUILT_FROM, "README.md", "constraints.txt", "Makefile", "train_prompt.py"):
        shutil.copy(ROOT / name, checkout)
    for name in ("lm_eval_spt", "tasks", "tests"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__", "failures"))
    for name in ("prompts/p.safetensors", "results/results_x.json", "benchmarks/__init__.py", "build/lib/old.py"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).touch()
    sdist = build("sdist", checkout, folder)
    with tarfile.open(sdist) as archive:
        # Python 3.10 and 3.11 have the filter from a patch release on.
        archive.extractall(folder / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (sources,) = (folder / "unpacked").iterdir()
    return SimpleNamespace(sdist=sdist, sources=sources, wheel=build("wheel", sources, folder))


def test_the_wheel_holds_what_is_needed_and_nothing_else(published: SimpleNamespace) -> None:
    with zipfile.ZipFile(published.wheel) as archive:
        found = set(archive.namelist())
    package = {f"lm_eval_spt/{name}" for name in content(ROOT / "lm_eval_spt")}
    tasks = {f"lm_eval_spt/tasks/{name}" for name in content(ROOT / "tasks")}
    about = {name for name in found if name.startswith("lm_eval_spt-") and ".dist-info/" in name}
    assert found - about == package | tasks | {"lm_eval_spt.pth"}
    assert {name.rpartition("/")[2] for name in about} == {
        "LICENSE", "METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt",
    }  # fmt: skip
    # What happens to lie in the package's folder is not part of it either.
    for name in package | tasks:
        ending = Path(name).suffix
        assert ending == ".py" or name.startswith(DATA.get(ending, ())) and DATA.get(ending), name
    assert published.wheel.name.endswith("-py3-none-any.whl") and published.wheel.stat().st_size < LARGEST


def test_the_sdist_holds_the_sources_and_nothing_else(published: SimpleNamespace) -> None:
    with tarfile.open(published.sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    sources = {f"{folder}/{name}" for folder in ("lm_eval_spt", "tasks") for name in content(ROOT / folder)}
    rest = {name for name in found - sources if not name.startswith(("lm_eval_spt.egg-info/", "tests/test_"))}
    assert sources <= found and rest == {*BUILT_FROM, "README.md", "PKG-INFO"}


def test_the_metadata_names_the_dependencies_and_the_extras(published: SimpleNamespace) -> None:
    with zipfile.ZipFile(published.wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = message_from_string(archive.read(name).decode())
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    names = {Requirement(line).name for line in needed}
    assert {"torch", "transformers", "lm-eval", "peft", "safetensors"} <= names
    assert {"test", "plot", "quantization", "recipe", "tracking", "uriel", "dev", "fuzz"} <= set(
        metadata.get_all("Provides-Extra", [])
    )
    assert (
        "Apache-2.0" in (metadata["License-Expression"], metadata["License"])
        and metadata["Requires-Python"] == ">=3.10"
    )


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_it_works_where_it_is_installed(published: SimpleNamespace, kind: str, tmp_path: Path) -> None:
    """Without a checkout in sight the harness finds model and tasks; of the wheel, its own command scores with them."""
    environment = make_environment(tmp_path / "environment")
    pip = [environment.python, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-index"]
    run(*pip, "--no-build-isolation", "--ignore-installed", getattr(published, kind))
    assert run(environment.python, "-c", IS_REGISTERED) == "True False"
    code = "from lm_eval_spt.common import paths; print(paths.tasks_folder()); print(paths.mini_model_folder())"
    tasks, mini = map(Path, run(environment.python, "-c", code).splitlines())
    assert tasks.is_relative_to(environment.packages) and content(tasks) == content(ROOT / "tasks")
    assert content(mini) == content(ROOT / "lm_eval_spt" / "mini")
    if kind == "wheel":
        model = ["--model", "spt", "--model_args", "pretrained=mini", "--device", "cpu"]
        task = ["--tasks", "mini_topics_eng_Latn", "--limit", "2"]
        offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        assert "macro_f1" in run(environment.python, "-m", "lm_eval", *model, *task, **offline)


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-lowest.txt", "constraints-next.txt"])
def test_constraints_name_each_package_once(name: str) -> None:
    """pip refuses to install anything where two of them ask for different versions of one package."""
    names = [canonicalize_name(each.name) for each in constraints(name)]
    assert names and len(names) == len(set(names))


def test_the_lowest_versions_are_the_lower_ends_that_are_asked_for() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    options = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    lines = (line.partition("#")[0].strip() for option in options for line in option.splitlines())
    asked = {canonicalize_name(each.name): each.specifier for each in map(Requirement, filter(None, lines))}
    tested = {canonicalize_name(each.name): each.specifier for each in constraints("constraints-lowest.txt")}
    held = 0
    for name in asked.keys() & tested.keys() - {"ruff", "mypy"}:  # linters do not run there
        (version,) = (each.version for each in tested[name])
        for lower in (each.version for each in asked[name] if each.operator == ">="):
            assert f"{version}.0".startswith(f"{lower}."), f"{name}: {lower} is asked for, {version} is tested"
            held += 1
    assert held > 20
