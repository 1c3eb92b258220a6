"""Whole runs of every arm: what is written, that it scores as validation said, and which settings contradict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from lm_eval_spt.cli.train import configurations, main, parser
from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.loop import train
from tests.conftest import build_model
from tests.inference.test_encoder_decoder import build as build_encoder_decoder

TASK = "mini_topics_eng_Latn"


def run(output: Path, **changes) -> tuple[SoftPrompt | None, list[dict]]:
    """Train a small run on the embedded model; returns the prompt and the log's rows, one for each epoch."""
    small = {"epochs": 3, "shots": 4, "validation_shots": 3, "prompt_length": 4, "batch_size": 7, "lr": 0.02}
    prompt = train(TrainingConfig(**{"model": "mini", "task": TASK, "output": str(output)} | small | changes))
    return prompt, [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()[1:]]


def accuracy(**model_args) -> float:
    """What the harness says on the 21 validation documents."""
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    (task,) = manager.load([TASK])["tasks"].values()
    task.config.test_split = None  # then the harness scores the validation split
    lm = SPTLM(device="cpu", **model_args)
    results = simple_evaluate(model=lm, tasks=[task], task_manager=manager, bootstrap_iters=0)
    return results["results"][TASK]["acc,none"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tokenizer) -> Path:
    """Folders of tiny random models: llama, xglm, mt5."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in {
        "llama": build_model("llama"), "xglm": build_model("xglm"), "mt5": build_encoder_decoder("mt5"),
    }.items():  # fmt: skip
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


# -- reparameterization ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp", "residual", "xpe", "dual"])
def test_a_network_is_folded_into_plain_vectors_that_score_as_validation_said(tmp_path, kind):
    output = tmp_path / "p.safetensors"
    prompt, rows = run(output, reparameterization=kind, reparameterization_lr=2e-3, epochs=4)
    assert rows[-1]["training"]["loss"] < rows[1]["training"]["loss"]
    again = SoftPrompt.load(output)
    assert again.vectors.shape == (4, 256) and again.digest == prompt.digest
    record = again.metadata
    assert record["tuned_parameters"] > 4 * 256  # the network is counted: it was tuned
    assert record["hyperparameters"]["reparameterization"] == kind
    assert record["hyperparameters"]["reparameterization_lr"] == 2e-3
    assert accuracy(prompt=str(output)) == pytest.approx(record["validation"]["accuracy"])


def test_the_same_seed_gives_the_same_vectors_with_dropout_too(tmp_path):
    digests = [run(tmp_path / f"{n}.safetensors", reparameterization="xpe", epochs=1)[0].digest for n in range(2)]
    torch.manual_seed(99)
    other = run(tmp_path / "other.safetensors", reparameterization="xpe", epochs=1, seed=1)[0].digest
    assert digests[0] == digests[1] != other


def test_dropout_does_not_depend_on_the_parts_in_which_a_batch_is_read(tmp_path):
    # Small steps: Adam makes large ones of rounding where a gradient is next to nothing.
    settings = dict(reparameterization="xpe", epochs=1, lr=1e-4)
    whole = run(tmp_path / "a.safetensors", **settings)[1]
    parts = run(tmp_path / "b.safetensors", gradient_accumulation_steps=3, **settings)[1]
    assert parts[1]["training"]["steps"] == pytest.approx(whole[1]["training"]["steps"], rel=1e-4)


# -- placement, start, mixture -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "before"), [(None, 2), (3, 3)])
def test_a_prompt_on_both_sides_trains_and_scores(tmp_path, given, before):
    output = tmp_path / "p.safetensors"
    prompt, rows = run(output, placement="both", num_prefix_tokens=given)
    assert prompt.placement == "both" and SoftPrompt.load(output).num_prefix_tokens == before
    assert rows[-1]["training"]["loss"] < rows[1]["training"]["loss"]
    assert accuracy(prompt=str(output)) == pytest.approx(prompt.metadata["validation"]["accuracy"])


@pytest.mark.parametrize(("length", "change"), [(4, "none"), (2, "cut at its beginning"), (10, "repeated")])
def test_a_trained_prompt_is_a_start_for_any_length(tiny, tmp_path, length, change):
    """Also where the embedding scales (XGLM): a file's vectors are behind that scale, the learned ones before it."""
    model = str(tiny / "xglm")
    first, _ = run(tmp_path / "first.safetensors", model=model, init="uniform", epochs=1)
    second, _ = run(
        tmp_path / "second.safetensors", model=model, init=str(tmp_path / "first.safetensors"), epochs=0,
        prompt_length=length,
    )  # fmt: skip
    expected = torch.cat([first.vectors] * 3)[-length:]
    assert torch.allclose(second.vectors, expected, atol=1e-5)
    assert second.metadata["started_from"] == {
        "name": "first", "digest": first.digest, "num_virtual_tokens": 4, "change": change,
    }  # fmt: skip


def test_a_grid_over_starts_is_named_after_them(tmp_path):
    flags = ["--model", "mini", "--task", "t", "--output", str(tmp_path / "g.safetensors")]
    starts = ["vocab", str(tmp_path / "some" / "prompt.safetensors"), "owner/name"]
    given = vars(parser("train").parse_args([*flags, "--init", *starts]))
    names = [Path(config.output).name for config in configurations(given)]
    assert names == ["g-init_vocab.safetensors", "g-init_prompt.safetensors", "g-init_owner_name.safetensors"]


def test_a_start_for_another_model_is_refused(tiny, tmp_path, capsys):
    run(tmp_path / "first.safetensors", model=str(tiny / "llama"), epochs=0)
    flags = ["--model", "mini", "--task", TASK, "--init", str(tmp_path / "first.safetensors")]
    assert main([*flags, "--output", str(tmp_path / "second.safetensors")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: --init") and "has vectors of size 32" in error
    assert not (tmp_path / "second.safetensors").exists()


def test_several_source_languages_balanced(tmp_path, monkeypatch):
    import lm_eval_spt.train.run as run_module

    shown: list[list[int]] = []
    epochs = run_module.epochs

    def watched(*arguments):
        for order in epochs(*arguments):
            shown.append(order)
            yield order

    monkeypatch.setattr(run_module, "epochs", watched)
    tasks = [TASK, "mini_topics_arb_Arab", "mini_topics_hin_Deva"]
    prompt, _ = run(tmp_path / "p.safetensors", task=",".join(tasks), mixture="balanced", epochs=1, shots=2)
    assert prompt.metadata["tasks"] == tasks
    assert prompt.metadata["source_languages"] == ["eng_Latn", "arb_Arab", "hin_Deva"]
    assert prompt.metadata["training_documents"] == 3 * 14
    assert sorted(number // 14 for number in shown[0]) == [0] * 14 + [1] * 14 + [2] * 14


# -- smoothing and patience --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["choices", "target"])
def test_smoothing_is_in_the_training_loss_and_not_in_validation(tmp_path, loss):
    plain = run(tmp_path / "a.safetensors", loss=loss, epochs=1)[1]
    smooth = run(tmp_path / "b.safetensors", loss=loss, epochs=1, label_smoothing=0.3)[1]
    assert smooth[0]["validation"] == plain[0]["validation"]
    assert smooth[1]["training"]["steps"][0] > plain[1]["training"]["steps"][0] + 0.01


def test_patience_ends_a_run_that_gets_no_better(tmp_path, capsys):
    prompt, rows = run(tmp_path / "p.safetensors", lr=0.5, epochs=30, patience=2, shots=1, validation_shots=1)
    best = prompt.metadata["validation"]["epoch"]
    assert [row["epoch"] for row in rows] == list(range(best + 3))
    assert "no lower validation loss for 2 epochs: stopped" in capsys.readouterr().out


# -- tuned models ------------------------------------------------------------------------------------------------------


def test_prompt_and_model_together(tmp_path, monkeypatch):
    output = tmp_path / "both.safetensors"
    prompt, rows = run(output, tune="all", lr=2e-3, model_lr=2e-5, epochs=2)
    folder = tmp_path / "both"
    assert rows[-1]["training"]["loss"] < rows[1]["training"]["loss"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both", "both.jsonl", "both.safetensors"]
    record = SoftPrompt.load(output).metadata
    assert record["base_model"] == str(folder) and record["tuned_from"] == "mini"
    assert record["tuned_share"] > 1  # the model and the prompt
    assert json.loads((folder / "lm_eval_spt.json").read_text())["hyperparameters"]["tune"] == "all"
    found = accuracy(pretrained=str(folder), prompt=str(output))
    assert found == pytest.approx(record["validation"]["accuracy"])
    monkeypatch.chdir(tmp_path)  # a file may name a folder below the current one as its base
    assert accuracy(prompt=str(output)) == found
    untuned = SPTLM(pretrained="mini", device="cpu").model.state_dict()
    tuned = SPTLM(pretrained=str(folder), device="cpu").model.state_dict()
    assert any(not torch.equal(untuned[name], tuned[name]) for name in untuned)


def test_the_model_without_a_prompt(tmp_path):
    prompt, rows = run(tmp_path / "model.safetensors", tune="model", prompt_length=0, model_lr=1e-4, epochs=2)
    assert prompt is None
    assert rows[-1]["training"]["loss"] < rows[1]["training"]["loss"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.jsonl"]
    record = json.loads((tmp_path / "model" / "lm_eval_spt.json").read_text())
    assert accuracy(pretrained=str(tmp_path / "model")) == pytest.approx(record["validation"]["accuracy"])


@pytest.mark.parametrize("length", [0, 4])
def test_an_adapter_with_and_without_a_prompt(tmp_path, length):
    output = tmp_path / "lora.safetensors"
    prompt, rows = run(output, tune="lora", prompt_length=length, model_lr=5e-3, epochs=2)
    assert rows[-1]["training"]["loss"] < rows[1]["training"]["loss"]
    folder = tmp_path / "lora"
    assert (folder / "adapter_model.safetensors").is_file()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "mini"
    record = json.loads((folder / "lm_eval_spt.json").read_text())
    with_prompt = {"prompt": str(output)} if length else {}
    found = accuracy(pretrained="mini", peft=str(folder), **with_prompt)
    assert found == pytest.approx(record["validation"]["accuracy"])
    assert (prompt is None) == (length == 0) == (not output.exists())
    if prompt is not None:
        assert prompt.metadata["adapter"] == str(folder) and prompt.metadata["base_model"] == "mini"


def test_a_grid_over_what_is_tuned_leaves_the_frozen_runs_alone(tmp_path):
    flags = ["--model", "mini", "--task", TASK, "--shots", "1", "--validation-shots", "1", "--epochs", "1"]
    grid = [*flags, "--tune", "all", "prompt", "lora", "--output", str(tmp_path / "g.safetensors")]
    assert main(grid) == 0
    assert main([*flags, "--output", str(tmp_path / "alone.safetensors")]) == 0
    frozen, alone = (SoftPrompt.load(tmp_path / name) for name in ("g-tune_prompt.safetensors", "alone.safetensors"))
    assert torch.allclose(frozen.vectors, alone.vectors, atol=1e-5)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"g-tune_all", "g-tune_lora"}


def test_an_encoder_decoder_model_learns_a_prefix_prompt(tiny, tmp_path, capsys):
    output = tmp_path / "p.safetensors"
    model = str(tiny / "mt5")
    prompt, rows = run(output, model=model, placement="prefix", init="vocab", loss="target", lr=0.05, epochs=12)
    assert rows[-1]["training"]["loss"] < 0.95 * rows[1]["training"]["loss"]
    assert accuracy(pretrained=model, prompt=str(output)) == pytest.approx(prompt.metadata["validation"]["accuracy"])
    flags = ["--model", model, "--task", TASK, "--output", str(tmp_path / "suffix.safetensors")]
    assert main(flags) == 1
    assert "an encoder-decoder model: its prompts stand before the text" in capsys.readouterr().err


# -- contradictions ----------------------------------------------------------------------------------------------------

CONTRADICTIONS = {
    "--tune model --reparameterization mlp": "--reparameterization is 'mlp': expected nothing: --tune model has no",
    "--tune lora --prompt-length 0 --init x.safetensors": "no file: --tune lora --prompt-length 0 has no prompt",
    "--prompt-length 0": "--prompt-length is 0: expected a whole number from 1 on",
    "--tune all --prompt-length 0": "--prompt-length is 0: expected a whole number from 1 on",
    "--model-lr 1e-4": "--model-lr is 0.0001: expected nothing: --tune prompt leaves the model frozen",
    "--tune lora --context-cache host": "what a tuned model makes of a text changes with every step",
    "--tune all --dtype bfloat16": "--dtype is 'bfloat16': expected float32",
    "--tune model --quantization 4bit": "--quantization is '4bit': expected none: quantised weights are not tuned",
    "--lora-rank 4": "--lora-rank is 4: expected it together with --tune lora",
    "--reparameterization-lr 1e-3": "expected it together with --reparameterization",
    "--dual-share 0.5 --reparameterization mlp": "expected it with --reparameterization dual",
    "--dual-share 1.5 --reparameterization dual": "expected a share between 0 and 1",
    "--reparameterization dual --prompt-length 1": "--prompt-length is 1: expected 2 or more",
    "--num-prefix-tokens 2": "expected it together with --placement both",
    "--placement both --prompt-length 1": "--placement both needs a vector on either side",
    "--placement both --prompt-length 4 --num-prefix-tokens 4": "expected a number from 1 to 3",
    "--label-smoothing 1": "--label-smoothing is 1.0: expected a share from 0 to below 1",
    "--patience 0": "--patience is 0: expected a whole number from 1 on",
}


@pytest.mark.parametrize("flags", CONTRADICTIONS)
def test_settings_that_contradict_get_one_line(tmp_path, capsys, flags):
    output = ["--output", str(tmp_path / "p.safetensors")]
    assert main(["--model", "mini", "--task", TASK, *flags.split(), *output]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and CONTRADICTIONS[flags] in line
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_found_before_training(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    flags = ["--model", "mini", "--task", TASK, "--tune", "all", "--output", str(tmp_path / "run.safetensors")]
    assert main(flags) == 1
    assert "holds no model: it is not replaced" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "notes.txt"]
