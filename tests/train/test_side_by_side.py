"""Runs side by side: what is shared, what stays apart, and where the keys and values of texts are kept."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train import context_cache, scheduler
from lm_eval_spt.train.base import Base, base_of
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.context_cache import ContextCache
from lm_eval_spt.train.examples import Example
from lm_eval_spt.train.loop import train, train_together
from lm_eval_spt.train.objective import LossRequest, evaluate
from tests.conftest import random_prompt
from tests.train.test_train import examples_of, settings_for


@pytest.fixture(scope="module")
def base() -> Base:
    return base_of(SPTLM(pretrained="mini", device="cpu"))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_several_prompts_in_one_batch_are_as_each_by_itself(tiny_models, data):
    """Losses and gradients, with and without the cache, for any examples."""
    model = tiny_models[data.draw(st.sampled_from(list(tiny_models)))].requires_grad_(False)
    length = data.draw(st.integers(1, 5))
    cache = ContextCache(model, 64) if data.draw(st.booleans()) else None
    requests = []
    for seed in range(data.draw(st.integers(2, 4))):
        examples = examples_of(data)
        vectors = random_prompt(model, length=length, seed=seed).vectors.requires_grad_()
        requests.append(LossRequest(examples, vectors, 0, data.draw(st.sampled_from(["choices", "target"]))))
        if cache is not None:
            assert cache.add(context for example in examples for context, _ in example.pairs)
    together = evaluate(model, requests, cache)
    sum(outcome.loss for outcome in together).backward()
    gradients = [asking.vectors.grad.clone() for asking in requests]
    for asking, outcome, gradient in zip(requests, together, gradients, strict=True):
        asking.vectors.grad = None
        (alone,) = evaluate(model, [asking])
        alone.loss.backward()
        assert float(outcome.loss) == pytest.approx(float(alone.loss), rel=1e-5, abs=1e-5)
        assert (outcome.weight, outcome.correct) == (alone.weight, alone.correct)
        norm = asking.vectors.grad.norm()
        assert (gradient - asking.vectors.grad).norm() <= 1e-4 * norm + 1e-6


def test_runs_of_one_length_share_every_batch(base, tmp_path, monkeypatch):
    """Four seeds and two lengths: two calls of the model where eight runs by themselves would make eight."""
    sizes = []
    shared = scheduler.evaluate
    monkeypatch.setattr(
        scheduler,
        "evaluate",
        lambda model, requests, cache: (sizes.append(len(requests)), shared(model, requests, cache))[1],
    )
    grid = [
        settings_for(tmp_path / f"{seed}-{length}.safetensors", seed=seed, prompt_length=length)
        for length in (2, 3)
        for seed in range(4)
    ]
    train_together(grid, base)
    assert set(sizes) == {4}


def test_runs_that_differ_in_everything_but_the_model(base, tmp_path):
    """Other numbers of epochs, documents and batches, placements and losses; each as if alone."""
    changes = [
        {"epochs": 1, "shots": 3},
        {"batch_size": 3, "loss": "target"},
        {"placement": "prefix"},
        {"context_cache": "off", "seed": 2},
        {"reparameterization": "mlp", "patience": 1},
    ]
    changes = [
        {"lr": 1e-3} | change for change in changes
    ]  # with larger steps rounding grows: the model is nearly certain
    grid = [settings_for(tmp_path / f"grid{number}.safetensors", **change) for number, change in enumerate(changes)]
    together = train_together(grid, base)
    for number, (change, prompt) in enumerate(zip(changes, together, strict=True)):
        alone = train(settings_for(tmp_path / f"alone{number}.safetensors", **change), base)
        # Adam's first steps follow the sign of a gradient, and many of a network's are within rounding of zero.
        tolerance = 1e-3 if "reparameterization" in change else 1e-5
        torch.testing.assert_close(prompt.vectors, alone.vectors, atol=tolerance, rtol=1e-4)


def test_a_run_that_diverges_leaves_the_others_alone(base, tmp_path):
    bad = settings_for(tmp_path / "bad.safetensors", lr=3e37, warmup_ratio=0.0, weight_decay=1.0)
    good = settings_for(tmp_path / "good.safetensors")
    with pytest.raises(UserError, match=r"turned into nan.*bad\.safetensors: try a smaller --lr"):
        train_together([bad, good], base)
    expected = train(settings_for(tmp_path / "alone.safetensors"), base)
    torch.testing.assert_close(SoftPrompt.load(tmp_path / "good.safetensors").vectors, expected.vectors)
    assert SoftPrompt.load(tmp_path / "bad.safetensors").metadata["validation"]["epoch"] == 0


@pytest.mark.parametrize("changes", [{"gradient_accumulation_steps": 3}, {"activation_checkpointing": True}])
@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_what_saves_memory_changes_nothing(base, tmp_path, placement, changes):
    common = {"placement": placement, "lr": 1e-3}
    expected = train(settings_for(tmp_path / "a.safetensors", **common), base)
    found = train(settings_for(tmp_path / "b.safetensors", **common, **changes), base)
    torch.testing.assert_close(found.vectors, expected.vectors, atol=1e-5, rtol=1e-4)


def test_activation_checkpointing_keeps_less(tiny_models):
    """Fewer bytes are kept for the backward pass, in the families with and without gelus of their own."""
    for family in ("bloom", "gpt2", "llama"):
        model = tiny_models[family].requires_grad_(False)
        kept = []
        for again in (False, True):
            vectors = random_prompt(model).vectors.requires_grad_()
            example = Example((((5, 6, 7), (8,)), ((5, 6, 7), (9, 10))), 0)
            data = [LossRequest([example] * 4, vectors, 4, "choices")]
            sizes: list[int] = []

            def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
                sizes.append(tensor.numel())
                return tensor

            context = scheduler.activation_checkpointing(model) if again else scheduler.nullcontext()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), context:
                (outcome,) = evaluate(model, data)
            outcome.loss.backward()
            kept.append((sum(sizes), vectors.grad))
        assert kept[1][0] < kept[0][0]
        torch.testing.assert_close(kept[1][1], kept[0][1], atol=1e-5, rtol=1e-4)


# -- where keys and values are kept ------------------------------------------------------------------------------------


@pytest.mark.parametrize("medium", ["host", "disk"])
def test_every_medium_holds_the_same(tiny_model, medium):
    texts = [tuple(range(5, 5 + length)) for length in (3, 9, 1, 4)]
    default, other = ContextCache(tiny_model, 12), ContextCache(tiny_model, 100)
    assert default.add(texts) and other.add(texts, medium) and other.add(texts, medium)
    found, expected = other.read(texts[:3]), default.read(texts[:3])
    assert torch.equal(found.mask, expected.mask)
    for layers in zip(found.cache.layers, expected.cache.layers, strict=True):
        keep = expected.mask.bool()[:, None, :, None]
        torch.testing.assert_close(layers[0].keys * keep, layers[1].keys * keep)
        torch.testing.assert_close(layers[0].values * keep, layers[1].values * keep)


def test_a_file_of_keys_and_values_has_no_name(tiny_models, tmp_path, monkeypatch):
    """Nothing is left behind, however the process ends, and no other run can read it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert ContextCache(tiny_models["llama"], 64).add([(5, 6, 7)], "disk")
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_goes_to_the_next_medium(tiny_models, monkeypatch, caplog):
    free = {"device": 0, "host": 100, "disk": 10**9}
    monkeypatch.setattr(context_cache, "_free", lambda medium, device: free[medium])
    allocated = []
    allocate = ContextCache._allocate
    monkeypatch.setattr(
        ContextCache,
        "_allocate",
        lambda self, medium, *sizes: (allocated.append(medium), allocate(self, medium, *sizes))[1],
    )
    assert ContextCache(tiny_models["llama"], 64).add([(5, 6, 7)])
    assert allocated == ["disk"] and "the disk is tried" in caplog.text
    free["disk"] = 100
    cache = ContextCache(tiny_models["llama"], 64)
    assert not cache.add([(5, 6, 7)]) and (5, 6, 7) not in cache
    assert "they are read anew in every step" in caplog.text


def test_a_full_disk_leaves_nothing_and_training_goes_on(base, tmp_path, monkeypatch, caplog):
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    (tmp_path / "full").mkdir()
    monkeypatch.setattr(os, "posix_fallocate", full)
    fresh = base_of(base.lm)
    found = train(settings_for(tmp_path / "a.safetensors", context_cache="disk"), fresh)
    assert list((tmp_path / "full").iterdir()) == []
    assert "they are read anew in every step" in caplog.text
    expected = train(settings_for(tmp_path / "b.safetensors"), base)
    torch.testing.assert_close(found.vectors, expected.vectors, atol=1e-5, rtol=1e-4)


# -- interruptions -----------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """Stands for the end of a process at a given moment."""


def stopped_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = scheduler.evaluate
    left = calls

    def evaluate_some(*arguments):
        nonlocal left
        if not left:
            raise Stopped
        left -= 1
        return shared(*arguments)

    monkeypatch.setattr(scheduler, "evaluate", evaluate_some)


@pytest.mark.parametrize("changes", [{}, {"reparameterization": "xpe"}, {"tune": "all"}])
def test_a_resumed_run_gives_the_same_bytes(base, tmp_path, monkeypatch, changes):
    """Stopped after any number of batches: validation, within an epoch, between epochs."""
    own = None if "tune" in changes else base
    changes = {**changes, "checkpoint_steps": 2, "epochs": 3, "batch_size": 5}
    expected = train(settings_for(tmp_path / "whole.safetensors", **changes), own)
    log = (tmp_path / "whole.jsonl").read_text()
    for calls in (0, 1, 4, 6, 9) if own else (6,):
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


def test_a_tuned_model_without_a_prompt_is_not_trained_again(tmp_path, monkeypatch):
    config = settings_for(tmp_path / "m.safetensors", tune="model", prompt_length=0, epochs=1, resume=True)
    assert train(config) is None
    monkeypatch.setattr(scheduler, "evaluate", None)
    assert train(config) is None


def test_a_checkpoint_of_another_run_is_refused(base, tmp_path, monkeypatch):
    output = tmp_path / "p.safetensors"
    interrupted(output, base, monkeypatch)
    with pytest.raises(UserError, match=r"p\.checkpoint is of a run with other settings \(lr, seed\)"):
        train(settings_for(output, resume=True, lr=1.0, seed=3), base)
    output.with_suffix(".checkpoint").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"p\.checkpoint is not a checkpoint that can be read"):
        train(settings_for(output, resume=True), base)
    assert train(settings_for(output, seed=4), base) is not None  # without --resume it starts anew
    with pytest.raises(UserError, match="was trained with other settings: choose another --output"):
        train(settings_for(output, resume=True), base)


def test_without_checkpoints_none_is_written(base, tmp_path, monkeypatch):
    output = tmp_path / "p.safetensors"
    with monkeypatch.context() as patch:
        stopped_after(7, patch)
        with pytest.raises(Stopped):
            train(settings_for(output, checkpoint=False), base)
    assert not list(tmp_path.glob("*.checkpoint"))


def test_tensorboard_gets_every_epoch(base, tmp_path):
    pytest.importorskip("tensorboard")
    train(settings_for(tmp_path / "p.safetensors", tracker="tensorboard"), base)
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_an_unknown_tracker_is_one_line(base, tmp_path):
    with pytest.raises(UserError, match="--tracker paper is unknown"):
        train(settings_for(tmp_path / "p.safetensors", tracker="paper"), base)
