"""Reading the harness's results files: the scores of a model, with or without a prompt, in every language.

The harness writes them for any model class (``--output_path``), so that a soft prompt can be compared with anything.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeGuard

from lm_eval_spt.analysis.task_languages import TaskLanguage, task_languages
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import MAX_RESULTS_FILE, parse_json, read_text
from lm_eval_spt.prompt.metadata import check_metadata

# It becomes part of file names: it must not hold a path.
TASK = re.compile(r"[^/\\\x00-\x1f]{1,200}")
"""The name of a task."""

IN_GROUP = "::"
"""Since 0.5 the harness writes a group's task as ``<group>::<task>``."""

MAX_SCORE = 1e30
"""Larger numbers are no scores; sums and squares of smaller ones are finite."""

RECORDED = {
    "model": str,
    "prompt_name": str,
    "prompt_digest": str,
    "prompt_placement": str,
    "prompt_length": int,
    "prompt_metadata": dict,
    "model_metadata": dict,
    "limit": int | float,
    "model_args": dict | str,
}
"""The entries that are read from the harness's configuration, and their types; each may be missing or null."""

MODEL_SETTINGS = ("model", "prompt_digest", "random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
"""The entries of the harness's configuration that can change a score."""

CONTEXT = ("chat_template_sha", "system_instruction_sha", "fewshot_as_multiturn")
"""The entries of a results file that say what stands around a document, beside the task and the number of shots."""


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's value and its standard error, both as shares of 1; the error is None if the harness gave none."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class EvaluationRun:
    """One task family of one results file: a model's scores in many languages.

    Facts that a file lacks (older versions of the harness, other model classes) are None.

    Attributes:
        path: the results file.
        family: the tasks' common name without the language, such as ``sib200`` or ``sib200_instruct``.
        tasks: language to the task's name. Languages are told from it (:mod:`lm_eval_spt.analysis.task_languages`).
        scores: metric (``acc``, ``macro_f1`` ...) to language to score.
        documents: language to the number of scored documents and the number of documents in its test set.
        task_version: the version of the tasks.
        num_fewshot: the number of examples shown before each scored document.
        limit: the value of ``--limit``.
        model: the harness's model class, such as ``spt`` or ``hf``.
        model_name: the harness's name for the model, such as ``mini+eng@0123abcd``.
        base_model: the frozen model.
        harness_version: the version of lm-eval.
        date: when it ran (UTC).
        config: the harness's whole configuration of the run.
        left_out: the tasks of the file whose language can not be told.
        context: what stands around a document: digests of the chat template and the system instruction, whether
            shots are turns of a chat, and the settings of generation. Only what is set.
        lower_is_better: the metrics of which the task says so.
    """

    path: Path
    family: str
    tasks: Mapping[str, str]
    scores: Mapping[str, Mapping[str, Score]]
    documents: Mapping[str, tuple[int, int]]
    task_version: str | None
    num_fewshot: int | None
    limit: float | None
    model: str | None
    model_name: str | None
    base_model: str | None
    harness_version: str | None
    date: datetime | None
    config: Mapping[str, Any]
    left_out: Sequence[str]
    context: Mapping[str, Any] = field(default_factory=dict)
    lower_is_better: frozenset[str] = frozenset()

    @property
    def model_args(self) -> dict[str, Any]:
        """The value of ``--model_args``; older versions of the harness record it as text."""
        return _model_args(self.config)

    @property
    def prompt_name(self) -> str | None:
        """The soft prompt's name; None without one."""
        return self.config.get("prompt_name")

    @property
    def prompt_digest(self) -> str | None:
        """The digest of the soft prompt's vectors and placement."""
        return self.config.get("prompt_digest")

    @property
    def prompt_length(self) -> int | None:
        """The number of virtual tokens."""
        return self.config.get("prompt_length")

    @property
    def prompt_placement(self) -> str | None:
        """``prefix`` or ``suffix``."""
        return self.config.get("prompt_placement")

    @property
    def calibration(self) -> str | None:
        """What was averaged to calibrate the answers (see :mod:`lm_eval_spt.harness.calibration`); None: nothing."""
        return self.model_args.get("calibration")

    @property
    def partial(self) -> str | None:
        """In words, why not all documents were scored; None for a complete run."""
        if self.limit is not None:
            return f"made with --limit {self.limit:g}"
        short = [language for language, (scored, available) in self.documents.items() if scored < available]
        return f"not all documents were scored in {len(short)} languages" if short else None

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for two runs with the same model, prompt, seeds, tasks, documents and context."""
        model_args = self.model_args
        if self.prompt_digest:  # it identifies the prompt; the path does not
            model_args.pop("prompt", None)
        settings = {key: self.config.get(key) for key in MODEL_SETTINGS} | {
            "model_args": model_args,
            "context": self.context,
        }
        as_text = json.dumps(settings, sort_keys=True, default=str)
        return as_text, self.family, self.task_version, self.num_fewshot, self.limit

    def languages(self, metric: str = "acc") -> list[str]:
        """The languages with a score of `metric`, sorted."""
        return sorted(self.scores.get(metric, {}))

    def samples_file(self, language: str) -> Path:
        """The path at which ``--log_samples`` puts the answers in `language`; the file need not exist."""
        task = self.tasks.get(language, f"{self.family}_{language}")
        name = f"{task}_{self.path.stem.removeprefix('results_')}.jsonl"
        in_group = self.path.parent.glob(f"samples_*{IN_GROUP}{glob.escape(name)}")
        return next(in_group, self.path.with_name(f"samples_{name}"))


def results_files(place: Path) -> list[Path]:
    """Return the results file `place`, or all results files under the folder `place`, sorted.

    Raises:
        UserError: there is no results file.
    """
    files = [place] if place.is_file() else sorted(place.glob("**/results_*.json"))
    if not files:
        raise UserError(f"{place} holds no results_*.json: expected what lm_eval --output_path wrote")
    return files


def read_runs(path: Path, given: Mapping[str, str] | None = None) -> list[EvaluationRun]:
    """Read one results file: a run for each task family in it, sorted by the family's name.

    A group of tasks in one language, such as ``mmlu_prox_sw``, counts as a task, and its tasks do not.

    Args:
        path: a ``results_<date>.json`` of the harness.
        given: the languages of tasks, see :func:`lm_eval_spt.analysis.task_languages.read_languages`.

    Raises:
        UserError: the file can not be read, is no results file, or holds no task whose language can be told.
    """
    try:
        return _runs(path, parse_json(read_text(path, MAX_RESULTS_FILE)), given)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} can not be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{path} is not a results file of the harness, or not a whole one ({reason})") from error


def read_run(path: Path) -> EvaluationRun:
    """Read a results file of one task family.

    Raises:
        UserError: as :func:`read_runs`, or if there are several families.
    """
    runs = read_runs(path)
    if len(runs) > 1:
        names = ", ".join(run.family for run in runs)
        raise UserError(f"{path} holds several task families ({names}): score one at a time")
    return runs[0]


def nothing_to(do: str, left_out: Iterable[str]) -> UserError:
    """Return the error that nothing can be done, say ranked, because all that was read is left out."""
    reasons = "; ".join(line.removeprefix("left out: ") for line in left_out)
    return UserError(f"there is nothing to {do}: {reasons}")


def read_all(places: Iterable[Path], given: Mapping[str, str] | None = None) -> tuple[list[EvaluationRun], list[str]]:
    """Read all results files in `places`, files or folders; those that can not be used are left out.

    Args:
        places: files or folders.
        given: the languages of tasks, as in :func:`read_runs`.

    Returns:
        The runs, in the order of the files; and one line for each file or run that is left out, because it can not be
        read or repeats another one (of runs with the same model, prompt, seeds, tasks and documents the latest counts),
        and one for tasks whose language can not be told.

    Raises:
        UserError: one of `places` holds no results file.
    """
    runs: dict[tuple[Any, ...], EvaluationRun] = {}
    left_out = []
    untold: dict[str, None] = {}
    for path in {path.resolve(): path for place in places for path in results_files(place)}.values():
        try:
            file_runs = read_runs(path, given)
        except UserError as error:
            left_out.append(f"left out: {error}")
            continue
        untold |= dict.fromkeys(task for run in file_runs for task in run.left_out)
        for run in file_runs:
            other = runs.get(run.identity)
            kept, dropped = (run, other) if other is None or _age(run) > _age(other) else (other, run)
            runs[run.identity] = kept
            if dropped is not None:
                left_out.append(f"left out: {dropped.path} ({dropped.family}) repeats {kept.path}")
    if untold:
        left_out.append(f"left out: {_cannot_be_told(list(untold))}")
    return list(runs.values()), left_out


def mean_over_runs(runs: Iterable[EvaluationRun], metric: str = "acc") -> dict[str, Score]:
    """Return the mean score per language over runs that differ in their seed, for the languages that all runs have.

    The standard error is the mean of the runs' standard errors: the runs share the test documents, so that more seeds
    do not make it smaller.
    """
    per_run = [run.scores.get(metric, {}) for run in runs]
    means = {}
    for language in per_run[0]:
        if all(language in scores for scores in per_run):
            scores = [scores[language] for scores in per_run]
            errors = [score.stderr for score in scores if score.stderr is not None]
            value = sum(score.value for score in scores) / len(scores)
            means[language] = Score(value, sum(errors) / len(errors) if len(errors) == len(scores) else None)
    return means


def _runs(path: Path, content: dict[str, Any], given: Mapping[str, str] | None) -> list[EvaluationRun]:
    """The runs of a parsed results file."""
    per_task = ("results", "n-samples", "versions", "n-shot", "higher_is_better")
    content = content | {key: _without_group(content[key]) for key in per_task if key in content}
    results, config = content["results"], content["config"]
    _check_record(path, content)
    scored = [name for name, values in results.items() if any("," in key for key in values)]
    if not scored:
        if not results:
            raise UserError(f"{path} has no scores of any task: score it again")
        raise UserError(f"{path} was written by a version of lm-eval before 0.4, which is not read: score it again")
    members = {name: _members(name, content.get("group_subtasks") or {}) for name in scored}
    told = _told([name for name in scored if TASK.fullmatch(name)], members, given)
    own_documents = {*scored} & {*(content.get("n-samples") or scored)}  # a group has none
    left_out = sorted(own_documents.difference(told, *(members[name] for name in told)))
    if not told:
        raise UserError(f"{path}: {_cannot_be_told(left_out)}")
    families: dict[str, dict[str, str]] = {}
    for name, (family, language) in told.items():
        other = families.setdefault(family, {}).setdefault(language, name)
        if other != name:
            raise UserError(f"{path}: {other} and {name} seem to be both in {language}: say it with --languages FILE")

    context = {key: content.get(key) for key in CONTEXT} | {"gen_kwargs": config.get("gen_kwargs")}
    better = content.get("higher_is_better") or {}
    date = datetime.fromtimestamp(content["date"], timezone.utc) if "date" in content else None
    runs = []
    for family, tasks in sorted(families.items()):
        samples = content.get("n-samples", {})
        runs.append(
            EvaluationRun(
                path=path,
                family=family,
                tasks=tasks,
                scores=_scores({language: results[task] for language, task in tasks.items()}),
                documents={
                    language: (int(samples[task]["effective"]), int(samples[task]["original"]))
                    for language, task in tasks.items()
                    if task in samples
                },
                task_version=_common(path, "versions", content.get("versions", {}), tasks),
                num_fewshot=_common(path, "few-shot numbers", content.get("n-shot", {}), tasks),
                limit=config.get("limit"),
                model=config.get("model"),
                model_name=content.get("model_name"),
                base_model=_base_model(config, content.get("model_name")),
                harness_version=content.get("lm_eval_version"),
                date=date,
                config=config,
                left_out=left_out,
                context={key: value for key, value in context.items() if value},
                lower_is_better=frozenset(
                    metric
                    for task in tasks.values()
                    for metric, higher in (better.get(task) or {}).items()
                    if higher is False
                ),
            )
        )
    return runs


def _members(group: str, subtasks: Mapping[str, Sequence[str]]) -> set[str]:
    """All tasks and groups in a group; none for a task."""
    direct = {name.rpartition(IN_GROUP)[2] for name in subtasks.get(group, ())} - {group}
    return direct.union(*(_members(name, {key: subtasks[key] for key in subtasks if key != group}) for name in direct))


def _told(
    names: Sequence[str], members: Mapping[str, set[str]], given: Mapping[str, str] | None
) -> dict[str, TaskLanguage]:
    """The languages of tasks, and of groups whose tasks are all in one language and give way to their group."""
    told = task_languages(names, given)
    for group in [name for name in told if members[name]]:
        if {told[name].language for name in members[group] if name in told} - {told[group].language}:
            del told[group]  # such as afrixnli_tt_tasks: what looks like Tatar is not
    for group in [name for name in told if members[name]]:
        for name in members[group]:
            told.pop(name, None)
    return told


def _cannot_be_told(tasks: Sequence[str]) -> str:
    named = ", ".join(tasks[:3]) + (", ..." if len(tasks) > 3 else "")
    return f"the language of {named or 'its tasks'} can not be told from the name: say it with --languages FILE"


def _without_group(tasks: Mapping[str, Any]) -> dict[str, Any]:
    return {name.rpartition(IN_GROUP)[2]: value for name, value in tasks.items()}


def _scores(languages: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Score]]:
    """Metric to language to score; of a metric with several filters, the first filter's."""
    scores: dict[str, dict[str, Score]] = {}
    for language, values in languages.items():
        for key, value in values.items():
            metric, comma, answer_filter = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_score(value):
                continue
            stderr = values.get(f"{metric}_stderr,{answer_filter}")  # "N/A" if the harness computed none
            score = Score(float(value), float(stderr) if _is_score(stderr) else None)
            scores.setdefault(metric, {}).setdefault(language, score)
    return scores


def _is_score(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and abs(value) < MAX_SCORE


def _check_record(path: Path, content: Mapping[str, Any]) -> None:
    """Raise UserError if an entry beside the scores has another type than the harness writes."""
    config = content["config"]
    entries = [(config, key, kind) for key, kind in RECORDED.items()]
    entries += [(content, "model_name", str), (content, "lm_eval_version", str)]
    given = _model_args(config).get("pretrained")
    entries += [({"pretrained": given}, "pretrained", str)]
    for record, key, kind in entries:
        value = record.get(key)
        if value is not None and not isinstance(value, kind):
            raise UserError(f"{path} says {key} {str(value)[:80]!r}, which the harness does not write: score it again")
    limit = config.get("limit")
    if limit is not None and not 0 < limit < 2**53:
        raise UserError(f"{path} says limit {limit!r}, expected a number above 0: score it again")
    for name in ("prompt_metadata", "model_metadata"):
        check_metadata(config.get(name) or {})


def _common(path: Path, what: str, by_task: Mapping[str, Any], tasks: Mapping[str, str]) -> Any:
    """The value that all tasks share, a version as text; None if the file has none."""
    values = {by_task[task] for task in tasks.values() if task in by_task}
    if len(values) > 1:
        raise UserError(f"{path} mixes {what} {', '.join(sorted(map(str, values)))} among its languages")
    value = next(iter(values), None)
    if value is not None and not isinstance(value, int | float | str):
        raise UserError(f"{path} has {what} that are no numbers: score it again")
    return str(value) if what == "versions" and value is not None else value


def _model_args(config: Mapping[str, Any]) -> dict[str, Any]:
    given = config.get("model_args") or {}
    if isinstance(given, str):
        return dict(part.partition("=")[::2] for part in given.split(","))
    return dict(given)


def _base_model(config: Mapping[str, Any], model_name: str | None) -> str | None:
    """The base model: given by the user or, if the prompt chose it, the first part of the model's name."""
    given = _model_args(config).get("pretrained")
    if given or model_name is None:
        return given
    prompt, digest = config.get("prompt_name"), config.get("prompt_digest")
    return model_name.rpartition(f"+{prompt}@{digest[:8]}")[0] or model_name if digest else model_name


def _age(run: EvaluationRun) -> float:
    return run.date.timestamp() if run.date else 0.0
