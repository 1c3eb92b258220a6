"""Whole runs: what is learned, kept and recorded, how a run ends, and what changes nothing in it."""

from __future__ import annotations

import json

import pytest
import torch

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train import scheduler
from lm_eval_spt.train.config import PRESETS
from lm_eval_spt.train.examples import load_tasks
from lm_eval_spt.train.loop import train
from lm_eval_spt.train.parameters import TrainableParameters
from tests.helpers.training import TASK, accuracy, run, settings_for


def test_same_seed_same_vectors_and_the_record_is_complete(tmp_path):
    first = train(settings_for(tmp_path / "a.safetensors"))
    again = train(settings_for(tmp_path / "b.safetensors"))
    other = train(settings_for(tmp_path / "c.safetensors", seed=1))
    assert first.digest == again.digest != other.digest

    read = SoftPrompt.load(tmp_path / "a.safetensors")
    assert read.digest == first.digest and read.length == 4 and read.placement == "suffix"
    record = read.metadata
    assert record["base_model"] == "mini" and record["tasks"] == [TASK] and record["source_languages"] == ["eng_Latn"]
    assert record["training_documents"] == 14 and record["tuned_parameters"] == 4 * 256
    assert record["hyperparameters"]["lr"] == 5e-3 and record["shots"] == 2
    (task,) = load_tasks([TASK])
    labels = [document["label"] for document in task.training_docs()]  # of all, not of the 14
    assert record["label_counts"] == [labels.count(number) for number in range(7)] and len(labels) > 14
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert rows[0]["settings"]["model"] == "mini"
    losses = [row["validation"]["loss"] for row in rows[1:]]
    assert len(losses) == 3
    assert record["validation"]["loss"] == min(losses) and record["validation"]["epoch"] == losses.index(min(losses))


def test_runs_of_several_seeds_can_learn_from_the_same_documents(base):
    own, shared, other = (
        base.reader.read(settings_for("x.safetensors", seed=seed, shots_seed=drawn))
        for seed, drawn in ((0, None), (1, 0), (1, None))
    )
    assert own.training == shared.training != other.training
    assert own.validation == shared.validation != other.validation


def test_training_learns_and_the_cache_changes_nothing(tmp_path):
    changes = {"init": "vocab", "shots": 4, "epochs": 7, "lr": 5e-4}
    prompt = train(settings_for(tmp_path / "cached.safetensors", **changes))
    plain = train(settings_for(tmp_path / "plain.safetensors", context_cache="off", **changes))
    rows = [json.loads(line) for line in (tmp_path / "cached.jsonl").read_text().splitlines()[1:]]
    plain_rows = [json.loads(line) for line in (tmp_path / "plain.jsonl").read_text().splitlines()[1:]]
    assert rows[-1]["training"]["loss"] < 0.7 * rows[1]["training"]["loss"]
    for row, plain_row in zip(rows, plain_rows, strict=True):
        assert row["validation"]["loss"] == pytest.approx(plain_row["validation"]["loss"], rel=1e-4)
    assert torch.allclose(prompt.vectors, plain.vectors, atol=1e-3)


@pytest.mark.parametrize("changes", [{"placement": "prefix"}, {"loss": "target"}, {"preset": "paper"}])
def test_other_arms_train(tmp_path, changes):
    if preset := changes.get("preset"):
        changes = {**PRESETS[preset], "epochs": 1, "shots": 4}
    prompt = train(settings_for(tmp_path / "p.safetensors", **changes))
    assert torch.isfinite(prompt.vectors).all()
    assert prompt.placement == changes.get("placement", "suffix")


@pytest.mark.parametrize(("given", "before"), [(None, 2), (3, 3)])
def test_a_prompt_on_both_sides_trains_and_scores(tmp_path, given, before):
    output = tmp_path / "p.safetensors"
    prompt, rows = run(output, placement="both", num_prefix_tokens=given)
    assert prompt.placement == "both" and SoftPrompt.load(output).num_prefix_tokens == before
    assert rows[-1]["training"]["loss"] < rows[1]["training"]["loss"]
    assert accuracy(prompt=str(output)) == pytest.approx(prompt.metadata["validation"]["accuracy"])


@pytest.mark.parametrize("changes", [{"gradient_accumulation_steps": 3}, {"activation_checkpointing": True}])
@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_what_saves_memory_changes_nothing(base, tmp_path, placement, changes):
    common = {"placement": placement, "lr": 1e-3}
    expected = train(settings_for(tmp_path / "a.safetensors", **common), base)
    found = train(settings_for(tmp_path / "b.safetensors", **common, **changes), base)
    torch.testing.assert_close(found.vectors, expected.vectors, atol=1e-5, rtol=1e-4)


def test_patience_ends_a_run_that_gets_no_better(tmp_path, capsys):
    prompt, rows = run(tmp_path / "p.safetensors", lr=0.5, epochs=30, patience=2, shots=1, validation_shots=1)
    best = prompt.metadata["validation"]["epoch"]
    assert [row["epoch"] for row in rows] == list(range(best + 3))
    assert "no lower validation loss for 2 epochs: stopped" in capsys.readouterr().out


def test_training_that_turns_nan_keeps_the_best_prompt(tmp_path):
    output = tmp_path / "p.safetensors"
    with pytest.raises(UserError, match=r"turned into nan.*epoch 0.*try a smaller --lr"):
        train(settings_for(output, lr=3e37, warmup_ratio=0.0, weight_decay=1.0))
    assert SoftPrompt.load(output).metadata["validation"]["epoch"] == 0


def test_ctrl_c_keeps_the_best_prompt(tmp_path, monkeypatch):

    calls = 0
    evaluate = scheduler.evaluate

    def interrupted(*arguments):
        nonlocal calls
        calls += 1
        if calls > 12:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(scheduler, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(settings_for(tmp_path / "p.safetensors", epochs=50))
    assert SoftPrompt.load(tmp_path / "p.safetensors").metadata["validation"]["epoch"] >= 0


def test_the_mean_of_the_last_epochs_is_tried_and_kept_where_it_is_better(tmp_path):
    """Held to the vectors that the run itself had after each epoch."""
    settings = {"epochs": 6, "lr": 0.05}
    kept: list[torch.Tensor] = []

    class Recorded(TrainableParameters):
        def snapshot(self):
            taken = super().snapshot()
            kept.append(taken.vectors)
            return taken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval_spt.train.run.TrainableParameters", Recorded)
        forced, rows = run(tmp_path / "forced.safetensors", **settings, average_checkpoints=3, keep="average")
    after_epochs = [new for old, new in zip(kept, kept[1:], strict=False) if not torch.equal(old, new)]
    assert len(after_epochs) == 6
    torch.testing.assert_close(forced.vectors, torch.stack(after_epochs[-3:]).mean(dim=0))
    assert forced.metadata["validation"]["averaged_epochs"] == 3
    assert accuracy(prompt=str(tmp_path / "forced.safetensors")) == pytest.approx(
        forced.metadata["validation"]["accuracy"]
    )
    chosen, _ = run(tmp_path / "chosen.safetensors", **settings, average_checkpoints=3)
    best = min(row["validation"]["loss"] for row in rows)
    mean = forced.metadata["validation"]["loss"]
    assert chosen.metadata["validation"]["loss"] == min(best, mean)
    assert torch.equal(chosen.vectors, forced.vectors) == (mean < best)


def test_averaging_is_for_prompts_alone(tmp_path):
    for changes, message in (
        ({"average_checkpoints": 2, "tune": "all"}, "--average-checkpoints is 2: expected nothing"),
        ({"keep": "average"}, "--keep is 'average': expected it together with --average-checkpoints"),
        ({"average_checkpoints": 0}, "--average-checkpoints is 0: expected a whole number from 1 on"),
    ):
        with pytest.raises(UserError, match=message):
            settings_for(tmp_path / "p.safetensors", **changes)
