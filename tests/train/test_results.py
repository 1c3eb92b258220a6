"""What a run leaves, and that it is not done twice."""

from __future__ import annotations

from lm_eval_spt.cli.train import main
from lm_eval_spt.train import scheduler
from lm_eval_spt.train.loop import train
from tests.helpers.training import TASK, settings_for


def test_a_tuned_model_without_a_prompt_is_not_trained_again(tmp_path, monkeypatch):
    config = settings_for(tmp_path / "m.safetensors", tune="model", prompt_length=0, epochs=1, resume=True)
    assert train(config) is None
    monkeypatch.setattr(scheduler, "evaluate", None)
    assert train(config) is None


def test_an_unwritable_output_is_found_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--model", "mini", "--task", TASK, "--output", str(tmp_path / "file" / "p.safetensors")]) == 1
    assert "can not be written" in capsys.readouterr().err


def test_a_folder_of_something_else_is_found_before_training(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    flags = ["--model", "mini", "--task", TASK, "--tune", "all", "--output", str(tmp_path / "run.safetensors")]
    assert main(flags) == 1
    assert "holds no model: it is not replaced" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "notes.txt"]
