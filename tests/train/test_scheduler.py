"""Runs side by side: what they share, and that each learns as if it ran by itself."""

from __future__ import annotations

import re

import pytest
import torch

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train import scheduler
from lm_eval_spt.train.examples import Example
from lm_eval_spt.train.loop import train, train_together
from lm_eval_spt.train.objective import LossRequest, evaluate
from tests.helpers.models import random_prompt
from tests.helpers.training import settings_for


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


def words(line: str) -> list[object]:
    """A line's words, losses and accuracies as numbers."""
    return [float(word) if re.fullmatch(r"\d\.\d+", word) else word for word in line.split()]


def test_every_line_says_which_run_it_is(base, tmp_path, capsys):
    configs = [settings_for(tmp_path / f"a-seed{seed}.safetensors", seed=seed, lr=1e-4) for seed in (0, 1)]
    train_together(configs, base)
    together = capsys.readouterr().out.splitlines()
    alone = []
    for config in configs:
        train(config, base)
        alone.append(capsys.readouterr().out.splitlines())
    assert {line.split()[0] for line in alone[0]} >= {"1,024", "epoch", str(tmp_path / "a-seed0.safetensors:")}
    for name, lines in zip(("a-seed0", "a-seed1"), alone, strict=True):
        own = [line for line in together if line.startswith(f"{name}: ")]
        for line, expected in zip(own, lines, strict=True):
            assert words(line) == pytest.approx(words(f"{name}: {expected}"), abs=2e-4)  # rounded in other ways
    assert len(together) == sum(map(len, alone))


def test_outputs_of_one_name_are_told_apart_by_their_folders(base, tmp_path, capsys):
    configs = [settings_for(tmp_path / "runs" / name / "p.safetensors", epochs=0) for name in ("a", "b")]
    train_together(configs, base)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["a/p", "b/p"] * 3
