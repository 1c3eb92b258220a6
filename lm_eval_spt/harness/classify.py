"""Apply a trained prompt to texts of one's own: which of some choices is the answer, and how likely is each.

A text is shown to the model as the task that the prompt was trained on shows its documents, and the choices are scored
as the harness scores them: by the sum of their tokens' log-probabilities. Neither the task's data nor a network is
needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import datasets
import jinja2
import numpy as np
from jinja2 import meta
from scipy.special import softmax

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.harness.options import ContextOptions
from lm_eval_spt.harness.patches import construct_requests, gen_prefix, multiple_choice_task, task_manager
from lm_eval_spt.prompt.soft_prompt import SoftPrompt

TEXTS_AT_ONCE = 1024
"""How many texts are tokenised and scored together; the model reads them in smaller batches."""

WORDING = ("doc_to_text", "doc_to_choice", "description", "gen_prefix", "target_delimiter")
"""The keys of a task's YAML that decide what the model is shown."""

ONLY_A_NAME = re.compile(r"\s*\{\{\s*(\w+)\s*\}\}\s*")


@dataclass(frozen=True)
class Classification:
    """What a model makes of a text.

    Attributes:
        label: the most likely choice; the first of them where two are equally likely.
        probabilities: of each choice, given that one of them is the answer: the softmax of `loglikelihoods`.
        loglikelihoods: of each choice after the text, in nats.
    """

    label: str
    probabilities: dict[str, float]
    loglikelihoods: dict[str, float]


MultipleChoiceTask: Any = multiple_choice_task()


class TextTask(MultipleChoiceTask):
    """A task's wording without its documents: its templates are filled with any text.

    The harness makes it from a task's YAML, where it stands in for the task's class.

    Args:
        config: the parsed YAML.

    Raises:
        UserError: it can not be told where in the template the text belongs, or the choices depend on the document.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        wording = {name: config[name] for name in WORDING if config.get(name) is not None}
        self.column = _text_column(config["task"], wording)
        if ONLY_A_NAME.fullmatch(wording["doc_to_text"]):
            wording["doc_to_text"] = self.column  # or the harness would take a text such as "7" for a number
        if not _are_fixed(wording.get("doc_to_choice")):
            raise UserError(
                f"the task {config['task']!r} has no choices that are the same for every text: give them (--choices)"
            )
        # A constant target: texts have none, and the harness asks for it without using it.
        fixed = {"task": config["task"], "output_type": "multiple_choice", "test_split": "test", "doc_to_target": 0}
        super().__init__(config=fixed | wording)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Set ``self.dataset``, as the harness asks for: to one document."""
        self.dataset = datasets.DatasetDict({"test": datasets.Dataset.from_dict({self.column: ["text"]})})

    def choices(self) -> list[str]:
        """Return the choices."""
        return list(self.doc_to_choice({self.column: ""}))

    def requests(self, text: str) -> list[Any]:
        """Return the harness's requests for a text: one for each choice."""
        document = {self.column: text}
        context = self.fewshot_context(document, 0, gen_prefix=gen_prefix(self, document))
        return construct_requests(self, document, context)


class Classifier:
    """A prompt and its model, ready for texts.

    Args:
        prompt: the soft prompt, or its file, PEFT folder or Hub repository.
        choices: what the answer can be; default: the choices of the task.
        model: base model: a Hub id, a folder, ``mini``, or a loaded model; default: the one that the prompt names.
        lm: the base model as it was loaded for something else, instead of `model`; its own prompt is not used.
        task: the task whose wording is used; default: those that the prompt was trained on, which must agree.
        template: what the model is shown instead of that task's text: a Jinja template such as ``{{text}}\\nTopic:``.
        include_path: folder with further tasks, as in ``lm_eval``.
        batch_size, device: as in ``lm_eval``.
        **model_args: further arguments of :class:`~lm_eval_spt.harness.lm.SPTLM`, such as ``peft`` or ``dtype``.

    Raises:
        UserError: the prompt can not be read or does not fit the model; no choices are known; the task is not known, or
            it can not be told where in its template the text belongs.
    """

    def __init__(
        self,
        prompt: str | SoftPrompt,
        choices: Sequence[str] | None = None,
        *,
        model: Any = None,
        lm: SPTLM | None = None,
        task: str | None = None,
        template: str | None = None,
        include_path: str | None = None,
        batch_size: int | str = "auto",
        device: str | None = None,
        **model_args: Any,
    ) -> None:
        if not isinstance(prompt, SoftPrompt):
            prompt = SoftPrompt.from_pretrained(prompt)
        overrides: dict[str, Any] = {}
        if choices is not None:
            overrides["doc_to_choice"] = _checked_choices(choices)
        if template is not None:
            overrides["doc_to_text"] = template
        names = [task] if task else prompt.metadata.get("tasks") or []
        self.task = _load_wording(names, include_path, overrides, prompt.name)
        self.choices = self.task.choices()
        if lm is not None:
            model, model_args = lm.model, {"tokenizer": lm.tokenizer, "add_bos_token": lm.add_bos_token} | model_args
        self.lm = SPTLM(model, prompt, batch_size=batch_size, device=device, **model_args)
        self.lm.check_contexts([self.task], ContextOptions())

    def stream(self, texts: Iterable[str]) -> Iterator[Classification]:
        """Classify texts as they come, some at a time; gives one result for each, in their order."""
        for batch in self._batches(iter(texts)):
            requests = [request for text in batch for request in self.task.requests(text)]
            answers = self.lm.loglikelihood(requests, disable_tqdm=True)
            sums = np.array([loglikelihood for loglikelihood, _ in answers]).reshape(len(batch), len(self.choices))
            for row, shares in zip(sums, softmax(sums, axis=1), strict=True):
                yield Classification(
                    self.choices[int(row.argmax())],
                    dict(zip(self.choices, shares.tolist(), strict=True)),
                    dict(zip(self.choices, row.tolist(), strict=True)),
                )

    def _batches(self, texts: Iterator[str]) -> Iterator[list[str]]:
        """Give texts some at a time; where they are calibrated by each other none is left alone at the end."""
        batch = list(islice(texts, TEXTS_AT_ONCE))
        while batch:
            following = list(islice(texts, TEXTS_AT_ONCE)) if self.lm.calibration else []
            if len(following) == 1:
                batch, following = batch + following, []
            yield batch
            batch = following or list(islice(texts, TEXTS_AT_ONCE))


def classify(
    prompt: str | SoftPrompt, texts: Sequence[str], choices: Sequence[str] | None = None, **options: Any
) -> list[Classification]:
    """Tell for each text which of some choices is the answer, under a trained prompt.

    Args:
        prompt: the soft prompt, or its file, PEFT folder or Hub repository.
        texts: the texts, bare: the wording of the prompt's task is put around them.
        choices: what the answer can be; default: the choices of that task.
        **options: see :class:`Classifier`, which is for texts that come bit by bit.

    Returns:
        A result for each text, in their order.

    Raises:
        UserError: no texts, or as :class:`Classifier`.
    """
    if isinstance(texts, str) or not texts:
        raise UserError(f"{'one text' if texts else 'no texts'} given, expected a list of texts")
    return list(Classifier(prompt, choices, **options).stream(texts))


def _checked_choices(choices: Sequence[str]) -> list[str]:
    listed = [choices] if isinstance(choices, str) else list(choices)
    if len(listed) < 2 or not all(listed) or len(set(listed)) < len(listed):
        raise UserError(
            f"the choices are {', '.join(map(repr, listed)) or 'none'}, expected two or more different ones"
        )
    return listed


def _load_wording(
    names: Sequence[str], include_path: str | None, overrides: Mapping[str, Any], prompt_name: str
) -> TextTask:
    """Return the wording that tasks have in common; the harness's default around bare texts where there are none."""
    if not names:
        if "doc_to_choice" not in overrides:
            raise UserError(
                f"the prompt {prompt_name!r} does not say which task it was trained on: give the choices, or the task"
            )
        return TextTask({"task": "texts", "doc_to_text": "{{text}}", **overrides})
    manager = task_manager(names, include_path)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise UserError(
            f"the task {unknown[0]!r}, whose wording the prompt {prompt_name!r} knows, is not known here: give the "
            "folder of its YAML file with --include-path (include_path), or another task"
        )
    # A group is where the harness takes a task from its YAML with some keys changed.
    members = [{"task": name, "class": TextTask, **overrides} for name in names]
    tasks = list(manager.load([{"group": "wording", "task": members}])["tasks"].values())
    wordings = [{name: getattr(task.config, name) for name in WORDING} for task in tasks]
    if any(wording != wordings[0] for wording in wordings):
        shown = ", ".join(list(names)[:3]) + (", ..." if len(names) > 3 else "")
        raise UserError(
            f"the prompt's tasks ({shown}) differ in their wording: say with --task (task) which one to use"
        )
    return tasks[0]


def _text_column(task: str, wording: Mapping[str, Any]) -> str:
    """Return the one name that the templates have, where the text belongs."""
    advice = "give a template (--template) with one name in it, such as '{{text}}'"
    template = wording.get("doc_to_text")
    if not isinstance(template, str):
        raise UserError(f"what the task {task!r} shows is made by a program or not in its YAML file: {advice}")
    names: set[str] = set()
    for key in ("doc_to_text", "description", "gen_prefix"):
        if isinstance(text := wording.get(key), str):
            try:
                names |= meta.find_undeclared_variables(jinja2.Environment().parse(text))
            except jinja2.TemplateError as error:
                raise UserError(f"the template {text!r} is not Jinja ({error}): {advice}") from None
    if not names and template.isidentifier():
        return template  # a column by its name
    if len(names) != 1:
        shown = ", ".join(sorted(names)) or "none"
        raise UserError(f"the template of the task {task!r} has these names: {shown}; one was expected, so {advice}")
    return names.pop()


def _are_fixed(choices: Any) -> bool:
    """Tell whether a task's choices are the same for every document."""
    if isinstance(choices, str):  # a column, or a template: of a list that stands there, perhaps
        return "{{" in choices and not meta.find_undeclared_variables(jinja2.Environment().parse(choices))
    return isinstance(choices, list | dict)
