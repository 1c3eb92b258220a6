"""The door for Python: what is public, that importing it is quick, and that its documents run."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import lm_eval_spt
from tests.helpers.paths import ROOT

HEAVY = "{'torch', 'transformers', 'lm_eval', 'numpy', 'datasets'} & sys.modules.keys()"


def run(script: str) -> str:
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_is_quick_and_names_what_is_public() -> None:
    names = "SPTLM, SoftPrompt, TrainingConfig, train, evaluate_prompts, compose, classify"
    assert set(lm_eval_spt.__all__) == {*names.split(", "), "__version__"} <= set(dir(lm_eval_spt))
    assert run(f"import sys, lm_eval_spt; dir(lm_eval_spt); print({HEAVY})") == "set()\n"
    with pytest.raises(AttributeError, match="has no attribute 'gone'"):
        lm_eval_spt.gone  # noqa: B018


@pytest.mark.parametrize(
    "imports",
    [
        "from lm_eval_spt import train; import lm_eval_spt.train.config",
        "import lm_eval_spt.train.config; from lm_eval_spt import train",
        "from lm_eval_spt.train import config; import lm_eval_spt; train = lm_eval_spt.train",
    ],
)
def test_train_is_a_function_and_a_package_in_every_order_of_imports(imports: str) -> None:
    """The trainer itself has a stand-in, which is quicker to import; the page below runs the real one."""
    script = (
        f"{imports}\nimport pickle, sys, types\n"
        "from lm_eval_spt.train.config import TrainingConfig\n"
        "assert pickle.loads(pickle.dumps(train)) is train is sys.modules['lm_eval_spt.train']\n"
        "loop = sys.modules['lm_eval_spt.train.loop'] = types.ModuleType('loop')\n"
        "loop.train = lambda *given, **options: (given, options)\n"
        "print(train(1, base=2))"
    )
    assert run(script) == "((1,), {'base': 2})\n"


def blocks(text: str) -> list[tuple[str, str | None]]:
    """Return the Python code blocks of a page, each with the output that is shown behind it, if any."""
    found = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", text, re.DOTALL)
    return [(code, output or None) for code, output in found]


def test_the_page_on_python_runs_and_prints_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what a block prints its last lines are shown, not the progress before them."""
    page = blocks((ROOT / "docs" / "python-api.md").read_text(encoding="utf-8"))
    code = "".join(code for code, _ in page)
    assert all(re.search(rf"\b{name}\(|\b{name}\.", code) for name in lm_eval_spt.__all__ if name != "__version__")
    shutil.copytree(ROOT / "prompts", tmp_path / "prompts")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code, shown in page:
        with redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, "python-api.md", "exec"), names)
        if shown is not None:
            assert printed.getvalue().endswith(shown), code


def test_the_snippet_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ((code, shown),) = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(code.splitlines()) <= 10
    shutil.copytree(ROOT / "prompts", tmp_path / "prompts")
    monkeypatch.chdir(tmp_path)
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "README.md", "exec"), {})
    assert shown is not None and printed.getvalue().endswith(shown)
