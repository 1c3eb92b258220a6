"""Interrupted runs: what is saved, and that a resumed run gives the same bytes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train import loop, scheduler
from lm_eval_spt.train.base import Base
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.loop import train
from tests.helpers.training import Stopped, settings_for, stopped_after


@pytest.mark.parametrize(
    ("changes", "stops"),
    [
        ({"average_checkpoints": 2, "keep": "average"}, [0, 1, 4, 6, 9]),
        ({"reparameterization": "xpe"}, [0, 1, 4, 6, 9]),
        ({"tune": "all"}, [6]),
        ({"tune": "all", "dtype": "bfloat16"}, [6]),
    ],
)
def test_a_resumed_run_gives_the_same_bytes(base, tmp_path, monkeypatch, changes, stops):
    """Stopped after any number of batches: validation, within an epoch, between epochs."""
    own = None if "tune" in changes else base
    changes = {**changes, "checkpoint_steps": 2, "epochs": 3, "batch_size": 5}
    expected = train(settings_for(tmp_path / "whole.safetensors", **changes), own)
    log = (tmp_path / "whole.jsonl").read_text()
    for calls in stops:
        output = tmp_path / f"stopped{calls}.safetensors"
        with monkeypatch.context() as patch:
            stopped_after(calls, patch)
            with pytest.raises(Stopped):
                train(settings_for(output, **changes), own)
        assert not output.exists()
        found = train(settings_for(output, resume=True, **changes), own)
        assert torch.equal(found.vectors, expected.vectors)
        assert not list(tmp_path.glob("*.checkpoint"))
        rows, expected_rows = (
            [json.loads(line) for line in text.splitlines()[1:]]
            for text in (output.with_suffix(".jsonl").read_text(), log)
        )
        assert [row | {"seconds": 0} for row in rows] == [row | {"seconds": 0} for row in expected_rows]
    again = train(settings_for(output, resume=True, **changes), own)  # there is nothing left to do
    assert torch.equal(again.vectors, expected.vectors)


def test_a_run_that_is_stopped_after_every_other_batch_gives_the_same_bytes(base, tmp_path, monkeypatch):
    """One life validates and nothing else: what it writes down is what the next one takes a step from."""
    changes = {"checkpoint_steps": 1, "epochs": 3, "batch_size": 7, "validation_shots": 2}
    expected = train(settings_for(tmp_path / "whole.safetensors", **changes), base)
    output = tmp_path / "stopped.safetensors"
    for calls in (3, *[2] * 20):  # validation takes two, and the first life a step more to have something to keep
        if output.exists():
            break
        with monkeypatch.context() as patch, contextlib.suppress(Stopped):
            stopped_after(calls, patch)
            train(settings_for(output, resume=True, **changes), base)
    assert torch.equal(SoftPrompt.load(output).vectors, expected.vectors)


def test_a_checkpoint_that_can_not_be_removed_is_a_warning(base, tmp_path, monkeypatch, caplog):
    remove = Path.unlink

    def refuse(path, **options):
        if path.suffix == ".checkpoint":
            raise OSError(30, "Read-only file system")
        remove(path, **options)

    monkeypatch.setattr(Path, "unlink", refuse)
    found = train(settings_for(tmp_path / "p.safetensors"), base)
    assert torch.equal(SoftPrompt.load(tmp_path / "p.safetensors").vectors, found.vectors)
    assert "p.checkpoint is not needed any more, but can not be removed (Read-only file system)" in caplog.text


def test_a_run_that_was_interrupted_before_its_first_checkpoint_is_trained_anew(base, tmp_path, monkeypatch):
    """Its prompt, the best so far, looks like that of a run with these settings; it is none."""
    config = settings_for(tmp_path / "p.safetensors", resume=True)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scheduler, "evaluate", interrupt)
        train(config, base)
    assert SoftPrompt.load(config.output).metadata["interrupted"]
    train(config, base)
    train(settings_for(tmp_path / "whole.safetensors"), base)
    assert Path(config.output).read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def interrupted(output: Path, base: Base, monkeypatch: pytest.MonkeyPatch, **changes) -> TrainingConfig:
    config = settings_for(output, **changes)
    with monkeypatch.context() as patch:
        stopped_after(9, patch)
        with pytest.raises(Stopped):
            train(config, base)
    assert output.with_suffix(".checkpoint").is_file()
    return config


def test_a_checkpoint_of_another_run_is_refused(base, tmp_path, monkeypatch):
    output = tmp_path / "p.safetensors"
    interrupted(output, base, monkeypatch)
    with pytest.raises(UserError, match=r"p\.checkpoint is of a run with other settings \(lr, seed\)"):
        train(settings_for(output, resume=True, lr=1.0, seed=3), base)
    output.with_suffix(".checkpoint").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"p\.checkpoint is not a checkpoint that can be read"):
        train(settings_for(output, resume=True), base)
    assert train(settings_for(output, seed=4), base) is not None  # without --resume it starts anew
    with pytest.raises(
        UserError, match=r"was trained with other settings \(seed 4 there, 0 now\): choose another --output"
    ):
        train(settings_for(output, resume=True), base)


def test_without_checkpoints_none_is_written(base, tmp_path, monkeypatch):
    output = tmp_path / "p.safetensors"
    with monkeypatch.context() as patch:
        stopped_after(7, patch)
        with pytest.raises(Stopped):
            train(settings_for(output, checkpoint=False), base)
    assert not list(tmp_path.glob("*.checkpoint"))


def test_a_run_without_patience_left_does_not_go_on(base, tmp_path, monkeypatch):
    """It is killed after its last checkpoint and before its prompt is written."""
    changes = {"lr": 0.5, "epochs": 30, "patience": 2, "shots": 1}
    expected = train(settings_for(tmp_path / "whole.safetensors", **changes), base)
    output = tmp_path / "killed.safetensors"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(loop, "save_results", stop)
        train(settings_for(output, **changes), base)
    resumed = train(settings_for(output, resume=True, **changes), base)
    assert torch.equal(resumed.vectors, expected.vectors)
    epochs = [len(path.read_text().splitlines()) for path in (output.with_suffix(".jsonl"), tmp_path / "whole.jsonl")]
    assert epochs[0] == epochs[1] < 30


def stop(*_, **__):
    raise Stopped
