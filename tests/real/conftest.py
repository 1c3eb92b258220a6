"""Tests on real models: they run where they are asked for, by ``make test-real`` or ``pytest -m real tests/real``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests on real models out unless the marker is asked for."""
    if "real" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("real")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def real_models() -> Path:
    """The folder with the models: where ``REAL_MODELS`` says, else ``build/real`` in the checkout."""
    folder = Path(os.environ.get("REAL_MODELS") or ROOT / "build" / "real").resolve()
    if not folder.is_dir():
        pytest.fail(f"{folder} is not there: python -m tests.real.fetch {folder}")
    return folder
