"""The loss and its gradient, against one sequence after the other, and what the harness decides."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.prompt.metadata import PLACEMENTS
from lm_eval_spt.train.context_cache import ContextCache
from lm_eval_spt.train.examples import Example, encode
from lm_eval_spt.train.objective import LossRequest, evaluate
from tests.helpers.models import random_prompt
from tests.helpers.training import examples_of, run


def restated_loss(model, examples, vectors, before, loss, smoothing) -> torch.Tensor:
    """Mean loss from one sequence after the other, embeddings put together by hand, the whole vocabulary everywhere."""
    embedding = model.get_input_embeddings()
    losses, weight = [], 0
    for example in examples:
        values, spreads = [], []
        for context, continuation in example.pairs:
            text, answer = (embedding(torch.tensor(ids, dtype=torch.long)) for ids in (context, continuation))
            embeds = torch.cat([vectors[:before], text, vectors[before:], answer])
            logits = model(inputs_embeds=embeds[None]).logits[0]
            logprobs = logits[-len(continuation) - 1 : -1].log_softmax(-1)
            values.append(logprobs[range(len(continuation)), continuation].sum())
            spreads.append(logprobs.mean(-1).sum())
        if loss == "choices":
            logprobs = torch.stack(values).log_softmax(0)
            losses.append(-(1 - smoothing) * logprobs[example.gold] - smoothing * logprobs.mean())
            weight += 1
        else:
            losses.append(-(1 - smoothing) * values[example.gold] - smoothing * spreads[example.gold])
            weight += len(example.pairs[example.gold][1])
    return torch.stack(losses).sum() / weight


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_loss_and_gradient_are_those_of_the_plain_computation(tiny_models, data):
    model = tiny_models[data.draw(st.sampled_from(list(tiny_models)))].requires_grad_(False)
    placement, loss = (
        data.draw(st.sampled_from(PLACEMENTS)),
        data.draw(st.sampled_from(["choices", "target"])),
    )
    examples = examples_of(data)
    cached = placement == "suffix" and data.draw(st.booleans())
    cache = ContextCache(model, 64) if cached else None
    if cache is not None:
        cache.add(context for example in examples for context, _ in example.pairs)
    start = random_prompt(model, length=data.draw(st.integers(2 if placement == "both" else 1, 6))).vectors

    found_at, expected_at = start.clone().requires_grad_(), start.clone().requires_grad_()
    before = {"prefix": len(start), "suffix": 0, "both": len(start) // 2}[placement]
    smoothing = data.draw(st.sampled_from([0.0, 0.2]))
    (outcome,) = evaluate(model, [LossRequest(examples, found_at, before, loss, smoothing)], cache)
    found = outcome.loss / outcome.weight
    found.backward()
    expected = restated_loss(model, examples, expected_at, before, loss, smoothing)
    expected.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5, abs=1e-5)
    scale = expected_at.grad.norm()
    assert (found_at.grad - expected_at.grad).norm() <= 1e-4 * scale + 1e-6


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
    gradients = [loss_request.vectors.grad.clone() for loss_request in requests]
    for loss_request, outcome, gradient in zip(requests, together, gradients, strict=True):
        loss_request.vectors.grad = None
        (alone,) = evaluate(model, [loss_request])
        alone.loss.backward()
        assert outcome.loss.item() == pytest.approx(alone.loss.item(), rel=1e-5, abs=1e-5)
        assert (outcome.weight, outcome.correct) == (alone.weight, alone.correct)
        norm = loss_request.vectors.grad.norm()
        assert (gradient - loss_request.vectors.grad).norm() <= 1e-4 * norm + 1e-6


def test_accuracy_is_what_the_harness_decides(mini, documents):
    """The training side's count of right answers equals the argmax over the model class's log-likelihoods."""
    chosen = documents[:20]
    prompt = random_prompt(mini.model, length=3, placement="suffix")
    examples = encode(chosen, mini, "suffix", 3, mini.max_length, "left")
    (outcome,) = evaluate(mini.model, [LossRequest(examples, prompt.vectors, 0, "choices")])
    scorer = SPTLM(pretrained=mini.model, tokenizer=mini.tokenizer, prompt=prompt)
    right = 0
    for document in chosen:
        pairs = scorer.encode_pairs(document.pairs, "suffix")
        answers = scorer._loglikelihood_tokens([(None, *pair) for pair in pairs], disable_tqdm=True)
        right += max(range(7), key=lambda choice: answers[choice][0]) == document.gold
    assert outcome.correct == right


@pytest.mark.parametrize("loss", ["choices", "target"])
def test_smoothing_is_in_the_training_loss_and_not_in_validation(tmp_path, loss):
    plain = run(tmp_path / "a.safetensors", loss=loss, epochs=1)[1]
    smooth = run(tmp_path / "b.safetensors", loss=loss, epochs=1, label_smoothing=0.3)[1]
    assert smooth[0]["validation"] == plain[0]["validation"]
    assert smooth[1]["training"]["steps"][0] > plain[1]["training"]["steps"][0] + 0.01


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_example_counts_the_same_in_every_batch(tiny_models, data):
    """With and without choices in one batch: the sum of each one's own loss, by itself in a plain pass."""
    model = tiny_models[data.draw(st.sampled_from(["llama", "bloom"]))].requires_grad_(False)
    smoothing = data.draw(st.sampled_from([0.0, 0.2]))
    examples = [*examples_of(data), *(Example(example.pairs[:1], 0) for example in examples_of(data))]
    examples = data.draw(st.permutations(examples))
    vectors = random_prompt(model, length=3).vectors
    found_at, expected_at = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    (outcome,) = evaluate(model, [LossRequest(examples, found_at, 0, "choices", smoothing)])
    outcome.loss.backward()

    expected, weight, correct = torch.tensor(0.0), 0, 0
    for example in examples:
        own = 1 if len(example.pairs) > 1 else len(example.pairs[0][1])
        loss = "choices" if len(example.pairs) > 1 else "target"
        expected = expected + own * restated_loss(model, [example], expected_at, 0, loss, smoothing)
        weight += own
        correct += is_right(model, example, vectors)
    expected.backward()
    assert float(outcome.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5, abs=1e-5)
    assert (found_at.grad - expected_at.grad).norm() <= 1e-4 * expected_at.grad.norm() + 1e-6
    assert (outcome.weight, outcome.correct) == (weight, correct)


@torch.no_grad()
def is_right(model, example, vectors) -> bool:
    """Whether the right choice is the most likely one, or greedy decoding gives the only answer."""
    embedding = model.get_input_embeddings()
    sums = []
    for context, continuation in example.pairs:
        text, answer = (embedding(torch.tensor(ids, dtype=torch.long)) for ids in (context, continuation))
        logits = model(inputs_embeds=torch.cat([text, vectors, answer])[None]).logits[0, -len(continuation) - 1 : -1]
        sums.append(float(logits.log_softmax(-1)[range(len(continuation)), continuation].sum()))
        greedy = logits.argmax(-1).tolist() == list(continuation)
    return greedy if len(sums) == 1 else sums.index(max(sums)) == example.gold


def test_accumulation_changes_nothing_where_tasks_with_and_without_choices_are_mixed(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    answers = ["river", "goal", "vote"]
    rows = [{"text": f"Text {row} about it.", "label": row % 3, "name": answers[row % 3]} for row in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"train": str(tmp_path / "rows.jsonl")}},
        "training_split": "train", "validation_split": "train", "test_split": "train", "doc_to_text": "text",
    }  # fmt: skip
    kinds = {
        "choice": {"output_type": "multiple_choice", "doc_to_target": "label", "doc_to_choice": answers},
        "text": {"output_type": "generate_until", "doc_to_target": "name"},
    }
    for name, kind in kinds.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **kind}))
    changes = {
        "task": "choice,text", "include_path": str(tmp_path), "shots": None, "validation_shots": None, "epochs": 1,
        "batch_size": 8, "lr": 1e-3, "allow_test_documents": True,
    }  # fmt: skip
    whole = run(tmp_path / "whole.safetensors", **changes)[1]
    for parts in (3, 8):
        found = run(tmp_path / f"{parts}.safetensors", gradient_accumulation_steps=parts, **changes)[1]
        assert found[1]["training"]["steps"] == pytest.approx(whole[1]["training"]["steps"], rel=1e-4)
        assert found[1]["training"]["accuracy"] == whole[1]["training"]["accuracy"]
        assert found[1]["validation"] == pytest.approx(whole[1]["validation"], rel=1e-4)
