"""The model class as the harness runs it: whole evaluations, in process and through its command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from safetensors.torch import save_file

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference.base_model import model_path
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.models import build_model, random_prompt, random_prompt_files
from tests.helpers.requests import loglikelihoods
from tests.helpers.scoring import peft_lm

TASKS = ["mini_topics_eng_Latn", "mini_topics_deu_Latn"]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
ENVIRONMENT.pop("PYTHONPATH", None)


@pytest.fixture(scope="session")
def task_manager() -> TaskManager:
    return TaskManager(include_path=str(tasks_folder()), include_defaults=False)


@pytest.fixture(scope="session")
def mini() -> SPTLM:
    return SPTLM(pretrained="mini", device="cpu")


@pytest.fixture(scope="session")
def prompts(mini: SPTLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two prompt files for the embedded model."""
    files = random_prompt_files(mini.model, tmp_path_factory.mktemp("prompts"), ("prefix", 3), ("suffix", 3))
    return {"prefix": Path(files[0]), "suffix": Path(files[1])}


def evaluate(lm: HFLM, task_manager: TaskManager, **options: Any) -> dict[str, list[float]]:
    """Return every task's log-likelihoods, in the order of documents and choices."""
    options = {"tasks": TASKS, "limit": 5, "bootstrap_iters": 0} | options
    results = simple_evaluate(model=lm, task_manager=task_manager, **options)
    return {
        task: [answer for sample in samples for answer in loglikelihoods(sample)]
        for task, samples in results["samples"].items()
    }


@pytest.mark.parametrize("shots", [0, 1, 3])
def test_evaluations_equal_the_harness_with_and_without_peft(mini, task_manager, shots):
    prompt = random_prompt(mini.model, length=3)
    pairs = [
        (SPTLM(mini.model, tokenizer=mini.tokenizer), HFLM(mini.model, tokenizer=mini.tokenizer, batch_size=8)),
        (SPTLM(mini.model, prompt, tokenizer=mini.tokenizer), peft_lm(build_same(mini), mini.tokenizer, prompt)),
    ]
    for ours, theirs in pairs:
        found = evaluate(ours, task_manager, num_fewshot=shots)
        expected = evaluate(theirs, task_manager, num_fewshot=shots)
        for task in TASKS:
            assert found[task] == pytest.approx(expected[task], abs=1e-4, rel=1e-5)


def build_same(mini: SPTLM) -> torch.nn.Module:
    """A copy that PEFT may wrap."""
    return SPTLM(pretrained="mini", device="cpu").model


def test_chat_templates(mini, task_manager):
    tokenizer = SPTLM(pretrained="mini", device="cpu").tokenizer
    tokenizer.chat_template = (
        "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    prompt = random_prompt(mini.model, length=3)
    options = {"apply_chat_template": True, "num_fewshot": 1}
    found = evaluate(SPTLM(mini.model, prompt, tokenizer=tokenizer), task_manager, **options)
    expected = evaluate(peft_lm(build_same(mini), tokenizer, prompt), task_manager, **options)
    plain = evaluate(SPTLM(mini.model, prompt, tokenizer=tokenizer), task_manager, num_fewshot=1)
    for task in TASKS:
        assert found[task] == pytest.approx(expected[task], abs=1e-4, rel=1e-5)
        assert found[task] != pytest.approx(plain[task], abs=1e-2)


def test_the_base_model_comes_from_the_prompt(prompts):
    lm = SPTLM(prompt=str(prompts["suffix"]), device="cpu")
    assert lm.base_model_name == "mini" and lm.max_length == 512 - 3
    info = lm.get_model_info()
    prompt = SoftPrompt.load(prompts["suffix"])
    assert {key: info[key] for key in info if key.startswith("prompt_")} == {
        "prompt_name": "suffix1",
        "prompt_digest": prompt.digest,
        "prompt_length": 3,
        "prompt_placement": "suffix",
        "prompt_metadata": prompt.metadata,
    }


def test_a_cache_of_another_prompt_or_model_is_refused(mini, prompts, task_manager, tmp_path):
    cache = str(tmp_path / "cache")
    prefix, suffix = (SPTLM(mini.model, str(prompts[key]), tokenizer=mini.tokenizer) for key in ("prefix", "suffix"))
    first = evaluate(prefix, task_manager, use_cache=cache)
    assert evaluate(prefix, task_manager, use_cache=cache) == first
    for other in (suffix, SPTLM(mini.model, tokenizer=mini.tokenizer)):
        with pytest.raises(UserError, match=r"with another prompt \(.* there, .* now\): give another --use_cache"):
            evaluate(other, task_manager, use_cache=cache)
    HFLM(mini.model, tokenizer=mini.tokenizer)
    evaluate(HFLM(mini.model, tokenizer=mini.tokenizer), task_manager, use_cache=str(tmp_path / "other"))
    with pytest.raises(UserError, match="was written with something else"):
        evaluate(prefix, task_manager, use_cache=str(tmp_path / "other"))


# -- wrong prompts ---------------------------------------------------------------------------------------------------


def test_a_prompt_of_another_model_is_refused(prompts, tiny_models, tokenizer):
    with pytest.raises(UserError, match=r"256.*32"):
        SPTLM(tiny_models["llama"], str(prompts["prefix"]), tokenizer=tokenizer)
    other = random_prompt(build_model("llama", seed=5))
    with pytest.raises(UserError, match="was trained for .*, not for "):
        SPTLM(tiny_models["llama"], other, tokenizer=tokenizer)


def test_a_prompt_as_long_as_the_context_is_refused(tiny_models, tokenizer):
    prompt = random_prompt(tiny_models["llama"], length=128)
    with pytest.raises(UserError, match="has 128 virtual tokens, but .* reads at most 128 tokens"):
        SPTLM(tiny_models["llama"], prompt, tokenizer=tokenizer)


def test_a_prompt_without_metadata_needs_a_base_model(mini, tmp_path, caplog):
    save_file({"prompt_embeddings": torch.randn(3, 256)}, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match="'bare' does not name its base model: give it with pretrained="):
        SPTLM(prompt=str(tmp_path / "bare.safetensors"))
    SPTLM(mini.model, str(tmp_path / "bare.safetensors"), tokenizer=mini.tokenizer)
    assert "'bare' does not say which base model it was trained on" in caplog.text


def test_neither_model_nor_prompt():
    with pytest.raises(UserError, match="no model was given: expected pretrained="):
        SPTLM()


def test_a_base_model_that_is_not_there():
    with pytest.raises(UserError, match="the base model 'nobody/nothing' can not be loaded"):
        SPTLM(pretrained="nobody/nothing")


# -- the command line ------------------------------------------------------------------------------------------------


def lm_eval(*arguments: str | Path, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the harness's own command in a process of its own."""
    command = [*launcher, "-m", "lm_eval", *map(str, arguments)]
    environment = ENVIRONMENT | ({"ACCELERATE_USE_CPU": "true"} if launcher else {})
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)


def answers_in(folder: Path) -> dict[tuple[str, int], list[float]]:
    """Task and document to log-likelihoods."""
    rows = {}
    for file in folder.glob("*/samples_*.jsonl"):
        for line in file.read_text().splitlines():
            sample = json.loads(line)
            rows[file.name.split("_2")[0], sample["doc_id"]] = loglikelihoods(sample)
    return rows


def test_one_process_and_two_give_the_same_answers_and_what_was_used_is_recorded(prompts, tmp_path):
    options = ("--tasks", ",".join(TASKS), "--limit", "7", "--log_samples", "--device", "cpu")
    model = ("--model", "spt", "--model_args", f"prompt={prompts['suffix']}")
    one = lm_eval(*model, *options, "--output_path", tmp_path / "one")
    # On CPUs `accelerate launch` starts a single process; torchrun starts several, and accelerate finds them.
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d")
    two = lm_eval(
        *model, *options, "--output_path", tmp_path / "two", launcher=(*launcher, "--rdzv_endpoint", "localhost:0")
    )
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    assert "macro_f1" in one.stdout
    # Two tasks of seven documents with seven choices; of two processes the first has four of the documents.
    assert "| 0/98 [" in one.stderr and "| 0/56 [" in two.stderr and "| 0/98 [" not in two.stderr
    expected, found = answers_in(tmp_path / "one"), answers_in(tmp_path / "two")
    assert expected.keys() == found.keys() and len(found) == 14
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, abs=1e-4)
    digest = SoftPrompt.load(prompts["suffix"]).digest
    for number in ("one", "two"):
        (file,) = (tmp_path / number).glob("*/results_*.json")
        config = json.loads(file.read_text())["config"]
        assert file.parent.name == f"mini+suffix1@{digest[:8]}"
        assert (config["prompt_name"], config["prompt_digest"]) == ("suffix1", digest)


def test_a_mistake_on_the_harness_command_line_is_one_line(tmp_path):
    SoftPrompt(torch.randn(4, 256), {"base_model": "mini"}).save(tmp_path / "other.safetensors")
    arguments = ("--model", "spt", "--model_args", f"pretrained=nobody/nothing,prompt={tmp_path / 'other.safetensors'}")
    done = lm_eval(*arguments, "--tasks", "mini_topics_eng_Latn", "--output_path", tmp_path / "out")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    message = [line for line in done.stderr.splitlines() if line.startswith("error: ")][-1]
    assert "the base model 'nobody/nothing' can not be loaded" in message
    assert not (tmp_path / "out").exists()


def test_the_embedded_model_by_its_name_and_by_its_folder(mini):
    assert SPTLM(pretrained=model_path("mini"), device="cpu").fingerprint == mini.fingerprint
    assert SPTLM(pretrained="mini", device="cpu", dtype="bfloat16").fingerprint == mini.fingerprint


# -- real rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_real_sib200_rows_score_as_in_the_harness(mini, sib200_folder, monkeypatch, placement):
    """Real texts in six scripts: as with PEFT (prefix), and as in the harness's own loop (suffix)."""
    monkeypatch.setenv("SIB200_DIR", str(sib200_folder))
    languages = ("eng_Latn", "arb_Arab", "hin_Deva", "zho_Hans", "mya_Mymr", "taq_Tfng")
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    options = {"tasks": [f"sib200_{language}" for language in languages], "limit": 3}
    prompt = random_prompt(mini.model, length=5, placement=placement)
    found = evaluate(SPTLM(mini.model, prompt, tokenizer=mini.tokenizer, batch_size=2), manager, **options)
    if placement == "prefix":
        other: HFLM = peft_lm(build_same(mini), mini.tokenizer, prompt)
    else:
        other = SPTLM(mini.model, prompt, tokenizer=mini.tokenizer, batch_size=8, fast=False)
    expected = evaluate(other, manager, **options)
    assert len(found) == len(languages)
    for task, answers in found.items():
        assert answers == pytest.approx(expected[task], abs=1e-4, rel=1e-5)
