"""Score many prompts of one base model, as ``lm_eval --model spt`` would one after the other, but sharing the work.

The base model is loaded once and the requests are tokenised once. A context is read once for all suffix prompts; prefix
prompts, which change what the model makes of the context, are scored one by one. Every prompt gets the harness's own
results file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import lm_eval.loggers.evaluation_tracker as tracking
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import simple_parse_args_string

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import MAX_RESULTS_FILE, check_writable, parse_json, read_text, written_together
from lm_eval_spt.harness.contexts import selected_template
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.harness.local_data import local_copy, metadata_of
from lm_eval_spt.harness.many_prompts import ManyPromptsLM
from lm_eval_spt.harness.model_arguments import refuse_flags
from lm_eval_spt.harness.options import EvaluationOptions
from lm_eval_spt.harness.patches import (
    MODEL_NAME,
    environment_read_once,
    keep_requests,
    load_tasks,
    match_tasks,
    results_name,
    task_manager,
    with_loaded,
)
from lm_eval_spt.harness.samples import as_parquet, samples_path
from lm_eval_spt.prompt.ensemble import Ensemble, matching_names, read_prompt, split_names
from lm_eval_spt.prompt.soft_prompt import SoftPrompt

logger = logging.getLogger(__name__)

ADDRESS = re.compile(r"\bat 0x[0-9a-f]+")
"""Where an object lies in memory, in what Python shows of it."""

SETTINGS = "evaluate_settings"
"""Under this name the configuration in a results file holds everything that decided the results."""


def evaluate_prompts(
    prompts: Sequence[str],
    tasks: Sequence[str],
    output: str,
    *,
    model_args: str = "",
    include_path: str | None = None,
    log_samples: bool = False,
    batch_size: str = "auto",
    device: str | None = None,
    base: SPTLM | None = None,
    ensemble: str | None = None,
    **options: Any,
) -> list[Path]:
    """Score prompts on harness tasks and write one results file of the harness for each.

    The answers to single documents are always kept beside the results, in a compact form (see
    :mod:`lm_eval_spt.harness.samples`); `log_samples` has the harness write its own, with all texts, too. A prompt
    whose results and samples are there already, made by this function with the same settings, is left out: an
    interrupted evaluation goes on where it stopped. Results of other settings stay beside the new ones.

    Args:
        prompts: prompt files, folders, Hub repositories, glob patterns of files, or several of these joined by ``+``:
            an ensemble, which has results of its own.
        tasks: names of tasks and groups.
        output: folder for the results, one folder in it for each prompt.
        model_args: further arguments of the model class, as in ``lm_eval --model_args``.
        include_path, log_samples, batch_size, device: as in ``lm_eval``.
        base: the base model, if it is loaded already; it decides the device.
        ensemble: ``probability`` or ``log_probability``, what an ensemble averages (default: the former). Where it is
            given, each pattern in `prompts` is an ensemble, too.
        **options: of :class:`~lm_eval_spt.harness.options.EvaluationOptions`. A cache of answers belongs to one prompt:
            each has its own, whose path ends in the first 8 digits of the prompt's digest.

    Returns:
        The results files, in the order of the prompts.

    Raises:
        UserError: a prompt can not be read, the prompts have different base models, a task does not exist, or an option
            makes no sense.
    """
    wanted = EvaluationOptions(**options)
    names = list(dict.fromkeys(prompts)) if ensemble else _expand(prompts)
    loaded = {name: read_prompt(name, ensemble) for name in names}
    shared = simple_parse_args_string(model_args)
    refuse_flags(shared, {"prompt": "--prompts", "batch_size": "--batch-size", "device": "--device"})
    named = shared.get("pretrained") or (base.base_model_name if base is not None else None)
    loading = {name: prompt.loading(named) | shared for name, prompt in loaded.items()}
    common = _common(loading.values())
    if common.get("pretrained") is None:
        raise UserError("a prompt does not name its base model: give it with --model-args pretrained=<model>")

    task_names, manager, loaded_tasks = _load_tasks(tasks, include_path, shared, wanted)
    identities = {name: _identity(task, wanted) for name, task in loaded_tasks.items()}
    settings = {name: _settings(arguments, identities, wanted) for name, arguments in loading.items()}

    def finished(name: str) -> Path | None:
        return _finished(_folder(output, loaded[name], shared), settings[name], log_samples)

    done = {name: finished(name) for name in names}
    waiting = {name: prompt for name, prompt in loaded.items() if done[name] is None}
    if len(waiting) < len(names):
        logger.warning("%d of %d prompts have their results already", len(names) - len(waiting), len(names))
    if not waiting:
        return [path for path in done.values() if path]

    check_writable(Path(output), is_folder=True)
    common |= {"prompts": list(waiting.values()), "batch_size": batch_size, "device": device}
    if base is None:
        lm = ManyPromptsLM(**common)
    else:
        del common["pretrained"]
        lm = ManyPromptsLM.from_loaded(base, **common)
    machine: dict[str, Any] = {"batch_size": batch_size, "device": device}
    keep_requests(loaded_tasks.values())
    with environment_read_once():
        for name, prompt in waiting.items():
            lm.use(prompt)
            machine["use_cache"] = f"{wanted.use_cache}-{prompt.digest[:8]}" if wanted.use_cache else None
            given = {**shared, "prompt": name}
            if isinstance(prompt, Ensemble):
                given["ensemble"] = prompt.average
            if not _score(lm, task_names, manager, output, given, log_samples, wanted, settings[name], **machine):
                continue  # another process writes
            done[name] = finished(name)
            if done[name] is None:
                raise UserError(f"the results of {name} could not be written to {output}: is it writable?")
            print(done[name], flush=True)
    return [path for path in done.values() if path]


def _common(loading: Collection[dict[str, Any]]) -> dict[str, Any]:
    """Return the arguments that load the base model for every prompt, from those for each.

    Raises:
        UserError: they do not agree.
    """
    common: dict[str, Any] = {}
    for name in dict.fromkeys(name for arguments in loading for name in arguments):
        values = [arguments.get(name) for arguments in loading]
        common[name] = values[0]
        if any(value != values[0] for value in values):
            what = "base models" if name == "pretrained" else name
            shown = ", ".join(sorted({str(value) for value in values}))
            raise UserError(f"the prompts were trained with different {what} ({shown}): give one at a time")
    return common


def evaluate_model(
    lm: SPTLM,
    model_arguments: dict[str, Any],
    tasks: Sequence[str],
    output: str,
    *,
    include_path: str | None = None,
    log_samples: bool = False,
    **options: Any,
) -> Path:
    """Score a loaded model as it is, without a prompt: a baseline, or a model that was tuned without one.

    Args:
        lm: the model.
        model_arguments: how ``lm_eval --model spt --model_args`` would load it, for the record.
        tasks, include_path, log_samples: as in :func:`evaluate_prompts`.
        output: folder for the results of this model alone.
        **options: of :class:`~lm_eval_spt.harness.options.EvaluationOptions`.

    Returns:
        The results file.

    Raises:
        UserError: a task does not exist, or an option makes no sense.
    """
    wanted = EvaluationOptions(**options)
    task_names, manager, _ = _load_tasks(tasks, include_path, model_arguments, wanted)
    machine = {"batch_size": lm.batch_size, "device": str(lm.device), "use_cache": wanted.use_cache}
    _score(lm, task_names, manager, output, model_arguments, log_samples, wanted, **machine)
    return max(Path(output).glob("*/results_*.json"))  # the newest


def _load_tasks(
    tasks: Sequence[str], include_path: str | None, metadata: dict[str, Any], wanted: EvaluationOptions
) -> tuple[list[str], TaskManager, dict[str, Any]]:
    """Return the names of the tasks and groups, a task manager that has them loaded, and all single tasks by name."""
    metadata = metadata | {"prompt": None} | metadata_of(wanted.data, wanted.columns)
    manager = task_manager(tasks, include_path, metadata)
    matching = match_tasks(manager, tasks)
    loaded = load_tasks(manager, matching)
    return matching, with_loaded(manager, loaded), loaded["tasks"]


def _score(
    lm: SPTLM,
    tasks: Sequence[str],
    manager: TaskManager,
    output: str,
    model_arguments: dict[str, Any],
    log_samples: bool,
    wanted: EvaluationOptions,
    settings: dict[str, Any] | None = None,
    **machine: Any,
) -> bool:
    """Score tasks and write what the harness's command line writes after ``--model spt --model_args ...``.

    Args:
        settings: what :func:`_finished` is to know the results by.
        wanted: the harness's options.
        **machine: further arguments of ``simple_evaluate``.

    Returns:
        False in a process that is not the one that writes.
    """
    template = selected_template(lm, wanted)
    tracker = tracking.EvaluationTracker(output_path=output)
    arguments = machine | wanted.arguments()
    results = simple_evaluate(model=lm, tasks=list(tasks), task_manager=manager, log_samples=True, **arguments)
    if results is None:
        return False
    tracker.general_config_tracker.log_experiment_args(
        MODEL_NAME, model_arguments, wanted.system_instruction, template, wanted.fewshot_as_multiturn
    )
    results["config"] |= {"model": MODEL_NAME, "model_args": model_arguments}
    if settings is not None:
        results["config"][SETTINGS] = settings
    for config in results["configs"].values():
        config["metadata"] |= {name: model_arguments[name] for name in ("prompt",) if name in model_arguments}
    samples = results.pop("samples", {})
    with written_together(Path(output), last="results_") as folder:
        tracker.output_path = str(folder)
        tracker.save_results_aggregated(results=results, samples=samples if log_samples else None)
        if log_samples:
            for task, of_task in samples.items():
                tracker.save_results_samples(task_name=task, samples=of_task)
        (written,) = folder.rglob("results_*.json")
        samples_path(written).write_bytes(as_parquet(samples))
    return True


def _expand(names: Sequence[str]) -> list[str]:
    """Return the prompts' names with patterns replaced by the files that they match, but for ensembles; each once."""
    expanded = [each for name in names for each in (matching_names(name) if len(split_names(name)) == 1 else [name])]
    return list(dict.fromkeys(expanded))


def _folder(output: str, prompt: SoftPrompt | Ensemble, shared: dict[str, Any]) -> Path:
    """Return where the harness puts a prompt's results."""
    return Path(output) / tracking.sanitize_model_name(results_name({**shared, "prompt": prompt}) or "")


def _settings(model_arguments: dict[str, Any], identities: dict[str, Any], wanted: EvaluationOptions) -> dict[str, Any]:
    """Return everything that decides a prompt's results, apart from the prompt itself, as JSON gives it back.

    Args:
        model_arguments: of the model class.
        identities: of the tasks, see :func:`_identity`.
        wanted: the harness's options; of those, caches decide nothing.
    """
    folders = {name: _files(value) for name, value in model_arguments.items() if Path(str(value)).is_dir()}
    # The number of shots is in the tasks' identities.
    arguments = wanted.arguments()
    shared = {name: arguments[name] for name in arguments if name != "num_fewshot" and "cache" not in name}
    settings = {"model_args": model_arguments, "model_files": folders, "tasks": identities, **shared}
    content: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return content


def _identity(task: Any, wanted: EvaluationOptions) -> list[Any]:
    """Return a task's number of shots, to which it may have been asked, and a digest of its definition."""
    definition = {name: value for name, value in task.dump_config().items() if name not in ("metadata", "num_fewshot")}
    text = ADDRESS.sub("", json.dumps(definition, sort_keys=True, default=str))
    identity = [wanted.shots(task), hashlib.sha256(text.encode()).hexdigest()[:16]]
    if local_copy(task.config.dataset_path, task.config.metadata):  # files that may have changed
        documents = json.dumps(list(task.eval_docs), sort_keys=True, default=str)
        identity.append(hashlib.sha256(documents.encode()).hexdigest()[:16])
    return identity


def _files(folder: str) -> list[Any]:
    """Return what tells that a folder holds another model than before: its files' names, sizes and times."""
    states = [(file.name, file.stat()) for file in sorted(Path(folder).iterdir()) if file.is_file()]
    return [[name, state.st_size, state.st_mtime_ns] for name, state in states]


def _finished(folder: Path, settings: dict[str, Any], log_samples: bool) -> Path | None:
    """Return the newest results file in `folder` with these settings, if any.

    Args:
        folder: of a prompt's results.
        settings: what decides them; the file may hold more tasks.
        log_samples: whether the harness's own samples have to be there as well.
    """
    for path in sorted(folder.glob("results_*.json"), reverse=True):
        try:
            recorded = parse_json(read_text(path, MAX_RESULTS_FILE))["config"][SETTINGS]
            same = recorded | {"tasks": None} == settings | {"tasks": None}
            same = same and settings["tasks"].items() <= recorded["tasks"].items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # of lm_eval, or written halfway
        stamp = path.stem.removeprefix("results_")
        full = [path.with_name(f"samples_{task}_{stamp}.jsonl") for task in settings["tasks"]] if log_samples else []
        if same and all(file.is_file() for file in (samples_path(path), *full)):
            return path
    return None
