"""Contexts as the harness puts them together when it scores a task, for documents of any split."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.options import ContextOptions
from lm_eval_spt.harness.patches import construct_requests, fewshot_config, gen_prefix

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask

logger = logging.getLogger(__name__)

ChatTemplate = Callable[..., str]
"""Makes a text of a chat, as ``LM.apply_chat_template`` does."""

FEWSHOT_SEED = 1234
"""With this seed the harness draws shots, unless it is told otherwise."""


def as_scored(
    task: ConfigurableTask, options: ContextOptions, splits: Collection[str] | None = None
) -> ConfigurableTask:
    """Return a copy of a task in the state in which the harness begins to build its requests.

    The split that is read stands in the place of the test split. So the harness itself keeps every document out of its
    own shots where these are drawn from that split.

    Args:
        task: the task, which stays as it is.
        options: what its contexts are to hold.
        splits: those of the data set whose documents :func:`build_requests` will get; none: documents of a file, which
            may be those that shots are drawn from; None: those that the task is scored on.
    """
    ready = copy.copy(task)
    ready._config = copy.copy(task.config)
    ready.config.num_fewshot = options.shots(task)
    if splits is not None:
        fewshot = fewshot_config(ready)
        if fewshot.split is None and not fewshot.samples:  # where the harness draws from then
            named = (task.config.training_split, task.config.validation_split, task.config.test_split)
            fewshot.split = next(filter(None, named), None)
        read = fewshot.split if not splits or fewshot.split in splits else next(iter(splits))
        ready.config.test_split = read or "file"
    ready.set_fewshot_seed(FEWSHOT_SEED)
    return ready


def fixed_shots(task: ConfigurableTask) -> list[dict[str, Any]]:
    """Return the shots that a task writes out itself. No document is kept out of them.

    Args:
        task: what :func:`as_scored` returned.
    """
    fewshot = fewshot_config(task)
    fixed = fewshot.samples if fewshot.split is None and task.config.num_fewshot else None
    return list(fixed() if callable(fixed) else fixed or [])


def build_requests(
    task: ConfigurableTask, document: dict[str, Any], options: ContextOptions, chat_template: ChatTemplate | None
) -> list[Instance]:
    """Return the requests that the harness makes of a document.

    Shots are drawn from a seed, one document after the other: they are those of a run of the harness where the
    documents come in the same order and the first one is the first.

    Args:
        task: what :func:`as_scored` returned for `options`.
        document: one of the task's.
        options: what the context holds.
        chat_template: the model's, for chats.

    Raises:
        UserError: the context can not be put together, for example because there are too few shots to draw from.
    """
    is_chat = bool(options.apply_chat_template)
    chat: dict[str, Any] = {"apply_chat_template": is_chat, "chat_template": chat_template if is_chat else None}
    try:
        context = task.fewshot_context(
            document,
            num_fewshot=task.config.num_fewshot,
            system_instruction=options.system_instruction,
            fewshot_as_multiturn=bool(options.fewshot_as_multiturn),
            gen_prefix=gen_prefix(task, document),
            **chat,
        )
    except (AssertionError, IndexError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"the harness can not put together a context of the task {task.task_name!r} with num_fewshot "
            f"{task.config.num_fewshot} ({reason}): give another --num-fewshot, or mend the task"
        ) from error
    return construct_requests(task, document, context, **chat)


def selected_template(lm: LM, options: ContextOptions) -> str | None:
    """Return the text of the chat template that contexts get; None where they are no chats.

    Raises:
        UserError: the model's tokenizer has no such template.
    """
    if not options.apply_chat_template:
        return None
    try:
        template = lm.chat_template(options.apply_chat_template)
    except ValueError as error:
        raise UserError(f"--apply-chat-template: {' '.join(str(error).split())}") from error
    if not template:
        raise UserError(
            "--apply-chat-template was given, but the model's tokenizer has no chat template: leave it out, or choose "
            "a model that has one"
        )
    return template


def differences(record: Mapping[str, Any], tasks: Iterable[ConfigurableTask], options: ContextOptions) -> list[str]:
    """Return in words how the contexts of an evaluation differ from those that a prompt was trained in.

    Args:
        record: the prompt's metadata; what it does not say is not compared.
        tasks: what is scored, with the numbers of shots that they get.
        options: what else the contexts hold.
    """
    settings = record.get("hyperparameters") or {}
    found = []
    trained, scored = record.get("num_fewshot"), {task.config.num_fewshot or 0 for task in tasks}
    if isinstance(trained, dict) and not scored <= (known := set(trained.values())):
        found.append(f"{_listed(scored)} shots instead of {_listed(known)}")
    if "apply_chat_template" not in settings:
        return found
    chats = [settings["apply_chat_template"] or False, options.apply_chat_template or False]
    before, now = ("default" if chat is True else chat for chat in chats)
    if before != now:
        found.append(f"{_named('chat template', now)} instead of {_named('chat template', before)}")
    elif now and max(scored, default=0):
        turns = settings.get("fewshot_as_multiturn")
        if (turns is None or bool(turns)) != bool(options.fewshot_as_multiturn):
            found.append("shots in one turn" if turns is not False else "shots in several turns")
    instruction = settings.get("system_instruction") or None
    if instruction != (options.system_instruction or None):
        kind = "no" if not options.system_instruction else "another" if instruction else "a"
        found.append(f"{kind} system instruction")
    return found


def _listed(numbers: Iterable[Any]) -> str:
    return ", ".join(sorted(map(str, numbers)))


def _named(what: str, name: Any) -> str:
    return f"the {what} {name!r}" if name else f"no {what}"
