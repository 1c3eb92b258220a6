"""Sorting runs into arms."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from lm_eval_spt.analysis.arms import Arm, check_metric, common_metrics, comparable, curves, read_arms, source_language
from lm_eval_spt.analysis.results import read_run
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.prompted_lm import prompt_info
from lm_eval_spt.prompt.compose import compose
from lm_eval_spt.prompt.ensemble import Ensemble
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.results import write_prompt, write_results

FILE = "results_2025-06-15T15-06-40.000000.json"


def test_runs_that_differ_in_the_seed_alone_are_one_arm(tmp_path: Path) -> None:
    for seed in (0, 1):
        prompt = write_prompt(tmp_path / f"a{seed}.safetensors", seed=seed)
        write_results(tmp_path / f"a{seed}", {"eng_Latn": 0.8, "deu_Latn": 0.4 + 0.2 * seed}, prompt=prompt)
    prompt = write_prompt(tmp_path / "b.safetensors", seed=2, lr=0.1)
    write_results(tmp_path / "b", {"eng_Latn": 0.8, "deu_Latn": 0.3}, prompt=prompt)
    write_results(tmp_path / "none", {"eng_Latn": 0.2, "deu_Latn": 0.2})
    write_results(tmp_path / "instruct", {"eng_Latn": 0.3, "deu_Latn": 0.3}, family="sib200_instruct")
    arms = {arm.name: arm for arm in read_arms([(None, tmp_path)])[0]}
    assert set(arms) == {"a0, a1", "b", "bloom-560m", "bloom-560m (sib200_instruct)"}
    assert arms["a0, a1"].scores("acc")["deu_Latn"].value == pytest.approx(0.5)
    assert [training["seed"] for training in arms["a0, a1"].training] == [0, 1]
    assert (arms["b"].tuned_parameters, arms["bloom-560m"].tuned_parameters) == (32, 0)
    assert arms["b"].training_cost == "56 documents × 20 epochs"


def test_names_make_arms_and_a_mixed_one_is_pointed_out(tmp_path: Path) -> None:
    for length in (4, 8):
        prompt = write_prompt(tmp_path / f"{length}.safetensors", length=length)
        write_results(tmp_path / f"{length}", {"eng_Latn": 0.8, "deu_Latn": length / 10}, prompt=prompt)
    arms, notices = read_arms([("mine", tmp_path / "4"), ("mine", tmp_path / "8")])
    assert [arm.name for arm in arms] == ["mine"]
    assert arms[0].scores("acc")["deu_Latn"].value == pytest.approx(0.6)
    assert notices == ["mine: the mean of runs that differ in more than their seed"]


def test_results_under_two_names_belong_to_both_and_not_to_what_has_no_name(tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        write_results(tmp_path / "runs" / name, {"eng_Latn": 0.1 * (2 + number)}, torch_seed=number)
    one = tmp_path / "runs" / "a"
    arms, _ = read_arms([("first", one), ("second", one)])
    assert [(arm.name, [run.path.parent for run in arm.runs]) for arm in arms] == [("first", [one]), ("second", [one])]
    arms, _ = read_arms([("first", one), (None, tmp_path / "runs")])
    assert [(arm.name, arm.scores("acc")["eng_Latn"].value) for arm in arms] == [
        ("first", 0.2),
        ("bloom-560m", 0.1 * 3),
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"beside": {"system_instruction_sha": "0a"}},
        {"beside": {"chat_template_sha": "0a"}},
        {"beside": {"fewshot_as_multiturn": True}},
        {"gen_kwargs": {"temperature": 1}},
    ],
)
def test_what_stands_around_the_documents_makes_another_arm(tmp_path: Path, options: dict) -> None:
    prompt = write_prompt(tmp_path / "p.safetensors")
    for number, (of, more) in enumerate([(None, {}), (None, options), (prompt, {}), (prompt, options)]):
        write_results(tmp_path / "runs" / str(number), {"eng_Latn": 0.2 + number / 10}, prompt=of, **more)
    arms, left_out = read_arms([(None, tmp_path / "runs")])
    assert [arm.scores("acc")["eng_Latn"].value for arm in arms] == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert left_out == []


@pytest.mark.parametrize(
    ("value", "higher_is_better", "reason"),
    [
        (0.2, False, "has 'bleu', of which less is better: expected .* such as acc, macro_f1"),
        (31.2, True, "has 'bleu' of 31.2: expected"),
        (0.2, True, None),
        (-0.2, None, None),
    ],
)
def test_a_metric_is_a_share_of_which_more_is_better(
    tmp_path: Path, value: float, higher_is_better: bool | None, reason: str | None
) -> None:
    told = {} if higher_is_better is None else {"higher_is_better": {"sib200_eng_Latn": {"bleu": higher_is_better}}}
    file = write_results(tmp_path, {"eng_Latn": 0.5}, beside=told)
    content = json.loads(file.read_text())
    content["results"]["sib200_eng_Latn"]["bleu,none"] = value
    file.write_text(json.dumps(content))
    arms, _ = read_arms([("mine", file)])
    with pytest.raises(UserError, match=reason) if reason else nullcontext():
        check_metric(arms, "bleu")


def test_a_prompt_that_has_changed_since_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prompt = write_prompt(tmp_path / "p.safetensors")
    file = write_results(tmp_path / "results", {"eng_Latn": 0.8}, prompt=prompt, prompt_metadata=None)
    assert read_arms([(None, file)])[0][0].trained_on == "sib200_eng_Latn, 8 shots"
    write_prompt(prompt, seed=7)
    (arm,) = read_arms([(None, file)])[0]
    assert (arm.trained_on, arm.tuned_parameters, arm.training_cost) == (None, None, None)


@pytest.mark.parametrize(
    ("difference", "reason"),
    [
        ({"version": 2.0}, "task version 2.0, not 1.0"),
        ({"num_fewshot": 5}, "few-shot number 5, not 0"),
        ({"limit": 10}, "limit 10, not none"),
        ({"family": "mini_topics"}, "data set mini_topics, not sib200"),
    ],
)
def test_what_can_not_be_compared_is_left_out_with_the_reason(tmp_path: Path, difference: dict, reason: str) -> None:
    same = [write_results(tmp_path / name, {"eng_Latn": 0.5}) for name in "ab"]
    other = write_results(tmp_path / "c", {"eng_Latn": 0.5}, **difference)
    kept, lines = comparable([read_run(path) for path in (other, *same)])
    assert [run.path for run in kept] == same
    assert lines == [f"left out: {other} can not be compared with the others: {reason}"]


def test_curves_join_arms_that_differ_in_nothing_else(tmp_path: Path) -> None:
    arms = []
    for kind in ("none", "mlp"):
        for length in (2, 16, 4):
            prompt = write_prompt(tmp_path / f"{kind}{length}.safetensors", length, reparameterization=kind)
            arms.append((f"{kind}{length}", prompt))
    arms.append(("other lr", write_prompt(tmp_path / "lr.safetensors", 8, reparameterization="none", lr=1.0)))
    runs = [(name, write_results(tmp_path / name, {"eng_Latn": 0.5}, prompt=prompt), prompt) for name, prompt in arms]
    arms = [Arm(name, [read_run(path)], [SoftPrompt.load(prompt).metadata]) for name, path, prompt in runs]
    assert curves(arms, "prompt_length") == [
        ("reparameterization mlp", [3, 4, 5]),
        ("reparameterization none", [0, 1, 2]),
    ]
    assert curves(arms, "reparameterization") == [
        ("prompt length 2", [0, 3]),
        ("prompt length 4", [2, 5]),
        ("prompt length 16", [1, 4]),
    ]


@pytest.mark.parametrize(
    ("records", "source"),
    [
        ([{}], "eng_Latn"),
        ([{"tasks": ["sib200_deu_Latn"], "source_languages": ["deu_Latn"]}], "deu_Latn"),
        ([{"tasks": ["xnli_sw"]}, {}], "swh_Latn"),  # a record of before this was told
        ([{"tasks": ["xnli_sw"], "source_languages": []}], "swh_Latn"),
        ([{"tasks": ["odd"], "source_languages": ["fr"]}], "fra_Latn"),
        ([{"source_languages": ["deu_Latn"]}, {"source_languages": ["fra_Latn"]}], "eng_Latn"),
        ([{"tasks": ["sib200_deu_Latn", "sib200_fra_Latn"]}], "eng_Latn"),
        ([{"tasks": ["sst2"], "source_languages": ["not a language"]}], "eng_Latn"),
    ],
)
def test_the_source_language_is_that_of_all_prompts_or_english(records: list[dict], source: str) -> None:
    assert source_language([Arm("a", [], [record]) for record in records]) == source


def test_the_first_metric_of_the_task_is_the_default(tmp_path: Path) -> None:
    write_results(tmp_path / "a", {"en": 0.5, "de": 0.5}, family="xnli")
    arms, _ = read_arms([(None, tmp_path)])
    assert common_metrics(arms) == ["acc", "macro_f1"]


def test_prompts_of_a_task_are_arms_on_the_same_documents(tmp_path: Path) -> None:
    for number in (1, 2):
        write_results(tmp_path / str(number), {"eng_Latn": 0.8, "swh_Latn": 0.4}, family=f"p_prompt_{number}")
    # As AfroBench names them: the language stands before the prompt.
    for file in tmp_path.glob("**/*.json"):
        file.write_text(re.sub(r"p_(prompt_\d)_(\w{8})", r"p_\2_\1", file.read_text()))
    arms, left_out = read_arms([(None, tmp_path)])
    assert [arm.name for arm in arms] == ["bloom-560m (p_prompt_1)", "bloom-560m (p_prompt_2)"]
    assert left_out == []


def some_prompts(folder: Path) -> dict[str, SoftPrompt | Ensemble]:
    """One prompt of each kind, by its description."""
    parts = [
        SoftPrompt.load(write_prompt(folder / f"{seed}.safetensors", seed=seed, reparameterization="mlp"))
        for seed in range(3)
    ]
    record = dict(parts[0].metadata)
    settings = record["hyperparameters"] | {"reparameterization": "none"}
    record["hyperparameters"] = settings
    del record["num_virtual_tokens"], record["hidden_size"], record["prompt_kind"]
    averaged = record | {"hyperparameters": settings | {"average_checkpoints": 3}, "validation": {"averaged_epochs": 3}}
    deep = record | {"placement": "prefix", "hyperparameters": settings | {"prompt_kind": "kv", "tune": "lora"}}
    return {
        "suffix, 4 tokens": SoftPrompt(torch.zeros(4, 8), record, "a"),
        "suffix, 4 tokens, mean of the last 3 epochs": SoftPrompt(torch.ones(4, 8), averaged, "b"),
        "deep prefix, 4 tokens, LoRA tuned": SoftPrompt(torch.ones(2, 2, 1, 4, 3), deep, "c"),
        "ensemble of 3 prompts (mean of probabilities), suffix, 4 tokens each, mlp reparameterization": Ensemble(
            tuple(parts)
        ),
        "ensemble of 3 prompts (mean of log-probabilities), suffix, 4 tokens each, mlp reparameterization": Ensemble(
            tuple(parts), "log_probability"
        ),
        "mean of 3 prompts, suffix, 4 tokens": compose(parts, "mean"),
        "interpolation of 2 prompts, suffix, 4 tokens": compose(parts[:2], "interpolate", 0.3),
        "2 prompts in a row, suffix, 8 tokens": compose(parts[:2], "concat"),
    }


def test_kinds_of_prompts_are_told_apart_and_described(tmp_path: Path) -> None:
    prompts = some_prompts(tmp_path)
    for number, prompt in enumerate(prompts.values()):
        write_results(tmp_path / f"runs/{number}", {"eng_Latn": 0.8, "deu_Latn": 0.4}, **prompt_info(prompt))
    write_results(tmp_path / "runs/none", {"eng_Latn": 0.8, "deu_Latn": 0.4})
    arms, _ = read_arms([(None, tmp_path / "runs")])
    assert sorted(arm.description for arm in arms) == sorted([*prompts, "no prompt"])


def test_ensembles_of_other_seeds_are_runs_of_one_arm_but_other_means_are_not(tmp_path: Path) -> None:
    parts = [SoftPrompt.load(write_prompt(tmp_path / f"{seed}.safetensors", seed=seed)) for seed in range(4)]
    for number, pair in enumerate((parts[:2], parts[2:])):
        ensemble, mean = Ensemble(tuple(pair)), compose(pair, "mean")
        write_results(tmp_path / f"runs/e{number}", {"eng_Latn": 0.8}, **prompt_info(ensemble))
        write_results(tmp_path / f"runs/m{number}", {"eng_Latn": 0.8}, **prompt_info(mean))
    arms, _ = read_arms([(None, tmp_path / "runs")])
    assert {arm.name: len(arm.runs) for arm in arms} == {"0+1, 2+3": 2, "0+1": 1, "2+3": 1}


def test_a_record_of_an_older_version_is_of_the_same_arm(tmp_path: Path) -> None:
    prompts = [write_prompt(tmp_path / "old.safetensors"), write_prompt(tmp_path / "new.safetensors", seed=1)]
    for prompt, kind in zip(prompts, ({}, {"prompt_kind": "embeddings"}), strict=True):
        record = SoftPrompt.load(prompt).metadata
        record = record | {"hyperparameters": record["hyperparameters"] | kind}
        if not kind:
            record.pop("prompt_kind", None)
        write_results(tmp_path / prompt.stem, {"eng_Latn": 0.8}, prompt=prompt, prompt_metadata=record)
    assert [len(arm.runs) for arm in read_arms([(None, tmp_path / "old"), (None, tmp_path / "new")])[0]] == [2]


@pytest.mark.parametrize(
    "record",
    [
        {"ensemble": "two", "composed": []},
        {"ensemble": {"members": 3}, "composed": {"mode": ["mean"], "prompts": []}},
        {"ensemble": {"members": [], "average": {}}, "hyperparameters": {"tune": ["all"], "lr": 1}},
        {"validation": {"averaged_epochs": "many"}, "prompt_kind": {}},
    ],
)
def test_a_record_that_holds_anything_is_described_all_the_same(tmp_path: Path, record: dict) -> None:
    prompt = write_prompt(tmp_path / "p.safetensors")
    file = write_results(tmp_path / "p", {"eng_Latn": 0.8}, prompt=prompt, prompt_metadata=record)
    (arm,) = read_arms([(None, file)])[0]
    assert "suffix" in arm.description


def test_a_prompt_that_was_scored_twice_is_one_run(tmp_path: Path) -> None:
    prompts = [write_prompt(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (0, 1)]
    for number, (seed, prompt) in enumerate([(0, prompts[0]), (7, prompts[0]), (0, prompts[1])]):
        write_results(
            tmp_path / "mine" / str(number), {"eng_Latn": 0.8, "deu_Latn": 0.4}, prompt=prompt, random_seed=seed
        )
    (arm,), left_out = read_arms([("mine", tmp_path / "mine")])
    assert len(arm.runs) == 2
    assert [line.rpartition("repeats")[0].strip() for line in left_out] == [f"left out: {tmp_path / 'mine/0'}/{FILE}"]
    for number, scores in enumerate(
        [{"eng_Latn": 0.2}, {"eng_Latn": 0.2}, {"eng_Latn": 0.3}]
    ):  # the last is another model
        write_results(tmp_path / "none" / str(number), scores, random_seed=number)
    (arm,), left_out = read_arms([("none", tmp_path / "none")])
    assert (len(arm.runs), len(left_out)) == (2, 1)
    for seed in (1, 2):  # shots are drawn anew
        write_results(tmp_path / "shots" / str(seed), {"eng_Latn": 0.2}, num_fewshot=3, fewshot_seed=seed)
    (arm,), left_out = read_arms([("shots", tmp_path / "shots")])
    assert (len(arm.runs), left_out) == (2, [])


def test_what_a_seed_could_have_changed_is_told_by_the_record(tmp_path: Path) -> None:
    def arm(name: str, **options) -> Arm:
        return read_arms([(name, write_results(tmp_path / name, {"eng_Latn": 0.8}, **options).parent)])[0][0]

    learned = write_prompt(tmp_path / "p.safetensors", seed=3, shots_seed=5)
    template = write_prompt(tmp_path / "t.safetensors", epochs=0, init="text")
    tuned = {"seed": 4, "tuned_parameters": 9, "hyperparameters": {"shots_seed": None}}
    assert not arm("plain").is_random and not arm("template", prompt=template).is_random
    assert arm("prompt", prompt=learned).is_random and arm("shots", num_fewshot=2).is_random
    assert arm("peft", model_args="pretrained=x,peft=y").is_random
    assert arm("tuned", model_metadata=tuned).is_random and arm("tuned", model_metadata=tuned).tuned_parameters == 9
    assert arm("prompt", prompt=learned).documents_seeds == [5]
    assert arm("tuned", model_metadata=tuned).documents_seeds == [4]
    assert arm("plain").documents_seeds == [None]
    other = write_prompt(tmp_path / "q.safetensors", length=9, seed=1)
    assert arm("prompt", prompt=learned).kind == arm("longer", prompt=other).kind != arm("plain").kind
