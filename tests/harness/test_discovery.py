"""Installing the project, and how lm_eval then finds it: real installs into environments made for the purpose.

The environments have no packages of their own; a path file lets them see those of the environment that runs the tests.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.environments import BUILT_FROM, HOOK, IS_REGISTERED, content, make_environment, run
from tests.helpers.paths import ROOT


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """An environment without the project."""
    return make_environment(tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="module", params=["ordinary", "editable"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """An environment with the project, from ``pip install .`` or ``pip install -e .`` of a copy of the sources.

    It ends with ``pip uninstall``, which must leave nothing behind.
    """
    environment = make_environment(tmp_path_factory.mktemp("environment"))
    sources = tmp_path_factory.mktemp("sources")
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, sources)
    for name in ("lm_eval_spt", "tasks"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    (sources / "tests").mkdir()
    (sources / "tests" / "__init__.py").touch()
    before = content(environment.packages)

    pip = [environment.python, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed"]
    run(*pip, "install", *offline, *(["--editable"] if request.param == "editable" else []), sources)
    yield SimpleNamespace(**vars(environment), kind=request.param, sources=sources)
    run(*pip, "uninstall", "--yes", "lm_eval_spt")
    assert content(environment.packages) == before


@pytest.mark.parametrize("flags", [[], ["-I"], ["-E"], ["-X", "dev"]], ids=" ".join)
def test_lm_eval_knows_the_model_without_importing_it(installed: SimpleNamespace, flags: list[str]) -> None:
    assert run(installed.python, *flags, "-c", IS_REGISTERED) == "True False"


def test_without_an_install_lm_eval_does_not_know_the_model(empty: SimpleNamespace) -> None:
    assert run(empty.python, "-c", IS_REGISTERED) == "False False"


def test_a_spawned_process_knows_the_model(installed: SimpleNamespace, tmp_path: Path) -> None:
    script = tmp_path / "spawn.py"
    script.write_text(
        "import multiprocessing\n"
        "def known():\n"
        "    import lm_eval.models\n"
        "    from lm_eval.api.registry import model_registry\n"
        "    return 'spt' in model_registry\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.apply(known))\n",
        encoding="utf-8",
    )
    assert run(installed.python, script) == "True"


def test_tasks_and_model_files_are_found(installed: SimpleNamespace) -> None:
    code = "from lm_eval_spt.common import paths; print(paths.tasks_folder()); print(paths.mini_model_folder())"
    tasks, mini = map(Path, run(installed.python, "-c", code).splitlines())
    assert tasks.is_relative_to(installed.packages if installed.kind == "ordinary" else installed.sources)
    assert content(tasks) == content(ROOT / "tasks")
    assert content(mini) == content(ROOT / "lm_eval_spt" / "mini")


def test_an_install_holds_the_package_and_nothing_else(installed: SimpleNamespace) -> None:
    files = content(installed.packages)
    top = {name.split("/")[0] for name in files}
    assert HOOK.name in files
    assert all(name.startswith(("lm_eval_spt", "__editable__.lm_eval_spt", "dependencies.pth")) for name in top)
    if installed.kind == "ordinary":
        assert {f"lm_eval_spt/{name}" for name in content(ROOT / "lm_eval_spt")} <= files


def test_later_versions_of_lm_eval_find_the_entry_points(installed: SimpleNamespace) -> None:
    """The model class and the folder of tasks, loaded as the entry points say."""
    code = (
        "from importlib.metadata import entry_points\n"
        "print(*{point.value for point in entry_points(group='lm_eval.models')})\n"
        "print(*{point.load()() for point in entry_points(group='lm_eval.tasks')})\n"
        "from lm_eval_spt.common import paths; print(paths.tasks_folder())"
    )
    model, tasks, folder = run(installed.python, "-c", code).splitlines()
    assert model == "lm_eval_spt.harness.lm:SPTLM"
    assert tasks == folder


def test_the_start_of_an_interpreter_takes_less_than_2_ms_longer(installed: SimpleNamespace) -> None:
    reading = (
        "import site, time\n"
        "start = time.perf_counter()\n"
        f"site.addsitedir({str(installed.packages)!r})\n"
        "print(time.perf_counter() - start)\n"
    )
    # A new interpreter each time; other work on the machine only adds time, so the least is the best estimate.
    assert min(float(run(installed.python, "-S", "-c", reading)) for _ in range(15)) < 0.002


# -- the hook itself, beside a small lm_eval that stands in for other versions -----------------------------------------


@pytest.fixture
def other(tmp_path: Path) -> SimpleNamespace:
    """A folder with the start-up file and an lm_eval whose modules can be written, read with ``python -S``."""
    shutil.copy(HOOK, tmp_path)

    def write(module: str, code: str) -> None:
        path = tmp_path / "lm_eval" / module
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")

    def python(code: str, *flags: str) -> str:
        setup = f"import site, sys; site.addsitedir({str(tmp_path)!r})\n"
        return run(sys.executable, "-S", *flags, "-c", setup + code, PYTHONPATH=str(tmp_path / "path"))

    (tmp_path / "path").mkdir()
    write("__init__.py", "")
    write("api/__init__.py", "")
    write(
        "api/registry.py",
        "class Registry(dict):\n"
        "    def register(self, name, target):\n"
        "        self[name] = target\n"
        "model_registry = Registry()\n",
    )
    write("models/__init__.py", "")
    return SimpleNamespace(write=write, python=python, folder=tmp_path)


def link_package(other: SimpleNamespace) -> None:
    (other.folder / "path" / "lm_eval_spt").symlink_to(ROOT / "lm_eval_spt")


def test_a_start_up_file_without_its_package_is_silent(other: SimpleNamespace) -> None:
    assert other.python("import lm_eval.models; print('works')") == "works"


def test_a_start_up_file_with_a_broken_package_is_silent(other: SimpleNamespace) -> None:
    (other.folder / "path" / "lm_eval_spt.py").write_text("this is not Python", encoding="utf-8")
    assert other.python("import lm_eval.models; print('works')") == "works"


def test_without_lm_eval_nothing_of_the_package_is_imported(other: SimpleNamespace) -> None:
    link_package(other)
    shutil.rmtree(other.folder / "lm_eval")
    assert other.python("import json; print([name for name in sys.modules if 'lm_eval' in name])") == "[]"
    assert other.python("try: import lm_eval\nexcept ModuleNotFoundError as error: print(error.name)") == "lm_eval"


def test_an_lm_eval_without_a_registry_works_on_with_one_warning(other: SimpleNamespace) -> None:
    link_package(other)
    other.write("api/registry.py", "")
    lines = other.python("import lm_eval.models; print('works')").splitlines()
    assert lines[-1] == "works"
    assert len(lines) == 2 and "lm_eval.models" in lines[0]


def test_reloading_adapts_again_and_the_loader_is_left_as_it_was(other: SimpleNamespace) -> None:
    link_package(other)
    other.write("models/__init__.py", "from lm_eval.api.registry import model_registry\nmodel_registry.clear()\n")
    code = (
        "import importlib, importlib.machinery, lm_eval.models as models\n"
        "from lm_eval.api.registry import model_registry\n"
        "print(*model_registry)\n"
        "importlib.reload(models)\n"
        "print(*model_registry)\n"
        "print(type(models.__loader__) is importlib.machinery.SourceFileLoader)\n"
        "print('exec_module' in vars(models.__loader__))\n"
    )
    assert other.python(code).splitlines() == ["spt", "spt", "True", "False"]


def test_lm_eval_imported_before_the_package_is_adapted_too(other: SimpleNamespace) -> None:
    link_package(other)
    (other.folder / HOOK.name).unlink()
    code = "import lm_eval.models, lm_eval_spt; from lm_eval.api.registry import model_registry; print(*model_registry)"
    assert other.python(code) == "spt"


def test_python_m_lm_eval_spt_runs_lm_eval_where_start_up_files_are_not_read(other: SimpleNamespace) -> None:
    link_package(other)
    (other.folder / "lm_eval").rename(other.folder / "path" / "lm_eval")
    (other.folder / "path" / "lm_eval" / "__main__.py").write_text(
        "def cli_evaluate():\n"
        "    import sys, lm_eval.models\n"
        "    from lm_eval.api.registry import model_registry\n"
        "    print(sys.argv[1:], *model_registry)\n",
        encoding="utf-8",
    )
    path = str(other.folder / "path")
    assert run(sys.executable, "-S", "-m", "lm_eval_spt", "--tasks", "x", PYTHONPATH=path) == "['--tasks', 'x'] spt"
