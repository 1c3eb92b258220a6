"""Classifying texts of one's own, against the harness scoring the same texts as a task's documents."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.paths import mini_model_folder, tasks_folder
from lm_eval_spt.harness import classify as module
from lm_eval_spt.harness.classify import Classifier, classify
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.models import random_prompt
from tests.helpers.paths import ROOT
from tests.helpers.requests import loglikelihoods
from tests.helpers.scoring import CLOSE

CATEGORIES = ["science/technology", "travel", "politics", "sports", "health", "entertainment", "geography"]
SUFFIX, PREFIX = (str(ROOT / "prompts" / f"mini_eng_{placement}16.safetensors") for placement in ("suffix", "prefix"))

CUSTOM = """\
task: worded
class: !function lm_eval_spt.harness.text_classification.MiniTopicsTask
dataset_name: eng_Latn
output_type: multiple_choice
test_split: test
description: "Name the topic.\\n"
doc_to_text: "«{{text}}»{% if text|length > 90 %} (long){% endif %}\\n"
doc_to_target: label
doc_to_choice: {{a: one, b: two, c: three, d: four, e: five, f: six, g: seven}}
gen_prefix: "Topic:"
target_delimiter: "\\t"
metric_list:
  - metric: acc
""".replace("{{a", "{a").replace("seven}}", "seven}")


@pytest.fixture(scope="module")
def mini() -> SPTLM:
    return SPTLM(pretrained="mini", device="cpu")


def trained_on(prompt: SoftPrompt, *tasks: str) -> SoftPrompt:
    return SoftPrompt(prompt.vectors, {**prompt.metadata, "base_model": "mini", "tasks": list(tasks)}, "mine")


def of_the_harness(lm: HFLM, task: str, include_path: Path | None = None, limit: int = 12) -> list[dict]:
    """Return the harness's samples for a task: its document, and the log-likelihood of every choice."""
    folders = [str(folder) for folder in (tasks_folder(), include_path) if folder]
    manager = TaskManager(include_path=folders, include_defaults=False)
    results = simple_evaluate(
        model=lm, tasks=[task], task_manager=manager, limit=limit, log_samples=True, bootstrap_iters=0
    )
    return sorted(results["samples"][task], key=lambda sample: sample["doc_id"])


def expect_the_same(found: list[module.Classification], samples: list[dict], choices: list[str]) -> None:
    assert len(found) == len(samples) > 0
    for result, sample in zip(found, samples, strict=True):
        expected = loglikelihoods(sample)
        assert list(result.loglikelihoods) == list(result.probabilities) == choices
        assert list(result.loglikelihoods.values()) == pytest.approx(expected, **CLOSE)
        assert result.label == choices[expected.index(max(expected))]
        weights = [math.exp(value) for value in expected]
        assert list(result.probabilities.values()) == pytest.approx([w / sum(weights) for w in weights], abs=1e-4)


@pytest.mark.parametrize("task", ["mini_topics_eng_Latn", "mini_topics_hin_Deva"])
def test_a_prefix_prompt_answers_as_peft_in_the_harness(task: str, tmp_path: Path) -> None:
    SoftPrompt.load(PREFIX).to_peft(tmp_path / "peft")
    base = AutoModelForCausalLM.from_pretrained(mini_model_folder(), dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(mini_model_folder())
    samples = of_the_harness(HFLM(PeftModel.from_pretrained(base, tmp_path / "peft"), tokenizer=tokenizer), task)
    expect_the_same(classify(PREFIX, [sample["doc"]["text"] for sample in samples], device="cpu"), samples, CATEGORIES)


@pytest.mark.parametrize("task", ["mini_topics_eng_Latn", "mini_topics_hin_Deva"])
def test_a_suffix_prompt_answers_as_in_the_harness_s_own_loop(task: str) -> None:
    samples = of_the_harness(SPTLM(prompt=SUFFIX, device="cpu", fast=False), task)
    expect_the_same(classify(SUFFIX, [sample["doc"]["text"] for sample in samples], device="cpu"), samples, CATEGORIES)


@pytest.mark.parametrize("placement", ["prefix", "suffix", "both"])
def test_a_task_with_words_around_the_text(mini: SPTLM, tmp_path: Path, placement: str) -> None:
    """Its template, description, generation prefix, delimiter and choices, all as the harness puts them."""
    (tmp_path / "worded.yaml").write_text(CUSTOM)
    prompt = trained_on(random_prompt(mini.model, 3, placement), "worded")
    lm = SPTLM(mini.model, prompt, tokenizer=mini.tokenizer, fast=False)
    samples = of_the_harness(lm, "worded", tmp_path)
    contexts = [sample["arguments"][0][0] for sample in samples]
    assert any("(long)" in context for context in contexts) and not all("(long)" in context for context in contexts)
    texts = [sample["doc"]["text"] for sample in samples]
    classifier = Classifier(prompt, lm=mini, include_path=str(tmp_path))
    shown = [[request.args for request in classifier.task.requests(text)] for text in texts]
    assert shown == [list(sample["arguments"]) for sample in samples]
    expect_the_same(list(classifier.stream(texts)), samples, ["one", "two", "three", "four", "five", "six", "seven"])


def test_an_instruction_task(mini: SPTLM) -> None:
    prompt = trained_on(random_prompt(mini.model, 3, "suffix"), "mini_topics_instruct_eng_Latn")
    lm = SPTLM(mini.model, prompt, tokenizer=mini.tokenizer, fast=False)
    samples = of_the_harness(lm, "mini_topics_instruct_eng_Latn")
    expect_the_same(classify(prompt, [sample["doc"]["text"] for sample in samples], lm=mini), samples, CATEGORIES)


def test_choices_and_templates_of_ones_own(mini: SPTLM) -> None:
    """Against single requests that are written out here."""
    prompt = trained_on(random_prompt(mini.model, 3, "suffix"), "mini_topics_eng_Latn")
    lm = SPTLM(mini.model, prompt, tokenizer=mini.tokenizer, fast=False)
    (result,) = classify(prompt, ["It rained."], ["yes", "no"], lm=mini, template="Q: {{sentence}}\nA:")
    pairs = lm.encode_pairs([("Q: It rained.\nA:", " yes"), ("Q: It rained.\nA:", " no")], "suffix")
    expected = [answer for answer, _ in lm._loglikelihood_tokens([(None, *pair) for pair in pairs], disable_tqdm=True)]
    assert list(result.loglikelihoods.values()) == pytest.approx(expected, **CLOSE)
    assert sum(result.probabilities.values()) == pytest.approx(1)


def test_several_tasks_of_one_wording_and_a_group_do(mini: SPTLM) -> None:
    vectors = random_prompt(mini.model, 2, "suffix")
    several = trained_on(vectors, "mini_topics_eng_Latn", "mini_topics_arb_Arab")
    group = trained_on(vectors, "mini_topics")
    assert classify(several, ["a b c"], lm=mini) == classify(group, ["a b c"], lm=mini)
    assert Classifier(several, lm=mini).lm.model is mini.model


@pytest.mark.parametrize("text", ["7", "", "  spaced ", "two\nlines", "{{text}}", '"quoted"', "\ud800 half a pair"])
@pytest.mark.parametrize("template", [None, "{{ text }}"])
def test_any_text_is_shown_as_it_is(mini: SPTLM, text: str, template: str | None) -> None:
    prompt = trained_on(random_prompt(mini.model, 2, "suffix"), "mini_topics_eng_Latn")
    classifier = Classifier(prompt, lm=mini, template=template)
    assert [request.args for request in classifier.task.requests(text)] == [(text, f" {word}") for word in CATEGORIES]
    assert math.isfinite(sum(next(classifier.stream([text])).loglikelihoods.values()))


def test_neither_the_data_nor_a_network_is_needed(mini: SPTLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIB200_DIR", raising=False)
    monkeypatch.setattr("datasets.load_dataset", None)
    prompt = trained_on(random_prompt(mini.model, 2, "suffix"), "sib200_bloom_eng_Latn")
    assert Classifier(prompt, lm=mini).choices[:3] == ["science", "travel", "government"]


def test_contexts_of_other_kinds_are_told(mini: SPTLM, caplog: pytest.LogCaptureFixture) -> None:
    prompt = trained_on(random_prompt(mini.model, 2, "suffix"), "mini_topics_eng_Latn")
    Classifier(prompt, lm=mini)
    assert "in other contexts" not in caplog.text
    record = {"num_fewshot": {"mini_topics_eng_Latn": 2}, "hyperparameters": {"apply_chat_template": False}}
    Classifier(replace(prompt, metadata=prompt.metadata | record), lm=mini)
    assert "0 shots instead of 2" in caplog.text


def test_texts_are_taken_as_they_come(mini: SPTLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 2)
    taken = []

    def texts() -> Iterator[str]:
        for number in range(5):
            taken.append(number)
            yield f"text {number}"

    prompt = trained_on(random_prompt(mini.model, 2, "suffix"), "mini_topics_eng_Latn")
    results = Classifier(prompt, lm=mini).stream(texts())
    first = [next(results), next(results)]
    assert taken == [0, 1]
    rest = list(results)
    expected = classify(prompt, [f"text {number}" for number in range(5)], lm=mini)
    for found, one in zip([*first, *rest], expected, strict=True):
        assert list(found.loglikelihoods.values()) == pytest.approx(list(one.loglikelihoods.values()), abs=1e-5)


def changed(key: str, value: str) -> str:
    """Return the task with another value of a key."""
    return "\n".join(f"{key}: {value}" if line.startswith(f"{key}:") else line for line in CUSTOM.splitlines())


TWO_COLUMNS = changed("doc_to_text", '"{{text}} and {{category}}"')
OWN_CHOICES = changed("doc_to_choice", '"{{[text, category]}}"')
IN_PYTHON = changed("doc_to_text", "!function lm_eval_spt.harness.text_classification.macro_f1")


@pytest.mark.parametrize(
    ("yaml", "tasks", "options", "message"),
    [
        (CUSTOM, [], {}, "the prompt 'mine' does not say which task it was trained on: give the choices, or the task"),
        (CUSTOM, ["gone"], {}, "the task 'gone', whose wording the prompt 'mine' knows, is not known here"),
        (CUSTOM, ["gone"], {"choices": ["a", "b"]}, "is not known here"),
        (CUSTOM, ["worded", "mini_topics_eng_Latn"], {}, r"\(worded, mini_topics_eng_Latn\) differ in their wording"),
        (CUSTOM, ["worded"], {"choices": ["a"]}, "the choices are 'a', expected two or more different ones"),
        (CUSTOM, ["worded"], {"choices": ["a", "a"]}, "expected two or more different ones"),
        (CUSTOM, ["worded"], {"choices": ["a", ""]}, "expected two or more different ones"),
        (CUSTOM, ["worded"], {"template": "no name"}, "has these names: none; one was expected, so give a template"),
        (CUSTOM, ["worded"], {"template": "{{text"}, "is not Jinja"),
        (TWO_COLUMNS, ["worded"], {}, "has these names: category, text; one was expected, so give a template"),
        (OWN_CHOICES, ["worded"], {}, "has no choices that are the same for every text"),
        (IN_PYTHON, ["worded"], {}, "is made by a program or not in its YAML file: give a template"),
    ],
)
def test_what_can_not_be_told_is_said_in_one_line(
    mini: SPTLM, tmp_path: Path, yaml: str, tasks: list[str], options: dict, message: str
) -> None:
    (tmp_path / "worded.yaml").write_text(yaml)
    prompt = trained_on(random_prompt(mini.model, 2, "suffix"), *tasks)
    with pytest.raises(UserError, match=message):
        classify(prompt, ["text"], lm=mini, include_path=str(tmp_path), **options)


@pytest.mark.parametrize("texts", [[], "one text"])
def test_texts_must_be_a_list_with_some(texts: object) -> None:
    with pytest.raises(UserError, match="expected a list of texts"):
        classify(SUFFIX, texts)  # type: ignore[arg-type]


def test_a_template_replaces_what_can_not_be_told(mini: SPTLM, tmp_path: Path) -> None:
    (tmp_path / "worded.yaml").write_text(IN_PYTHON)
    prompt = trained_on(random_prompt(mini.model, 2, "suffix"), "worded")
    classifier = Classifier(prompt, lm=mini, include_path=str(tmp_path), template="{{text}}!")
    assert classifier.task.requests("Go")[0].args == ("Name the topic.\nGo!\tTopic:", "\tone")
