"""Arms: what analyses and leaderboards compare. Runs are read from results files and sorted into arms."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_eval_spt.analysis.languages import ENGLISH, language_code
from lm_eval_spt.analysis.results import EvaluationRun, Score, mean_over_runs, nothing_to, read_all, results_files
from lm_eval_spt.analysis.task_languages import task_languages
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import is_below_current_folder
from lm_eval_spt.prompt.metadata import in_words, scored_documents

CONTEXTS = re.compile(r"_(instruct|xglm|bloom|prompt_\d+)$")
"""The ending of task families that show the same documents in another context: ``sib200_instruct`` and ``sib200``,
``nollysenti_prompt_2`` and ``nollysenti_prompt_1``."""

MAX_TASKS = 5
"""So many tasks that a prompt was trained on are named; a group may have hundreds."""

NO_EFFECT = ("seed", "shots_seed", "preset", "context_cache")
"""Hyper-parameters in which the runs of an arm may differ."""

TUNED = {"all": "all weights", "model": "the model's weights", "lora": "LoRA"}
"""What ``--tune`` tunes beside the prompt, or instead of one."""

COMBINED = {
    "probability": "ensemble of {} prompts (mean of probabilities)",
    "log_probability": "ensemble of {} prompts (mean of log-probabilities)",
    "mean": "mean of {} prompts",
    "interpolate": "interpolation of {} prompts",
    "concat": "{} prompts in a row",
}
"""What several prompts become: by what an ensemble averages, and by the mode of ``compose``."""


@dataclass(frozen=True)
class Arm:
    """What is compared: a base model with or without a soft prompt, scored on one task family.

    The runs of an arm differ in their training seed alone, and the arm's score is their mean. The user can also put
    runs under one name; then they are one arm whatever they differ in.

    An arm of a sweep file is a named set of training settings (see :mod:`lm_eval_spt.sweep.plan`). Crossed with the
    file's axes it gives several arms here, one for each combination of values other than the seed's.

    Attributes:
        name: unique among the arms that are compared.
        runs: at least one, all of one task family.
        training: for each run the record of its prompt's training (see :mod:`lm_eval_spt.prompt.metadata`); empty
            without a prompt, or where the record is not known.
    """

    name: str
    runs: Sequence[EvaluationRun]
    training: Sequence[Mapping[str, Any]]

    def scores(self, metric: str) -> dict[str, Score]:
        """Return the mean over the runs in every language that all runs have."""
        return mean_over_runs(self.runs, metric)

    @property
    def base_model(self) -> str | None:
        """The frozen model."""
        return self.runs[0].base_model

    @property
    def trained_on(self) -> str | None:
        """The tasks that the prompt was trained on and its shots, as far as they are known."""
        training = self.training[0]
        if not training.get("tasks"):
            return None
        named = training["tasks"][:MAX_TASKS]
        if more := len(training["tasks"]) - len(named):
            named = [*named, f"{more} more"]
        return ", ".join(named) + (f", {training['shots']} shots" if training.get("shots") else "")

    @property
    def uses_prompt(self) -> bool:
        """Whether the results name a soft prompt."""
        return self.runs[0].prompt_digest is not None

    @property
    def is_random(self) -> bool:
        """Whether another seed would have given another arm: something was learned, or shots were drawn."""
        run = self.runs[0]
        if run.num_fewshot:
            return True
        if self._hyperparameters.get("epochs") == 0 and self._hyperparameters.get("init") in ("text", "labels"):
            return False  # a template that was not trained
        return self.uses_prompt or bool(self.training[0]) or bool({"peft", "delta"} & run.model_args.keys())

    @property
    def documents_seeds(self) -> list[int | None]:
        """What the training documents of each run were drawn with; None where that is not known."""
        seeds = []
        for training in self.training:
            settings = training.get("hyperparameters") or {}
            drawn = settings.get("shots_seed")
            seeds.append(training.get("seed") if drawn is None else drawn)
        return [seed if isinstance(seed, int) else None for seed in seeds]

    @cached_property
    def learned_languages(self) -> set[str]:
        """The codes of the languages that the prompts were trained on, as far as they are known."""
        learned: set[str] = set()
        for training in self.training:
            recorded = map(language_code, training.get("source_languages") or ())
            told = [task.language for task in task_languages(training.get("tasks") or ()).values()]
            learned |= {code for code in recorded if code} or {*told}
        return learned

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for arms whose spread over seeds is taken to be alike: one base model, tasks and shots of training."""
        training = self.training[0]
        base_model = training.get("tuned_from") or training.get("base_model") or self.base_model
        return base_model, str(training.get("tasks")), training.get("shots"), self.runs[0].num_fewshot

    @property
    def _hyperparameters(self) -> Mapping[str, Any]:
        return self.training[0].get("hyperparameters") or {}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All known settings in which this arm can differ from others."""
        run, training = self.runs[0], self.training[0]
        # Records of older versions lack settings that are off in later ones.
        given = {
            name: value for name, value in self._hyperparameters.items() if value is not None and value is not False
        }
        settings = {name: value for name, value in given.items() if name not in NO_EFFECT}
        model_args = {name: value for name, value in run.model_args.items() if name not in ("prompt", "pretrained")}
        return settings | {
            "model": run.model,
            "base_model": run.base_model,
            "model_args": model_args,
            "context": run.context,
            "tasks": run.family,
            "trained_on": training.get("tasks"),
            "placement": run.prompt_placement,
            "prompt_length": run.prompt_length,
            "prompt_kind": self._prompt_kind,
            "made_of": self._made_of,
        }

    @property
    def _prompt_kind(self) -> str:
        """Of the prompt, or of an ensemble's members; records of older versions know one kind only."""
        training = self.training[0]
        return training.get("prompt_kind") or self._hyperparameters.get("prompt_kind") or "embeddings"

    @property
    def _made_of(self) -> dict[str, Any]:
        """How several prompts became this one; empty for a prompt that was trained as it is.

        Which prompts is left out of an ensemble whose members differ in their seed alone: other seeds give a run of the
        same arm.
        """
        made = {key: value for key in ("ensemble", "composed") if isinstance(value := self.training[0].get(key), dict)}
        if "ensemble" in made and "lr" in self._hyperparameters:  # which are the members' where all have the same
            members = made["ensemble"].get("members")
            made["ensemble"] = made["ensemble"] | {"members": len(members) if isinstance(members, list) else None}
        return made

    @property
    def description(self) -> str:
        """What the arm's prompt is, in words, such as ``suffix, 16 tokens`` or ``ensemble of 4 prompts, ...``."""
        run, training, given = self.runs[0], self.training[0], self._hyperparameters
        tuned = TUNED.get(str(given.get("tune")))
        words = [f"{tuned} tuned"] if tuned else []
        words += ["with a PEFT adapter"] if "peft" in run.model_args else []
        words += [f"calibrated by {run.calibration}"] if run.calibration else []
        if not self.uses_prompt:
            return ", ".join(["no prompt", *words])
        length, several = run.prompt_length, []
        for key, parts in (("ensemble", "members"), ("composed", "prompts")):
            made = training.get(key)
            if isinstance(made, dict) and isinstance(made.get(parts), list):
                count, how = len(made[parts]), made.get("average") or made.get("mode")
                several.append(COMBINED.get(str(how), "{} prompts in one").format(count))
                if key == "ensemble" and length and count:
                    length //= count  # an ensemble counts the tokens of all members
        averaged = {str((training.get("validation") or {}).get("averaged_epochs")) for training in self.training}
        if len(averaged) == 1 and averaged != {"None"}:
            words.append(f"mean of the last {averaged.pop()} epochs")
        if self.reparameterization not in (None, "none"):
            words.append(f"{self.reparameterization} reparameterization")
        if given.get("epochs") == 0:
            words.append("not trained")
        placement = {"both": "prefix and suffix"}.get(str(run.prompt_placement), run.prompt_placement or "prompt")
        kind = "deep prefix" if self._prompt_kind == "kv" else placement
        tokens = [f"{length} {'token' if length == 1 else 'tokens'}{' each' if 'ensemble' in training else ''}"]
        return ", ".join([*several, kind, *(tokens if length else []), *words])

    @property
    def reparameterization(self) -> str | None:
        """The reparameterization in training; None where it is not known."""
        return self._hyperparameters.get("reparameterization", "none") if self._hyperparameters else None

    @property
    def tuned_parameters(self) -> int | None:
        """The number of learned parameters: 0 for a frozen model without prompt or adapter; None where not known."""
        if self.uses_prompt or self.training[0]:
            return self.training[0].get("tuned_parameters")
        return None if {"peft", "delta"} & self.runs[0].model_args.keys() else 0

    @property
    def training_cost(self) -> str | None:
        """The cost of training on any machine, in documents and epochs; None where it is not known."""
        documents, epochs = self.training[0].get("training_documents"), self._hyperparameters.get("epochs")
        return None if documents is None or epochs is None else f"{documents} documents × {epochs} epochs"


def read_arms(
    places: Iterable[tuple[str | None, Path]], given: Mapping[str, str] | None = None
) -> tuple[list[Arm], list[str]]:
    """Read results and sort them into arms.

    Args:
        places: results files, or folders of them, each with a name or None. Runs under one name are one arm for each
            task family. Runs without a name are one arm if they differ in the seed alone.
        given: the languages of tasks, see :func:`lm_eval_spt.analysis.task_languages.read_languages`.

    Returns:
        The arms, and one line for each results file or run that is left out.

    Raises:
        UserError: a place holds no results file, or no run can be used.
    """
    files: dict[str | None, dict[Path, Path]] = {}  # a file under two names belongs to both arms
    for name, place in places:
        files.setdefault(name, {}).update({path.resolve(): path for path in results_files(place)})
    named = {path for name, paths in files.items() if name for path in paths}
    names: dict[int, str | None] = {}
    runs: list[EvaluationRun] = []
    left_out: list[str] = []
    for name, paths in files.items():
        its_own, problems = read_all([path for key, path in paths.items() if name or key not in named], given)
        names |= {id(run): name for run in its_own}
        runs += its_own
        left_out += problems
    runs, not_comparable = comparable(runs)
    if not runs:
        raise nothing_to("rank", left_out)

    groups: dict[tuple[str, str], list[tuple[EvaluationRun, dict[str, Any]]]] = {}
    for run in runs:
        training = training_record(run)
        groups.setdefault((names[id(run)] or _configuration(run, training), run.family), []).append((run, training))
    families = Counter(key for key, _ in groups)  # a configuration has one family, a given name can have several
    several_bases = len({run.base_model for run in runs}) > 1
    arms: dict[str, Arm] = {}
    for (key, family), members in groups.items():
        members, repeated = _without_repeats(members)
        left_out += repeated
        arm_runs, trainings = [run for run, _ in members], [training for _, training in members]
        given_name = names[id(arm_runs[0])]
        name = given_name or _describe(arm_runs, several_bases)
        if given_name and families[key] > 1:
            name += f" ({family})"
        while name in arms:  # for example the same prompt with another dtype
            name += "*"
        arms[name] = Arm(name, arm_runs, trainings)
        if all(trainings) and len({_configuration(*member) for member in members}) > 1:
            not_comparable.append(f"{name}: the mean of runs that differ in more than their seed")
    return list(arms.values()), left_out + not_comparable


def _without_repeats(
    members: Sequence[tuple[EvaluationRun, dict[str, Any]]],
) -> tuple[list[tuple[EvaluationRun, dict[str, Any]]], list[str]]:
    """Leave out runs that are another one once more, though the harness had another seed; the newest counts.

    Scoring without shots draws nothing. So a prompt that was scored twice is one run, and without a prompt a model of
    which two runs have the same scores.

    Returns:
        The runs with their training, and a line for each that is left out.
    """
    newest: dict[Any, tuple[EvaluationRun, dict[str, Any]]] = {}
    left_out = []
    for run, training in sorted(members, key=lambda member: member[0].date.timestamp() if member[0].date else 0.0):
        without_prompt = json.dumps([run.model_args, run.family], sort_keys=True, default=str), str(run.scores)
        key = id(run) if run.num_fewshot else (run.prompt_digest or without_prompt, str(run.context))
        if key in newest:
            left_out.append(
                f"left out: {newest[key][0].path} repeats {run.path}: another seed of the harness is no run"
            )
        newest[key] = (run, training)
    kept = {id(run) for run, _ in newest.values()}
    return [member for member in members if id(member[0]) in kept], left_out


def comparable(runs: Sequence[EvaluationRun]) -> tuple[list[EvaluationRun], list[str]]:
    """Keep the largest set of runs that were scored on the same documents in the same way: the most runs, or languages.

    Returns:
        These runs, and for each of the others a line that says how it differs.
    """
    if not runs:
        return [], []
    protocols = [_protocol(run) for run in runs]
    runs_of: dict[tuple[Any, ...], list[EvaluationRun]] = {}
    for run, protocol in zip(runs, protocols, strict=True):
        runs_of.setdefault(tuple(protocol.items()), []).append(run)
    largest = max(runs_of, key=lambda same: (len(runs_of[same]), sum(len(run.tasks) for run in runs_of[same])))
    common = dict(largest)
    kept, left_out = [], []
    for run, protocol in zip(runs, protocols, strict=True):
        differences = [f"{key} {value}, not {common[key]}" for key, value in protocol.items() if value != common[key]]
        if differences:
            left_out.append(f"left out: {run.path} can not be compared with the others: {'; '.join(differences)}")
        else:
            kept.append(run)
    return kept, left_out


def curves(arms: Sequence[Arm], setting: str) -> list[tuple[str, list[int]]]:
    """Find arms that differ in one setting alone.

    Args:
        arms: arms without a prompt, or without a record of its training, belong to no curve.
        setting: such as ``prompt_length``.

    Returns:
        For each curve its name, made of the settings in which it differs from the other curves, and the positions of
        its arms in `arms`.
    """
    groups: dict[str, list[int]] = {}
    others: dict[str, dict[str, Any]] = {}  # the other settings of each group
    for index, arm in enumerate(arms):
        if arm.uses_prompt and arm.training[0]:
            rest = {name: value for name, value in arm.settings.items() if name != setting}
            key = json.dumps(rest, sort_keys=True, default=str)
            groups.setdefault(key, []).append(index)
            others[key] = rest
    drawn = [
        key for key, members in groups.items() if len({arms[index].settings.get(setting) for index in members}) > 1
    ]
    differing = [
        name for name in (others[drawn[0]] if drawn else ()) if len({str(others[key].get(name)) for key in drawn}) > 1
    ]

    def order(key: str) -> list[tuple[float, str]]:
        values = [others[key].get(name) for name in differing]
        return [(value, "") if isinstance(value, int | float) else (0, str(value)) for value in values]

    def title(key: str) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {others[key].get(name)}" for name in differing)

    return [(title(key) or str(others[key]["base_model"]), groups[key]) for key in sorted(drawn, key=order)]


def source_language(arms: Iterable[Arm]) -> str:
    """Return the code of the language that all prompts were trained on; English if that is not one."""
    sources = {language for arm in arms for language in arm.learned_languages}
    return sources.pop() if len(sources) == 1 else ENGLISH


def common_metrics(arms: Sequence[Arm]) -> list[str]:
    """Return the metrics that all runs have, in the order in which the task reports them; the first is the default."""
    runs = [run for arm in arms for run in arm.runs]
    return [metric for metric in runs[0].scores if all(metric in run.scores for run in runs)]


def check_metric(arms: Iterable[Arm], metric: str) -> None:
    """Raise UserError if an arm lacks a metric, or if it is none of which more, up to 1, is better."""
    for arm in arms:
        largest = max((score.value for score in arm.scores(metric).values()), key=abs, default=None)
        if largest is None:
            found = f"no {metric!r} in all its runs"
        elif any(metric in run.lower_is_better for run in arm.runs):
            found = f"{metric!r}, of which less is better"
        elif abs(largest) > 1:
            found = f"{metric!r} of {largest:g}"
        else:
            continue
        others = [name for name in common_metrics([arm]) if name != metric]
        instead = f", such as {', '.join(others)}" if others else ""
        raise UserError(f"{arm.name!r} has {found}: expected a metric of which more, up to 1, is better{instead}")


def partial_data(arms: Iterable[Arm]) -> list[str]:
    """Return a line for each arm with a run in which not all documents were scored."""
    reasons = [(arm.name, run.partial) for arm in arms for run in arm.runs if run.partial]
    return [f"{name}: {reason}" for name, reason in dict.fromkeys(reasons)]


def learned_what_is_scored(arms: Iterable[Arm]) -> list[str]:
    """Return a line for each arm whose prompts learned from, or were chosen by, documents that are also scored."""
    counts = {arm.name: scored_documents(arm.training) for arm in arms}
    return [f"LEARNED FROM TEST DOCUMENTS: {name}: {in_words(found)}" for name, found in counts.items() if found]


def target_languages(arms: Sequence[Arm], metrics: Sequence[str], source: str) -> tuple[list[str], list[str]]:
    """Return the languages that transfer is measured in: those that every arm has and none learned from.

    Where some arm learned from each that they have, for example because each arm has a source of its own, it is all of
    them.

    Args:
        arms: the arms.
        metrics: those that an arm must have in a language.
        source: the source language's code, which is no target.

    Returns:
        Their codes, in order, and lines that say which languages are left out and why.

    Raises:
        UserError: the arms have no language in common beside the source.
    """
    scored = [set.intersection(*(set(arm.scores(metric)) for metric in metrics)) - {source} for arm in arms]
    shared, every = set.intersection(*scored), set.union(*scored)
    if not shared:
        own, fewest = min(zip(scored, arms, strict=True), key=lambda pair: len(pair[0]))
        if not own:
            raise UserError(
                f"{fewest.name!r} has scores in the source language {source} alone: score it in others, or say with "
                "--languages FILE which tasks belong together"
            )
        raise UserError(
            f"the arms have no target language in common (source: {source}): leave out {fewest.name!r}, or score it in "
            "the languages of the others"
        )
    learned = {arm.name: sorted(shared & arm.learned_languages) for arm in arms}
    targets = sorted(shared.difference(*learned.values()) or shared)
    role = "no target languages" if len(targets) < len(shared) else "TARGETS WERE LEARNED FROM"
    lines = [
        f"{role}: {', '.join(languages)} ({name!r} learned from them)"
        for name, languages in learned.items()
        if languages
    ]
    lacking = [f"{arm.name} lacks {len(every - own)}" for arm, own in zip(arms, scored, strict=True) if every - own]
    if lacking:
        lines.append(f"{len(shared)} languages beside {source} are in all arms, of {len(every)}: {'; '.join(lacking)}")
    return targets, lines


def training_record(run: EvaluationRun) -> dict[str, Any]:
    """Return the record of how the run's prompt was trained; empty where it is not known.

    It is in the results: that of the prompt, or of the model if that was tuned alone. If it is not, for example in
    those of other tools, the prompt file that they name is read, provided that its digest is the recorded one and that
    it lies below the current folder: a results file must not decide what is opened on this machine.
    """
    recorded = run.config.get("prompt_metadata") or run.config.get("model_metadata")
    if isinstance(recorded, dict) and recorded:
        return recorded
    place = run.model_args.get("prompt")
    if run.prompt_digest is None or not isinstance(place, str) or not is_below_current_folder(place):
        return {}
    if not os.path.exists(place):
        return {}
    from lm_eval_spt.prompt.soft_prompt import SoftPrompt  # the import takes seconds

    try:
        prompt = SoftPrompt.load(place)
    except UserError:
        return {}
    return prompt.metadata if prompt.digest == run.prompt_digest else {}


def data_set(family: str) -> str:
    """Return the data set of a task family: ``sib200`` for ``sib200_instruct``."""
    return CONTEXTS.sub("", family)


def _protocol(run: EvaluationRun) -> dict[str, Any]:
    """What must be equal in runs that are compared."""
    return {
        "data set": data_set(run.family),
        "task version": run.task_version,
        "few-shot number": run.num_fewshot,
        "limit": "none" if run.limit is None else f"{run.limit:g}",
    }


def _configuration(run: EvaluationRun, training: Mapping[str, Any]) -> str:
    """A text that is equal for runs that differ in the seed alone.

    Without a record of the training, that can not be told: then the prompt's digest makes the text unique.
    """
    settings = Arm("", [run], [training]).settings
    return json.dumps([settings, None if training else run.prompt_digest], sort_keys=True, default=str)


def _describe(runs: Sequence[EvaluationRun], name_base_model: bool) -> str:
    """A name for an arm without one: its prompts, with the base model if asked for or if there is no prompt."""
    first = runs[0]
    base = str(first.base_model or first.model_name or first.model).rstrip("/").rpartition("/")[2]
    prompts = [run.prompt_name for run in runs if run.prompt_name]
    name = ", ".join(prompts[:3]) + (f" and {len(prompts) - 3} more" if len(prompts) > 3 else "")
    if not prompts or name_base_model:
        name = f"{base} + {name}" if prompts else base
    name += " (calibrated)" if first.calibration else ""
    return name if first.family == data_set(first.family) else f"{name} ({first.family})"
