"""Experiment trackers."""

from __future__ import annotations

import pytest

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.train.loop import train
from tests.helpers.training import settings_for


def test_tensorboard_gets_every_epoch(base, tmp_path):
    pytest.importorskip("tensorboard")
    train(settings_for(tmp_path / "p.safetensors", tracker="tensorboard"), base)
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_an_unknown_tracker_is_one_line(base, tmp_path):
    with pytest.raises(UserError, match="--tracker paper is unknown"):
        train(settings_for(tmp_path / "p.safetensors", tracker="paper"), base)
