"""Training: against plain restatements of the loss, of few-shot selection and of the whole small run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm_eval_spt.cli.train import main
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.prompt.metadata import PLACEMENTS
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train.config import PRESETS, TrainingConfig
from lm_eval_spt.train.context_cache import ContextCache
from lm_eval_spt.train.examples import Document, Example, choose, encode, load_tasks, read_documents
from lm_eval_spt.train.initialization import embedding_scale, initial_vectors
from lm_eval_spt.train.loop import train
from lm_eval_spt.train.objective import LossRequest, evaluate
from tests.conftest import ROOT, random_prompt

LONG = " ".join(f"day {day} of rain," for day in range(30)) + " and sun."
TASK = "mini_topics_eng_Latn"


def settings_for(output: Path, **changes) -> TrainingConfig:
    small = {"epochs": 2, "shots": 2, "validation_shots": 1, "prompt_length": 4, "batch_size": 4}
    return TrainingConfig(**{"model": "mini", "task": TASK, "output": str(output)} | small | changes)


@pytest.fixture(scope="session")
def mini() -> SPTLM:
    return SPTLM(pretrained="mini", device="cpu")


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    return read_documents(load_tasks([TASK])[0], "training")


# -- the objective ---------------------------------------------------------------------------------------------------


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


def examples_of(data: st.DataObject) -> list[Example]:
    ids = st.integers(4, 20479)
    choices = data.draw(st.lists(st.lists(ids, min_size=1, max_size=4), min_size=2, max_size=5, unique_by=tuple))
    contexts = data.draw(st.lists(st.lists(ids, min_size=1, max_size=12), min_size=1, max_size=5))
    return [
        Example(
            tuple((tuple(context), tuple(choice)) for choice in choices), data.draw(st.integers(0, len(choices) - 1))
        )
        for context in contexts
    ]


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


# -- examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_examples_are_the_tokens_that_are_scored(mini, documents, placement, monkeypatch):
    """What training reads is what the model class hands to its scorer for the harness's requests."""
    task = load_tasks([TASK])[0]
    prompt = random_prompt(mini.model, length=3, placement=placement)
    scorer = SPTLM(pretrained=mini.model, tokenizer=mini.tokenizer, prompt=prompt)
    row = task.training_docs()[0]
    scored = []
    monkeypatch.setattr(scorer, "_loglikelihood_tokens", lambda requests, **_: scored.extend(requests))
    scorer.loglikelihood(task.construct_requests(row, task.fewshot_context(row, 0)), disable_tqdm=True)
    (example,) = encode(documents[:1], mini, placement, 3, mini.max_length, "left")
    assert [(list(c), list(a)) for c, a in example.pairs] == [(c, a) for _, c, a in scored]
    assert example.gold == task.doc_to_target(row)


def test_few_shots_are_balanced_seeded_and_from_the_documents(documents):
    chosen = choose(documents, 5, 0, "training")
    assert set(Counter(document.label for document in chosen).values()) == {5}
    assert len({document.label for document in chosen}) == 7
    assert set(chosen) <= set(documents) and len(set(chosen)) == 35
    assert chosen == choose(documents, 5, 0, "training")
    assert chosen != choose(documents, 5, 1, "training")
    assert choose(documents, None, 0, "training") == documents


def test_a_class_with_too_few_documents_is_named(documents):
    with pytest.raises(UserError, match=r"13 training documents per class.*'entertainment' has 12"):
        choose(documents, 13, 0, "training")


def test_texts_are_cut_to_make_room_for_the_prompt(mini):
    document = Document(((LONG, " sports"), (LONG, " geography")), 0)
    whole = encode([document], mini, "suffix", 4, 512, "left")[0].pairs[0][0]
    left = encode([document], mini, "suffix", 4, 20, "left")[0].pairs[0][0]
    right = encode([document], mini, "suffix", 4, 20, "right")[0].pairs[0][0]
    # The answer's one token is predicted, not read: 16 tokens of text and 4 of the prompt are 20.
    assert left == whole[-16:] and right == whole[:16]


# -- initial vectors -------------------------------------------------------------------------------------------------


def test_initial_vectors_are_what_their_name_says(mini, documents):
    weight = mini.model.get_input_embeddings().weight.detach()
    examples = encode(documents, mini, "suffix", 12, 512, "left")

    def start(**changes) -> torch.Tensor:
        return initial_vectors(mini, settings_for(Path("x.safetensors"), prompt_length=12, **changes), examples)

    uniform = start(init="uniform")
    assert (
        uniform.shape == (12, 256) and uniform.abs().max() <= 0.5 and uniform.std() == pytest.approx(12**-0.5, abs=0.02)
    )
    used = {token for example in examples for token in example.pairs[0][0]}
    for row in start(init="vocab"):
        assert any(torch.equal(row, weight[token]) for token in used)
    text = mini.tokenizer.encode("\nTopic:")
    assert torch.equal(start(init="text", init_text="\nTopic:")[-len(text) :], weight[text])
    science = mini.tokenizer.encode(" science/technology")
    labels = start(init="labels")
    assert any(torch.allclose(row, weight[science].mean(0)) for row in labels[-7:])
    assert torch.equal(uniform, start(init="uniform")) and not torch.equal(uniform, start(init="uniform", seed=1))


def test_the_embedding_scale_is_measured(tiny_models):
    scales = {family: embedding_scale(model.get_input_embeddings()) for family, model in tiny_models.items()}
    assert scales["xglm"] == pytest.approx(32**0.5, rel=1e-4)
    assert scales["gemma3_text"] == pytest.approx(32**0.5, rel=1e-2)
    assert all(scales[family] == pytest.approx(1) for family in scales if family not in ("xglm", "gemma3_text"))


# -- runs ------------------------------------------------------------------------------------------------------------


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
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert rows[0]["settings"]["model"] == "mini"
    losses = [row["validation"]["loss"] for row in rows[1:]]
    assert len(losses) == 3
    assert record["validation"]["loss"] == min(losses) and record["validation"]["epoch"] == losses.index(min(losses))


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


def test_training_that_turns_nan_keeps_the_best_prompt(tmp_path):
    output = tmp_path / "p.safetensors"
    with pytest.raises(UserError, match=r"turned into nan.*epoch 0.*try a smaller --lr"):
        train(settings_for(output, lr=3e37, warmup_ratio=0.0, weight_decay=1.0))
    assert SoftPrompt.load(output).metadata["validation"]["epoch"] == 0


def test_ctrl_c_keeps_the_best_prompt(tmp_path, monkeypatch):
    import lm_eval_spt.train.loop as loop

    calls = 0
    evaluate = loop.evaluate

    def interrupted(*arguments):
        nonlocal calls
        calls += 1
        if calls > 12:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(settings_for(tmp_path / "p.safetensors", epochs=50))
    assert SoftPrompt.load(tmp_path / "p.safetensors").metadata["validation"]["epoch"] >= 0


def test_a_grid_trains_each_run_as_if_alone(tmp_path):
    flags = ["--model", "mini", "--task", TASK, "--shots", "2", "--validation-shots", "1", "--epochs", "2"]
    several = [*flags, "--seed", "0", "1", "--prompt-length", "2", "4", "--output", str(tmp_path / "g.safetensors")]
    assert main(several) == 0
    names = [f"g-seed{seed}-prompt_length{length}" for seed in (0, 1) for length in (2, 4)]
    assert sorted(file.stem for file in tmp_path.glob("*.safetensors")) == sorted(names)
    assert sorted(file.stem for file in tmp_path.glob("*.jsonl")) == sorted(names)
    alone = [*flags, "--seed", "1", "--prompt-length", "4", "--output", str(tmp_path / "alone.safetensors")]
    assert main(alone) == 0
    prompt, expected = (
        SoftPrompt.load(tmp_path / f"{names[3]}.safetensors"),
        SoftPrompt.load(tmp_path / "alone.safetensors"),
    )
    assert torch.allclose(prompt.vectors, expected.vectors, atol=1e-5)
    rows, expected_rows = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()[1:]]
        for name in (names[3], "alone")
    )
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row["validation"] == pytest.approx(expected_row["validation"], rel=1e-5)
    assert prompt.metadata["seed"] == 1 and prompt.metadata["hyperparameters"] == expected.metadata["hyperparameters"]


def test_a_grid_of_equal_runs_is_refused(tmp_path, capsys):
    flags = ["--model", "mini", "--task", TASK, "--seed", "0", "0", "--output", str(tmp_path / "g.safetensors")]
    assert main(flags) == 1
    assert "two runs would write" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# -- the command line ------------------------------------------------------------------------------------------------


GOOD = {"--model": "mini", "--task": TASK}
BAD = {
    "unknown placement": ({"--placement": "middle"}, 2, "invalid choice: 'middle'"),
    "unknown init": ({"--init": "magic"}, 1, "--init magic: prompt file magic: no such file"),
    "unknown flag": ({"--speed": "9"}, 2, "--speed"),
    "no task": ({"--task": "mini_topics_xxx_Latn"}, 1, "there is no task 'mini_topics_xxx_Latn'; did you mean"),
    "too few documents": ({"--shots": "500"}, 1, "500 training documents per class"),
    "prompt too long": ({"--prompt-length": "512"}, 1, "leaves no room for text"),
    "model missing": ({"--model": "nobody/nothing"}, 1, "the base model 'nobody/nothing' can not be loaded"),
    "no such preset": ({"--preset": "mine"}, 1, "expected one of paper"),
    "not a number": ({"--lr": "-1"}, 1, "--lr is -1.0: expected a number above 0"),
    "wrong ending": ({"--output": "x.bin"}, 1, "ends in .safetensors"),
    "missing config": ({"--config": "missing.yaml"}, 1, "--config missing.yaml can not be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_flags_get_one_clear_line(tmp_path, capsys, case):
    flags, status, message = BAD[case]
    arguments = {**GOOD, "--output": str(tmp_path / "p.safetensors"), **flags}
    try:
        found = main([part for pair in arguments.items() for part in pair])
    except SystemExit as exit:  # argparse
        found = exit.code
    errors = capsys.readouterr().err
    assert (found, "Traceback" in errors) == (status, False)
    assert message in errors
    if status == 1:
        assert [line for line in errors.splitlines() if line.startswith("error: ")] == errors.splitlines()[-1:]
    assert not list(tmp_path.iterdir())


def test_a_task_without_training_documents(tmp_path, capsys):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "t.yaml").write_text(
        "task: only_test\nclass: !function lm_eval_spt.harness.topics.MiniTopicsTask\ndataset_name: eng_Latn\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: text\ndoc_to_target: label\n"
        "doc_to_choice: [a, b, c, d, e, f, g]\n"
    )
    flags = ["--model", "mini", "--task", "only_test", "--include-path", str(tmp_path / "tasks")]
    assert main([*flags, "--output", str(tmp_path / "p.safetensors")]) == 1
    assert "error: the task 'only_test' has no training split" in capsys.readouterr().err


def test_an_unwritable_output_is_found_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--model", "mini", "--task", TASK, "--output", str(tmp_path / "file" / "p.safetensors")]) == 1
    assert "can not be written" in capsys.readouterr().err


def test_the_script_shows_mistakes_without_a_traceback(tmp_path):
    command = [sys.executable, ROOT / "train_prompt.py", "--model", "mini", "--task", TASK, "--shots", "500"]
    done = subprocess.run([*command, "--output", tmp_path / "p.safetensors"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: 500 training documents per class were asked for")
    assert "Traceback" not in done.stderr


def test_yaml_settings_and_the_command_line_wins(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"model: mini\ntask: {TASK}\noutput: a.safetensors\nprompt-length: 3\nlr: 5e-3\n")
    config = TrainingConfig.from_settings({"config": str(file), "prompt_length": 7})
    assert (config.prompt_length, config.lr, config.epochs) == (7, 5e-3, TrainingConfig.epochs)
    config = TrainingConfig.from_settings({"config": str(file), "preset": "paper"})
    assert (config.prompt_length, config.init, config.loss) == (3, "uniform", "target")
    file.write_text("speed: 3\n")
    with pytest.raises(UserError, match="unknown settings: speed"):
        TrainingConfig.from_settings({"config": str(file)})
