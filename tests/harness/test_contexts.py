"""What is learned on is what is scored: training's texts against the requests that ``simple_evaluate`` makes."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import math
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.contexts import as_scored, build_requests, selected_template
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.harness.options import ContextOptions, EvaluationOptions
from lm_eval_spt.inference.base_model import model_path
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train.config import DocumentOptions, TrainingConfig
from lm_eval_spt.train.examples import ExampleReader, load_tasks, read_documents
from lm_eval_spt.train.splits import training_rows
from tests.helpers.models import random_prompt

TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}"
    "{% if not loop.last or add_generation_prompt %}[end]{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
WORDS = ["river", "goal", "vote"]


class Listener(TemplateLM):
    """A model of the harness that remembers what it was asked; its answers mean nothing."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.asked: dict[int, list[tuple]] = {}

    def _hear(self, requests: list, answer: Any) -> list:
        for request in requests:
            self.asked.setdefault(request.doc_id, []).append(request.args)
        return [answer] * len(requests)

    def loglikelihood(self, requests, disable_tqdm=False):
        return self._hear(requests, (-1.0, False))

    def generate_until(self, requests, disable_tqdm=False):
        return self._hear(requests, "")

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        return self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )  # fmt: skip

    tokenizer_name = "listener"
    eot_token_id = property(lambda self: self.tokenizer.eos_token_id)
    tok_encode = loglikelihood_rolling = _loglikelihood_tokens = None  # type: ignore[assignment]


@pytest.fixture(scope="module")
def chat_tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(model_path("mini"))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def write_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a task whose training split is also the one that is scored; returns its folder."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def write(rows: int = 12, **changes) -> str:
        documents = {"train": range(rows), "more": range(100, 108)}
        files = {}
        for split, numbers in documents.items():
            files[split] = str(tmp_path / f"{split}.jsonl")
            lines = [{"text": f"Text {n} on it.", "hint": f"Hint {n}", "label": n % 3} for n in numbers]
            Path(files[split]).write_text("\n".join(map(json.dumps, lines)))
        task = {
            "task": "written", "dataset_path": "json", "dataset_kwargs": {"data_files": files},
            "training_split": "train", "test_split": "train", "output_type": "multiple_choice",
            "doc_to_text": "{{text}}\nTopic:", "doc_to_target": "label", "doc_to_choice": WORDS,
            "metric_list": [{"metric": "acc"}],
        }  # fmt: skip
        (tmp_path / "written.yaml").write_text(yaml.safe_dump(task | changes))
        return str(tmp_path)

    return write


@pytest.mark.parametrize(
    ("module", "attribute", "parameters"),
    [
        ("lm_eval.api.task", "ConfigurableTask.fewshot_context", [
            "self", "doc", "num_fewshot", "system_instruction", "apply_chat_template", "fewshot_as_multiturn",
            "chat_template", "gen_prefix",
        ]),
        ("lm_eval.api.task", "ConfigurableTask.set_fewshot_seed", ["self", "seed"]),
        ("lm_eval.models.huggingface", "HFLM.apply_chat_template", ["self", "chat_history", "add_generation_prompt"]),
        ("lm_eval._cli.utils", "MergeDictAction.__call__", ["self", "parser", "namespace", "values", "option_string"]),
    ],
)  # fmt: skip
def test_lm_eval_still_has_what_we_rely_on(module, attribute, parameters):
    function = inspect.unwrap(attrgetter(attribute)(importlib.import_module(module)))
    assert list(inspect.signature(function).parameters) == parameters


def test_the_harness_announces_what_it_evaluates():
    import lm_eval.evaluator

    known = set(inspect.signature(inspect.unwrap(lm_eval.evaluator.evaluate)).parameters)
    assert known >= {"lm", "task_dict", "system_instruction", "apply_chat_template", "fewshot_as_multiturn"}
    assert lm_eval.evaluator.evaluate is not inspect.unwrap(lm_eval.evaluator.evaluate)


ALLOWED = DocumentOptions(allow_test_documents=True)
"""The tasks here learn from the split that the harness scores, whose requests can be compared then."""

TASKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "description": {"description": "Say what it is about.\n\n"},
    "gen_prefix": {"gen_prefix": "The answer is"},
    "gen_prefix of the document": {"gen_prefix": "hint", "num_fewshot": 1, "fewshot_split": "more"},
    "own shots": {"num_fewshot": 2, "fewshot_split": "more"},
    "shots from the same split": {"num_fewshot": 3, "fewshot_split": "train"},
    "shots in order": {"num_fewshot": 2, "fewshot_split": "more", "fewshot_config": {"sampler": "first_n"}},
    "generation": {
        "output_type": "generate_until", "doc_to_target": "{{['river', 'goal', 'vote'][label]}}", "doc_to_choice": None,
        "num_fewshot": 1, "fewshot_split": "more", "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip

OPTIONS: dict[str, dict[str, Any]] = {
    "by the task": {},
    "four shots": {"num_fewshot": 4},
    "no shots": {"num_fewshot": 0},
    "instruction": {"system_instruction": "Be brief."},
    "chat": {"apply_chat_template": True},
    "chat with all": {"apply_chat_template": True, "system_instruction": "Be brief.", "num_fewshot": 2},
    "shots in one turn": {"apply_chat_template": True, "fewshot_as_multiturn": False, "num_fewshot": 2},
}


def asked_by_the_harness(folder: str, tokenizer, options: dict[str, Any]) -> dict[int, list[tuple]]:
    listener = Listener(tokenizer)
    manager = TaskManager(include_path=folder, include_defaults=False)
    simple_evaluate(
        model=listener, tasks=["written"], task_manager=manager, bootstrap_iters=0, log_samples=False,
        **{"fewshot_as_multiturn": bool(options.get("apply_chat_template"))} | options,
    )  # fmt: skip
    return listener.asked


@pytest.mark.parametrize("kind", TASKS)
def test_training_reads_what_the_harness_asks(write_task, chat_tokenizer, kind):
    folder = write_task(**{"fewshot_split": "train"} | TASKS[kind])
    (task,) = load_tasks(["written"], folder)
    template = Listener(chat_tokenizer).apply_chat_template
    contexts = {}
    for name, options in OPTIONS.items():
        asked = asked_by_the_harness(folder, chat_tokenizer, options)
        documents = read_documents(task, training_rows(task, ALLOWED), ContextOptions(**options), template)
        assert len(documents) == len(asked) == 12
        for number, document in enumerate(documents):
            if kind == "generation":
                delimiter = "" if options.get("apply_chat_template") else " "
                expected = [(asked[number][0][0], delimiter + WORDS[number % 3])]
            else:
                expected = asked[number]
            assert list(document.pairs) == expected, name
            assert document.pairs[document.gold][1].strip() == WORDS[number % 3]
        contexts[documents[0].pairs[0][0]] = name
    assert len(contexts) >= len(OPTIONS) - 1  # without shots of its own, a task's are "no shots"


def test_the_contexts_hold_what_was_asked_for(write_task, chat_tokenizer):
    """The texts written out, so that harness and training can not leave out the same things."""
    folder = write_task(gen_prefix="It is about", fewshot_split="more", fewshot_config={"sampler": "first_n"})
    (task,) = load_tasks(["written"], folder)
    template = Listener(chat_tokenizer).apply_chat_template
    options = ContextOptions(num_fewshot=1, apply_chat_template=True, system_instruction="Be brief.")
    document = read_documents(task, training_rows(task, ALLOWED), options, template)[0]
    assert document.pairs[0] == (
        "[system]Be brief.[end][user]Text 100 on it.\nTopic:[end][assistant]It is about goal[end]"
        "[user]Text 0 on it.\nTopic:[end][assistant]It is about",
        " river",
    )
    options = ContextOptions(num_fewshot=1, system_instruction="Be brief.")
    assert read_documents(task, training_rows(task, ALLOWED), options)[0].pairs[0] == (
        "Be brief.Text 100 on it.\nTopic: It is about goal\n\nText 0 on it.\nTopic: It is about",
        " river",
    )


@pytest.mark.parametrize("split", ["train", None])
def test_a_document_is_not_among_its_own_shots(write_task, split):
    """Where shots come from the training split: as the task says, or because it says nothing."""
    changes = {"fewshot_split": split} if split else {}
    (task,) = load_tasks(["written"], write_task(rows=5, test_split=None, validation_split="more", **changes))
    documents = read_documents(task, training_rows(task, ALLOWED), ContextOptions(num_fewshot=4))
    for number, document in enumerate(documents):
        context = document.pairs[0][0]
        assert [context.count(f"Text {other} on") for other in range(5)] == [1] * 5
        assert context.endswith(f"Text {number} on it.\nTopic:")


def test_shots_that_the_task_writes_out_are_not_learned(write_task, caplog):
    samples = [{"text": f"Text {number} on it.", "hint": f"Hint {number}", "label": number % 3} for number in (3, 200)]
    (task,) = load_tasks(["written"], write_task(num_fewshot=2, fewshot_config={"samples": samples}))
    documents = read_documents(task, training_rows(task, ALLOWED))
    assert len(documents) == 11
    assert all(document.pairs[0][0].count("Text 3 on") == 1 for document in documents)
    assert "written: 1 of 12 training documents are among the shots: left out" in caplog.text
    assert len(read_documents(task, training_rows(task, ALLOWED), ContextOptions(num_fewshot=0))) == 12


def test_the_task_stays_as_it_is(write_task):
    folder = write_task(num_fewshot=2)
    (task,) = load_tasks(["written"], folder)
    before = task.dump_config()
    as_scored(task, ContextOptions(num_fewshot=1), ["train"])
    assert task.dump_config() == before


def test_too_many_shots_are_one_line(write_task):
    (task,) = load_tasks(["written"], write_task(rows=3, fewshot_split="train"))
    options = ContextOptions(num_fewshot=3)
    with pytest.raises(UserError, match="'written' with num_fewshot 3 .*give another --num-fewshot") as caught:
        build_requests(as_scored(task, options, ["train"]), task.training_docs()[0], options, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_fewshot": -1}, "--num-fewshot is -1: expected a whole number from 0 on"),
        *(({"limit": n}, f"--limit is {n:g}: expected a number of doc") for n in (0, -1, math.nan, math.inf)),
        ({"fewshot_as_multiturn": True}, "expected it together with --apply-chat-template"),
        ({"cache_requests": "often"}, "--cache-requests is 'often': expected one of true, refresh, delete"),
        ({"gen_kwargs": {"temperature": float("nan")}}, "--gen-kwargs can not be recorded"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(UserError, match=message):
        EvaluationOptions(**options)


def test_a_tokenizer_without_the_chat_template(chat_tokenizer):
    lm = SPTLM(pretrained="mini", device="cpu")
    assert selected_template(lm, ContextOptions()) is None
    with pytest.raises(UserError, match="tokenizer has no chat template"):
        selected_template(lm, ContextOptions(apply_chat_template=True))
    lm.tokenizer.chat_template = {"short": TEMPLATE}
    with pytest.raises(UserError, match="'long' is not available"):
        selected_template(lm, ContextOptions(apply_chat_template="long"))
    assert selected_template(lm, ContextOptions(apply_chat_template="short")) == TEMPLATE


def test_a_run_reads_chats_and_says_how_many_shots(write_task, chat_tokenizer, tmp_path):
    lm = SPTLM(pretrained="mini", device="cpu")
    folder = write_task(num_fewshot=2, fewshot_split="more")
    config = TrainingConfig(
        model="mini", task="written", include_path=folder, output=str(tmp_path / "p.safetensors"),
        apply_chat_template="default", system_instruction="Be brief.", prompt_length=2,
        allow_test_documents=True,
    )  # fmt: skip
    with pytest.raises(UserError, match="tokenizer has no chat template"):
        ExampleReader(lm).read(config)
    lm.tokenizer.chat_template = TEMPLATE
    examples = ExampleReader(lm).read(config)
    assert examples.num_fewshot == {"written": 2}
    options = {"apply_chat_template": True, "system_instruction": "Be brief."}
    asked = asked_by_the_harness(folder, chat_tokenizer, options)
    encoded = lm.encode_pairs([pair for number in (1, 2) for pair in asked[number]], "suffix")
    learned = [pair for example in examples.training[:2] for pair in example.pairs]
    assert [(list(context), list(rest)) for context, rest in learned] == encoded


# -- the warning -----------------------------------------------------------------------------------------------------

TRAINED = {
    "num_fewshot": {"written": 2},
    "hyperparameters": {
        "apply_chat_template": "default", "system_instruction": "Be brief.", "fewshot_as_multiturn": None,
    },
}  # fmt: skip
SAME = {"apply_chat_template": True, "system_instruction": "Be brief.", "fewshot_as_multiturn": True}


@pytest.mark.parametrize(
    ("metadata", "options", "expected"),
    [
        (TRAINED, SAME, None),
        (TRAINED, {**SAME, "num_fewshot": 0}, "0 shots instead of 2"),
        (TRAINED, {**SAME, "fewshot_as_multiturn": False}, "shots in one turn"),
        (TRAINED, {**SAME, "system_instruction": None}, "no system instruction"),
        (TRAINED, {**SAME, "system_instruction": "Be long."}, "another system instruction"),
        (
            TRAINED,
            {"num_fewshot": 1},
            "1 shots instead of 2; no chat template instead of the chat template 'default'; no system instruction",
        ),
        ({}, {**SAME, "num_fewshot": 1}, None),  # it does not say what it was trained in
    ],
    ids=["same", "shots", "turns", "no instruction", "instruction", "all", "unknown"],
)
def test_scoring_in_other_contexts_warns(write_task, chat_tokenizer, caplog, metadata, options, expected):
    model = SPTLM(pretrained="mini", device="cpu").model
    prompt = random_prompt(model, length=2)
    prompt = SoftPrompt(prompt.vectors, {**prompt.metadata, **metadata}, name="mine")
    lm = SPTLM(pretrained=model, tokenizer=chat_tokenizer, prompt=prompt, device="cpu")
    manager = TaskManager(include_path=write_task(num_fewshot=2, fewshot_split="more"), include_defaults=False)
    with caplog.at_level(logging.WARNING, "lm_eval_spt"):
        simple_evaluate(model=lm, tasks=["written"], task_manager=manager, limit=1, bootstrap_iters=0, **options)
    warned = [record.getMessage() for record in caplog.records if "other contexts" in record.getMessage()]
    wanted = f"the prompt 'mine' is scored in other contexts than it was trained in: {expected}"
    assert warned == ([wanted] if expected else [])
