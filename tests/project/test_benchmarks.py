"""The script that waits for a GPU runs: on the processor, with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have every contender run here, which saves the start of eight processes; gives the names of what has run."""
    ran: list[str] = []

    def run(function: Any, *, within: float, **arguments: Any) -> Any:
        assert 0 < within <= gpu.MOST_SECONDS
        ran.append(function.__name__)
        return json.loads(json.dumps(function(**json.loads(json.dumps(arguments)))))

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr("benchmarks.limit.SECONDS", 0.05)
    monkeypatch.setenv("SIB200_DIR", "is taken away")
    return ran


@pytest.mark.filterwarnings("ignore")  # PEFT's and the Trainer's
def test_a_gpu_s_script_runs(in_this_process: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    gpu.main(["--device", "cpu", "--tiny", "--dtype", "float32", "--output", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text())
    failed = {name: of["failed"] for name, of in found.items() if "failed" in of}
    assert not failed and len(in_this_process) == 8
    assert found["equality in float32"]["largest difference"] < 1e-3
    for name in ("score, this package, suffix", "train, this package, 4 suffix prompts"):
        assert found[name]["of the limit"] > 0
    printed = capsys.readouterr().out
    for line in ("SIB-200, 205 languages", "against hf + peft:", "four seeds side by side:", "PEFT with the Trainer"):
        assert line in printed


def test_what_fails_or_takes_too_long_does_not_take_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(function: Any, **_: Any) -> dict[str, Any]:
        if function is gpu.scored:
            raise SystemExit("no memory")
        return {"total": 2.0}

    monkeypatch.setattr(gpu, "run", run)
    gpu.main(["--device", "cpu", "--tiny", "--output", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["score, hf + peft"]["failed"] == "no memory" and found["train, this package, suffix"]["total"] == 2.0


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "there is no GPU here" in capsys.readouterr().err
