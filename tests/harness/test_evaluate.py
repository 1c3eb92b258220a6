"""Evaluating many prompts together against the harness scoring one after the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from pyarrow import parquet

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.harness.evaluate import evaluate_prompts
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.harness.many_prompts import ManyPromptsLM
from lm_eval_spt.harness.patches import task_manager
from lm_eval_spt.harness.samples import samples_path
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.models import random_prompt, random_prompt_files
from tests.helpers.requests import loglikelihoods

TASKS = ["mini_topics_eng_Latn", "mini_topics_hin_Deva"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """Three suffix prompts of other lengths, a prefix prompt and one for both sides, for the embedded model."""
    model = SPTLM(pretrained="mini", device="cpu").model
    kinds = [("suffix", 2), ("suffix", 5), ("prefix", 3), ("suffix", 5), ("both", 3)]
    return sorted(random_prompt_files(model, tmp_path_factory.mktemp("prompts"), *kinds))


def one_by_one(file: str, **options) -> dict:
    lm = SPTLM(prompt=file, device="cpu", batch_size="auto", **options.pop("model", {}))
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    return simple_evaluate(model=lm, tasks=TASKS, task_manager=manager, **options)


def samples_of(folder: Path) -> dict[str, list[float]]:
    rows = {}
    for file in folder.glob("samples_*.jsonl"):
        for line in file.read_text().splitlines():
            sample = json.loads(line)
            rows[f"{file.name.split('_2')[0]} {sample['doc_id']}"] = loglikelihoods(sample)
    return rows


@pytest.mark.parametrize("model_args", ["", "max_length=24"])
def test_every_prompt_gets_what_it_would_get_alone(files, tmp_path, model_args):
    """Also where texts are cut, which each length of prompt does in another place."""
    options = {"limit": 6, "log_samples": True, "num_fewshot": 1}
    paths = evaluate_prompts(files, TASKS, str(tmp_path), device="cpu", model_args=model_args, **options)
    assert len(paths) == len(files) == len({path.parent for path in paths})
    model = {"max_length": 24} if model_args else {}
    for file, path in zip(files, paths, strict=True):
        expected = one_by_one(file, model=model, **options)
        found = json.loads(path.read_text())
        for task in TASKS:
            assert found["results"][task]["acc,none"] == expected["results"][task]["acc,none"]
            assert found["results"][task]["macro_f1,none"] == pytest.approx(expected["results"][task]["macro_f1,none"])
        assert found["config"]["model"] == "spt" and found["config"]["model_args"]["prompt"] == file
        assert found["config"]["prompt_digest"] == SoftPrompt.load(file).digest
        assert found["configs"][TASKS[0]]["metadata"]["prompt"] == file
        rows = samples_of(path.parent)
        for task in TASKS:
            for sample in expected["samples"][task]:
                answers = loglikelihoods(sample)
                assert rows[f"samples_{task} {sample['doc_id']}"] == pytest.approx(answers, abs=1e-4)
        compact = parquet.read_table(samples_path(path)).to_pylist()
        assert len(compact) == sum(len(expected["samples"][task]) for task in TASKS)
        by_document = {(row["task"], row["doc_id"]): row for row in compact}
        for task in TASKS:
            for sample in expected["samples"][task]:
                row = by_document[task, str(sample["doc"]["index_id"])]
                assert (row["acc"], row["macro_f1"]) == (sample["acc"], list(sample["macro_f1"]))
                assert row["target"] == str(sample["target"])
                assert row["loglikelihoods"] == pytest.approx(loglikelihoods(sample), abs=1e-4)


def test_contexts_are_read_once_for_all_suffix_prompts(files, monkeypatch):
    """The model reads every text once, whatever the number of suffix prompts."""
    import lm_eval_spt.inference.scoring as scoring

    texts = []
    prefill = scoring.prefill
    monkeypatch.setattr(
        scoring, "prefill", lambda model, ids, mask: (texts.append(len(ids)), prefill(model, ids, mask))[1]
    )
    prompts = [SoftPrompt.load(file) for file in files if "suffix" in Path(file).name]
    lm = ManyPromptsLM(prompts, pretrained="mini", device="cpu", batch_size="auto")
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    for prompt in prompts:
        lm.use(prompt)
        simple_evaluate(model=lm, tasks=TASKS, task_manager=manager, limit=6, bootstrap_iters=0)
    assert sum(texts) == 12


def test_what_is_there_is_not_done_again(files, tmp_path, monkeypatch):
    options = {"limit": 3, "device": "cpu"}
    first = evaluate_prompts(files[:1], TASKS, str(tmp_path), **options)
    before = first[0].read_bytes()
    both = evaluate_prompts(files[:2], TASKS, str(tmp_path), **options)
    assert both[0] == first[0] and first[0].read_bytes() == before
    assert len(list(tmp_path.glob("*/results_*.json"))) == 2
    monkeypatch.setattr("lm_eval_spt.harness.evaluate.ManyPromptsLM", None)
    assert evaluate_prompts(files[:2], TASKS, str(tmp_path), **options) == both
    first[0].write_text(before.decode()[:100])
    with pytest.raises(TypeError):  # a file that was written halfway does not count
        evaluate_prompts(files[:1], TASKS, str(tmp_path), **options)
    assert samples_path(both[1]).is_file() and not list(both[1].parent.glob("*.jsonl"))
    with pytest.raises(TypeError):  # nor do other settings
        evaluate_prompts(files[1:2], TASKS, str(tmp_path), **{**options, "num_fewshot": 1})


@pytest.mark.parametrize(
    "change",
    [
        {"model_args": "max_length=20"},
        {"model_args": "add_bos_token=True"},
        {"model_args": "dtype=bfloat16"},
        {"limit": 5},
        {"num_fewshot": 1},
        {"log_samples": True},
        {"tasks": TASKS},
        {"include_path": "tasks"},
    ],
)
def test_results_of_other_settings_are_not_taken_for_these(files, tmp_path, change):
    """They are made anew beside the old ones, and both are found again."""
    if "include_path" in change:  # a task of the same name with another text
        task = yaml.safe_load((tasks_folder() / "mini_topics/mini_topics/mini_topics_eng_Latn.yaml").read_text())
        folder = tmp_path / "tasks"
        folder.mkdir()
        include = str(tasks_folder() / "mini_topics/mini_topics" / task["include"])
        (folder / "eng.yaml").write_text(yaml.safe_dump(task | {"include": include, "description": "What is this? "}))
        change = {"include_path": str(folder)}

    def evaluate(output: str, **more) -> Path:
        options = {"limit": 4, "device": "cpu", "tasks": TASKS[:1], **more}
        (path,) = evaluate_prompts(files[:1], options.pop("tasks"), str(tmp_path / output), **options)
        return path

    def content(path: Path) -> dict:
        read = json.loads(path.read_text())
        return {name: read[name] for name in ("results", "n-shot", "n-samples")}

    first = evaluate("there")
    kept = first.read_bytes()
    second, fresh = evaluate("there", **change), evaluate("fresh", **change)
    assert second != first and first.read_bytes() == kept
    assert content(second) == content(fresh)
    assert samples_of(second.parent) == samples_of(fresh.parent)
    assert evaluate("there", **change) == second
    assert evaluate("there") == (second if change in ({"tasks": TASKS}, {"log_samples": True}) else first)
    if "log_samples" in change:
        next(second.parent.glob("samples_*.jsonl")).unlink()
        assert evaluate("there", **change) not in (first, second)


def test_another_model_in_the_same_folder_is_scored_anew(tmp_path):
    lm = SPTLM(pretrained="mini", device="cpu")
    folder, file = tmp_path / "model", tmp_path / "p.safetensors"
    prompt = random_prompt(lm.model, placement="suffix")
    SoftPrompt(prompt.vectors, prompt.metadata).save(file)
    paths = []
    for change in (0, 0, 1):
        if change or not paths:
            lm.model.model.layers[0].mlp.up_proj.weight.data += change
            lm.model.save_pretrained(folder)
            lm.tokenizer.save_pretrained(folder)
        options = {"model_args": f"pretrained={folder}", "limit": 2, "device": "cpu"}
        paths += evaluate_prompts([str(file)], TASKS[:1], str(tmp_path / "out"), **options)
    assert paths[0] == paths[1] != paths[2]


def test_the_base_model_is_loaded_as_the_prompt_was_trained(files, tmp_path):
    """With a BOS token where training had one, as ``lm_eval --model spt`` does; prompts that differ are refused."""
    prompt = SoftPrompt.load(files[0])
    with_bos = tmp_path / "bos.safetensors"
    SoftPrompt(prompt.vectors, {**prompt.metadata, "hyperparameters": {"add_bos_token": True}}).save(with_bos)
    (path,) = evaluate_prompts([str(with_bos)], TASKS[:1], str(tmp_path), limit=4, log_samples=True, device="cpu")
    expected = one_by_one(str(with_bos), limit=4, log_samples=True)
    plain = one_by_one(files[0], limit=4, log_samples=True)
    rows = samples_of(path.parent)
    for sample, without in zip(expected["samples"][TASKS[0]], plain["samples"][TASKS[0]], strict=True):
        answers, others = map(loglikelihoods, (sample, without))
        assert rows[f"samples_{TASKS[0]} {sample['doc_id']}"] == pytest.approx(answers, abs=1e-4)
        assert answers != pytest.approx(others, abs=1e-3)
    with pytest.raises(UserError, match=r"different add_bos_token \(None, True\): give one at a time"):
        evaluate_prompts([files[0], str(with_bos)], TASKS[:1], str(tmp_path / "both"), device="cpu")


def test_a_base_model_that_is_loaded_need_not_be_named(tmp_path, monkeypatch):
    """A prompt may name a folder outside of the current one, which is not opened because a file says so."""
    lm = SPTLM(pretrained="mini", device="cpu")
    folder = tmp_path / "model"
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    prompt = random_prompt(lm.model, placement="suffix")
    file = tmp_path / "p.safetensors"
    SoftPrompt(prompt.vectors, {**prompt.metadata, "base_model": str(folder)}).save(file)
    options = {"limit": 2, "device": "cpu"}
    with pytest.raises(UserError, match="outside of the current one"):
        evaluate_prompts([str(file)], TASKS[:1], str(tmp_path / "out"), **options)
    base = SPTLM(pretrained=str(folder), device="cpu")
    (path,) = evaluate_prompts([str(file)], TASKS[:1], str(tmp_path / "out"), base=base, **options)
    assert json.loads(path.read_text())["n-samples"][TASKS[0]]["effective"] == 2


def test_mistakes_are_one_line(files, tmp_path, monkeypatch):
    ours = task_manager(TASKS)  # the harness's own files take many seconds
    monkeypatch.setattr("lm_eval_spt.harness.evaluate.task_manager", lambda names, include_path, metadata: ours)
    bare = tmp_path / "bare.safetensors"
    prompt = SoftPrompt.load(files[0])
    SoftPrompt(prompt.vectors, {"placement": "suffix"}).save(bare)
    other = tmp_path / "other.safetensors"
    SoftPrompt(prompt.vectors, {**prompt.metadata, "base_model": "other/model"}).save(other)
    for prompts, tasks, message in [
        ([str(tmp_path / "*.bin")], TASKS, "no prompt file matches"),
        ([str(bare)], TASKS, "does not name its base model"),
        ([files[0], str(other)], TASKS, "different base models"),
        (files[:1], ["mini_topics_xxx"], "there is no task 'mini_topics_xxx'"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            evaluate_prompts(prompts, tasks, str(tmp_path / "out"))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
