"""The adapter to lm_eval: what this package changes there outside of its model class, and what its versions name
differently.

The functions that change lm_eval take the module of it that was just imported (see
:mod:`lm_eval_spt.harness.discovery`). lm_eval 0.4.12 to 0.5.0.dev1 are supported. The names and signatures of
lm_eval that the functions rely on are listed in ``tests/harness/test_patches.py``.
"""

from __future__ import annotations

import copy
import fnmatch
import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lm_eval_spt.common.errors import UserError, show_user_errors_in_one_line
from lm_eval_spt.common.paths import tasks_folder

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

logger = logging.getLogger(__name__)

MODEL_NAME = "spt"
MODEL_CLASS = "lm_eval_spt.harness.lm:SPTLM"  # imported when the model is used, not before


def register_model(models: ModuleType) -> None:
    """Register the model class, unless lm_eval has found its entry point by itself (group ``lm_eval.models``).

    Args:
        models: ``lm_eval.models``.
    """
    from lm_eval.api.registry import model_registry

    show_user_errors_in_one_line()
    if MODEL_NAME not in model_registry:
        model_registry.register(MODEL_NAME, target=MODEL_CLASS)


def add_installed_tasks(index: ModuleType) -> None:
    """Have our tasks read wherever lm_eval's own are, after them and before those of an ``--include_path``.

    Of two tasks of one name, lm_eval keeps the one that it reads last. An lm_eval that reads the entry points
    ``lm_eval.tasks`` gives our folder itself: then nothing is added.

    Args:
        index: ``lm_eval.tasks._index``.
    """
    show_user_errors_in_one_line()  # a task's data may be missing, whatever the model is
    build_index = _with_includes_read_once(index.TaskIndex.build)
    own_folder = Path(str(index.__file__)).parent.resolve()

    @functools.wraps(build_index)
    def build(paths: Iterable[Path], **options: Any) -> dict[str, Any]:
        paths = list(paths)
        folders = [Path(path).resolve() for path in paths]
        if own_folder in folders and tasks_folder().resolve() not in folders:
            paths.insert(folders.index(own_folder) + 1, tasks_folder())
        return build_index(paths, **options)

    index.TaskIndex.build = staticmethod(build)


def _with_includes_read_once(build_index: Callable[..., Any]) -> Callable[..., Any]:
    """Return lm_eval's function that reads all tasks' YAML files, in half the time.

    A few hundred of the files are included by 13,000 others, and were parsed again for each.
    """
    loader: Any = sys.modules.get("lm_eval.tasks._yaml_loader")
    if loader is None:
        return build_index
    load = loader.load_yaml

    @functools.wraps(build_index)
    def build(*args: Any, **options: Any) -> Any:
        known: dict[str, tuple[dict[str, Any], set[Path]]] = {}  # what is included: its content, and the files read

        def load_once(path: str | Path, *, _seen: set[Path] | None = None, **how: Any) -> dict[str, Any]:
            if _seen is None or how != {"resolve_func": False, "recursive": True}:
                return load(path, _seen=_seen, **how)
            found = known.get(str(path))
            if found is None or found[1] & _seen:  # lm_eval refuses to read a file twice for one task
                before = set(_seen)
                content = load(path, _seen=_seen, **how)
                found = known[str(path)] = content, _seen - before
            _seen |= found[1]
            return dict(found[0])

        loader.load_yaml = load_once
        try:
            return build_index(*args, **options)
        finally:
            loader.load_yaml = load

    return build


def use_local_data(tasks: ModuleType) -> None:
    """Have a task read the local copy of its data set, where its metadata names one.

    Args:
        tasks: ``lm_eval.api.task``.
    """
    download = tasks.ConfigurableTask.download

    @functools.wraps(download)
    def read_or_download(self: Any, *args: Any, **kwargs: Any) -> None:
        from lm_eval_spt.harness.local_data import read_local_copy  # start-up, which reads this module, is to be quick

        dataset = read_local_copy(self.config)
        if dataset is None:
            download(self, *args, **kwargs)
        else:
            self.dataset = dataset

    tasks.ConfigurableTask.download = read_or_download


def name_results_after_prompt(tracker: ModuleType) -> None:
    """Give every prompt a results folder of its own: ``<base model>+<prompt>@<first 8 digits of its digest>``.

    Args:
        tracker: ``lm_eval.loggers.evaluation_tracker``.
    """
    log_experiment_args = tracker.GeneralConfigTracker.log_experiment_args
    sanitize_model_name = tracker.sanitize_model_name

    @functools.wraps(log_experiment_args)
    def log(self: Any, model_source: str, model_args: str | dict[str, Any], *args: Any, **kwargs: Any) -> None:
        log_experiment_args(self, model_source, model_args, *args, **kwargs)
        name = results_name(model_args) if model_source == MODEL_NAME else None
        if name is not None:
            self.model_name = name
            self.model_name_sanitized = sanitize_model_name(name)

    tracker.GeneralConfigTracker.log_experiment_args = log


def results_name(model_args: str | dict[str, Any]) -> str | None:
    """Return the name of the model, prompt and calibration that the results belong to; None where it is the harness's.

    Args:
        model_args: What the harness was given as ``--model_args``.

    Raises:
        UserError: The prompt can not be read.
    """
    from lm_eval.utils import simple_parse_args_string

    from lm_eval_spt.harness.model_arguments import names_as_texts
    from lm_eval_spt.prompt.ensemble import read_prompt

    given = simple_parse_args_string(model_args) if isinstance(model_args, str) else model_args
    given = names_as_texts(given)
    prompt = given.get("prompt")
    parts = [f"+calibrated_by_{given['calibration']}"] if given.get("calibration") else []
    if isinstance(prompt, str | os.PathLike):
        prompt = read_prompt(os.fspath(prompt), given.get("ensemble"))
    if prompt:
        parts.insert(0, f"+{prompt.name}@{prompt.digest[:8]}")
    if not parts:
        return None
    # The harness's order: an adapter is given together with `pretrained`, and tells more.
    base_model = given.get("peft") or given.get("delta") or given.get("pretrained")
    base_model = base_model or (prompt and prompt.metadata["base_model"])
    return f"{base_model}{''.join(parts)}"


# -- what differs between the versions of lm_eval ----------------------------------------------------------------------


def multiple_choice_task() -> type[ConfigurableTask]:
    """Return the class of multiple-choice tasks: since 0.5 each output type has its own."""
    from lm_eval.api.task import ConfigurableTask

    return getattr(ConfigurableTask, "_registry", {}).get("multiple_choice", ConfigurableTask)


def task_index(manager: TaskManager) -> dict[str, Any]:
    """Return what a task manager knows of each task, group and tag: lm_eval's ``Entry`` by name."""
    return manager._index if hasattr(manager, "_index") else manager.task_index


def task_manager(
    names: Iterable[str], include_path: str | None = None, metadata: dict[str, Any] | None = None
) -> TaskManager:
    """Return a task manager that knows these tasks, groups and tags, if there are such.

    The harness's own ten thousand YAML files, which take seconds to read, are read only for what is not among ours.

    Args:
        names: of tasks, groups and tags.
        include_path: folder with further tasks.
        metadata: as ``lm_eval --metadata`` gives it to the tasks.

    Raises:
        UserError: there is no such folder.
    """
    from lm_eval.tasks import TaskManager

    if include_path and not Path(include_path).is_dir():
        raise UserError(f"--include-path {include_path}: there is no such folder, expected one with tasks' YAML files")
    near_by = [path for path in (tasks_folder(), include_path) if path]
    manager = TaskManager(include_path=near_by, include_defaults=False, metadata=metadata)
    if set(names) <= set(manager.all_tasks):
        return manager
    return TaskManager(include_path=near_by, metadata=metadata)


def match_tasks(manager: TaskManager, patterns: Iterable[str]) -> list[str]:
    """Return the tasks, groups and tags that patterns such as ``sib200_*_Latn`` match, sorted.

    Since 0.5 the task manager's own method returns a pattern that matches nothing as if it were a task.

    Raises:
        UserError: a pattern matches nothing.
    """
    matches = {pattern: fnmatch.filter(manager.all_tasks, pattern) for pattern in patterns}
    if unknown := [pattern for pattern, names in matches.items() if not names]:
        start = unknown[0][:6]
        near = [other for other in manager.all_subtasks if start and other.startswith(start)][:3]
        hint = f"did you mean {', '.join(near)}?" if near else "`lm_eval ls tasks` lists all"
        raise UserError(
            f"there is no task {', '.join(map(repr, unknown))}; {hint} (tasks of your own: --include-path FOLDER)"
        )
    return sorted({name for names in matches.values() for name in names})


def single_tasks(manager: TaskManager, names: Iterable[str]) -> list[str]:
    """Return the tasks of these names and in the groups and tags of these names, without loading any of them.

    Args:
        manager: knows them.
        names: of tasks, groups and tags, or patterns of them.

    Raises:
        UserError: there is no such task, or one comes twice.
    """
    groups_and_tags = {*manager.all_groups, *manager.all_tags}
    owners: dict[str, str] = {}
    for name in [match for pattern in names for match in match_tasks(manager, [pattern])]:
        tasks, waiting = [], [name]
        while waiting:
            member = waiting.pop(0)
            if member in groups_and_tags:
                waiting = members(manager, member) + waiting
            else:
                tasks.append(member)
        for task in dict.fromkeys(tasks):
            if task in owners:
                where = " and ".join(dict.fromkeys(repr(owner) for owner in (owners[task], name)))
                raise UserError(f"the task {task!r} is named twice, by {where}: name each task once")
            owners[task] = name
    return list(owners)


def load_tasks(manager: TaskManager, names: Iterable[str]) -> dict[str, Any]:
    """Return what a task manager's ``load`` does.

    Raises:
        UserError: there is no such task, one comes twice, or one can not be loaded.
    """
    names = [match for pattern in names for match in match_tasks(manager, [pattern])]
    index = task_index(manager)
    configs = [index[name].cfg or {} for name in single_tasks(manager, names) if name in index]
    read = list(dict.fromkeys(str(path) for config in configs if (path := config.get("dataset_path"))))
    given = (getattr(manager, "metadata", None) or {}).get("data")
    from lm_eval_spt.harness.local_data import is_called, names_and_values

    unused = [name for name in names_and_values(given, "--data") if not any(is_called(path, name) for path in read)]
    if unused:
        logger.warning("--data %s: none of the tasks reads such a data set; they read %s", unused[0], ", ".join(read))
    try:
        return manager.load(names)
    except UserError:
        raise
    except Exception as error:  # of every kind: it may be a program's, the network's or that of a YAML file
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''} can not be loaded ({type(error).__name__}: "
            f"{reason}): check the network, or give a local copy of {', '.join(read[:3]) or 'the data'} with --data "
            "NAME=FOLDER"
        ) from error


def members(manager: TaskManager, name: str) -> list[str]:
    """Return the tasks and groups that a group or tag consists of, without loading any of them.

    Args:
        manager: knows it.
        name: of a group or a tag.
    """
    entry = task_index(manager)[name]
    if entry.cfg is None:  # a tag
        return sorted(entry.tags)
    names: list[str] = []
    waiting = list(entry.cfg["task"])
    while waiting:
        member = waiting.pop(0)
        if isinstance(member, str):
            names.append(member)
        elif "task" not in member:  # another group, with changes
            names.append(member["group"])
        elif isinstance(member["task"], list):  # a group that is written out in its parent
            waiting = member["task"] + waiting
        else:
            names.append(member["task"])
    return names


def with_loaded(manager: TaskManager, tasks: Mapping[str, Any]) -> TaskManager:
    """Return a task manager like `manager` that gives these tasks instead of loading any.

    ``simple_evaluate`` takes names and loads them anew in every call; since 0.5 it takes no task objects.

    Args:
        manager: any task manager.
        tasks: what its ``load`` returned.
    """
    loaded = copy.copy(manager)
    loaded.load = lambda *_, **__: tasks
    return loaded


def keep_requests(tasks: Iterable[Any]) -> None:
    """Have tasks keep the requests that they build: asked again in the same way, they give the same, unanswered.

    For a model that is evaluated with one prompt after the other.
    """
    for task in tasks:
        task.build_all_requests = _kept(task)


def _kept(task: Any) -> Callable[..., None]:
    build, asked = task.build_all_requests, None

    @functools.wraps(build)
    def build_once(*args: Any, **kwargs: Any) -> None:
        nonlocal asked
        now = args, kwargs, task.get_config("num_fewshot")
        if asked == now:
            for request in task.instances:
                request.resps, request.filtered_resps = [], {}
        else:
            build(*args, **kwargs)
            asked = now

    return build_once


@contextmanager
def environment_read_once() -> Iterator[None]:
    """Within this context the harness asks for the machine's environment once, which takes a second each time."""
    from lm_eval import evaluator

    read = evaluator.add_env_info
    known: dict[str, Any] = {}

    def add(storage: dict[str, Any]) -> None:
        if not known:
            read(known)
        storage.update(known)

    evaluator.add_env_info = add
    try:
        yield
    finally:
        evaluator.add_env_info = read


def construct_requests(
    task: ConfigurableTask, doc: dict[str, Any], context: str | list[str], **chat: Any
) -> list[Instance]:
    """Return the requests that a task makes of a document.

    Args:
        task: the task.
        doc: one of its documents.
        context: what ``task.fewshot_context`` made of it: a text, or one for each choice.
        **chat: ``apply_chat_template`` and ``chat_template``, as the harness gives them.
    """
    # The number of a document is required since 0.5, where a document without an answer gets no requests.
    requests = task.construct_requests(doc, context, doc_id=0, **chat) or []
    return requests if isinstance(requests, list) else [requests]


def label_and_choices(task: ConfigurableTask, doc: dict[str, Any]) -> tuple[Any, list[str]]:
    """Return what a document says of which choice is right, a number or a text, and the choices' texts.

    Args:
        task: a multiple-choice task.
        doc: one of its documents.
    """
    choices = task.doc_to_choice(doc)
    label = task.doc_to_target(doc)
    if getattr(task, "_multiple_inputs", False):  # 0.5: texts to choose among, before one continuation
        choices = task.doc_to_text(doc)
    elif getattr(task, "multiple_input", False):  # before: the same, the number of the right one in the text's place
        label = task.doc_to_text(doc)
    return label, choices


def gen_prefix(task: ConfigurableTask, doc: dict[str, Any]) -> str | None:
    """Return the beginning of the answer that a task gives away in its contexts, if there is one."""
    if hasattr(task, "doc_to_prefix"):
        return task.doc_to_prefix(doc)
    return task._resolve_field(doc, task.config.gen_prefix)  # since 0.5


def fewshot_config(task: ConfigurableTask) -> Any:
    """Give a task a copy of what it says of its shots (the harness's ``FewshotConfig``), and return that copy."""
    name = "fewshot_cfg" if hasattr(task, "fewshot_cfg") else "_fewshot_cfg"  # the latter since 0.5
    setattr(task, name, copy.copy(getattr(task, name)))
    return getattr(task, name)


def announce_contexts(evaluator: ModuleType) -> None:
    """Tell a model that wants to know it how its contexts are put together, before it is asked anything.

    Such a model has a method ``check_contexts``; it gets the tasks and the options of their contexts.

    Args:
        evaluator: ``lm_eval.evaluator``.
    """
    evaluate = vars(evaluator)["evaluate"]
    signature = inspect.signature(evaluate)

    @functools.wraps(evaluate)
    def announce(*args: Any, **kwargs: Any) -> Any:
        from lm_eval_spt.harness.options import ContextOptions

        given = signature.bind(*args, **kwargs).arguments
        check = getattr(given["lm"], "check_contexts", None)
        if check is not None and "tasks" in given["task_dict"]:
            chat = given.get("apply_chat_template", False)
            options = ContextOptions(
                apply_chat_template=chat,
                system_instruction=given.get("system_instruction"),
                fewshot_as_multiturn=bool(given.get("fewshot_as_multiturn")) if chat else None,
            )
            check(given["task_dict"]["tasks"].values(), options)
        return evaluate(*args, **kwargs)

    evaluator.evaluate = announce  # type: ignore[attr-defined]
