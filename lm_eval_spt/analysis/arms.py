"""Sorting runs into arms: what is compared on a leaderboard.

An *arm* is a base model with or without a prompt, scored on one task family. Runs that differ in their training seed
alone are one arm, and their scores are averaged.
"""

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

from lm_eval_spt.analysis.results import EvaluationRun, Score, mean_over_runs, read_all, results_files
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import is_below_current_folder

CONTEXTS = re.compile(r"_(instruct|xglm|bloom)$")
"""Families of tasks that show the same documents in another way, such as ``sib200_instruct`` and ``sib200``."""

NO_EFFECT = ("seed", "preset", "context_cache")
"""Hyper-parameters that do not set an arm apart."""


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone.

    Attributes:
        name: unique among the arms of a leaderboard.
        runs: at least one, all of one task family.
        training: what each run's prompt says of its training (see :mod:`lm_eval_spt.prompt.metadata`); empty
            where there is no prompt or nothing is known of it.
    """

    name: str
    runs: Sequence[EvaluationRun]
    training: Sequence[Mapping[str, Any]]

    def scores(self, metric: str) -> dict[str, Score]:
        """Return the mean over the runs per language, where all runs have one."""
        return mean_over_runs(self.runs, metric)

    @property
    def base_model(self) -> str | None:
        """The frozen model."""
        return self.runs[0].base_model

    @property
    def trained_on(self) -> str | None:
        """The tasks and the number of documents per class that the prompt was trained on, as far as that is known."""
        training = self.training[0]
        if not training.get("tasks"):
            return None
        return ", ".join(training["tasks"]) + (f", {training['shots']} shots" if training.get("shots") else "")

    @property
    def uses_prompt(self) -> bool:
        """Whether the arm has a soft prompt that the results tell of."""
        return self.runs[0].prompt_digest is not None

    @property
    def _hyperparameters(self) -> Mapping[str, Any]:
        return self.training[0].get("hyperparameters") or {}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that is known to set this arm apart from others."""
        run, training = self.runs[0], self.training[0]
        settings = {name: value for name, value in self._hyperparameters.items() if name not in NO_EFFECT}
        model_args = {name: value for name, value in run.model_args.items() if name not in ("prompt", "pretrained")}
        return settings | {
            "model": run.model,
            "base_model": run.base_model,
            "model_args": model_args,
            "tasks": run.family,
            "trained_on": training.get("tasks"),
            "placement": run.prompt_placement,
            "prompt_length": run.prompt_length,
        }

    @property
    def reparameterization(self) -> str | None:
        """How the prompt was reparameterized in training; None where that is not known."""
        return self._hyperparameters.get("reparameterization", "none") if self._hyperparameters else None

    @property
    def tuned_parameters(self) -> int | None:
        """How many numbers were learned: 0 for a frozen model without prompt or adapter; None where it is not known."""
        if self.uses_prompt:
            return self.training[0].get("tuned_parameters")
        return None if {"peft", "delta"} & self.runs[0].model_args.keys() else 0

    @property
    def training_cost(self) -> str | None:
        """The training's documents and passes over them, as far as that is known: what it costs on any machine."""
        documents, epochs = self.training[0].get("training_documents"), self._hyperparameters.get("epochs")
        return None if documents is None or epochs is None else f"{documents} documents × {epochs} epochs"


def read_arms(places: Iterable[tuple[str | None, Path]]) -> tuple[list[Arm], list[str]]:
    """Read results and sort them into arms.

    Args:
        places: results files or folders of them, with a name or None. What has a name is one arm for each task family
            in it; the rest is put together where it differs in the seed alone.

    Returns:
        The arms, and one line for each results file or run that is left out.

    Raises:
        UserError: a place holds no results file, or none can be used.
    """
    places = list(places)
    names = {path: name for name, place in places for path in results_files(place)}
    runs: list[EvaluationRun] = []
    left_out: list[str] = []
    for name in dict.fromkeys(name for name, _ in places):  # what two names are given to is wanted twice
        found, problems = read_all(place for given, place in places if given == name)
        runs += found
        left_out += problems
    runs, not_comparable = comparable(runs)
    if not runs:
        raise UserError("there is nothing to rank: " + "; ".join(line.removeprefix("left out: ") for line in left_out))

    groups: dict[tuple[str, str], list[tuple[EvaluationRun, dict[str, Any]]]] = {}
    for run in runs:
        training = training_record(run)
        groups.setdefault((names[run.path] or _configuration(run, training), run.family), []).append((run, training))
    families = Counter(name for name, _ in groups)  # of a given name; all else is of one family as it is
    several_bases = len({run.base_model for run in runs}) > 1
    arms: dict[str, Arm] = {}
    for (key, family), members in groups.items():
        of_arm, trainings = [run for run, _ in members], [training for _, training in members]
        given = names[of_arm[0].path]
        name = given or _describe(of_arm, several_bases)
        if given and families[key] > 1:
            name += f" ({family})"
        while name in arms:  # for example the same prompt with another dtype
            name += "*"
        arms[name] = Arm(name, of_arm, trainings)
        if all(trainings) and len({_configuration(*member) for member in members}) > 1:
            not_comparable.append(f"{name}: the mean of runs that differ in more than their seed")
    return list(arms.values()), left_out + not_comparable


def comparable(runs: Sequence[EvaluationRun]) -> tuple[list[EvaluationRun], list[str]]:
    """Keep the largest number of runs that were scored on the same documents in the same way.

    Returns:
        These runs, and for each of the others a line that says what sets it apart.
    """
    if not runs:
        return [], []
    kinds = [_protocol(run) for run in runs]
    common = dict(Counter(tuple(kind.items()) for kind in kinds).most_common(1)[0][0])
    kept, left_out = [], []
    for run, kind in zip(runs, kinds, strict=True):
        differences = [f"{what} {value}, not {common[what]}" for what, value in kind.items() if value != common[what]]
        if differences:
            left_out.append(f"left out: {run.path} can not be compared with the others: {'; '.join(differences)}")
        else:
            kept.append(run)
    return kept, left_out


def curves(arms: Sequence[Arm], setting: str) -> list[tuple[str, list[int]]]:
    """Find arms that differ in nothing but one setting.

    Args:
        arms: those without a prompt, or without a record of its training, belong to no curve.
        setting: such as ``prompt_length``.

    Returns:
        For each curve a name, made of what sets it apart from the other curves, and its arms' positions in `arms`.
    """
    groups: dict[str, list[int]] = {}
    others: dict[str, dict[str, Any]] = {}
    for index, arm in enumerate(arms):
        if arm.uses_prompt and arm.training[0]:
            rest = {name: value for name, value in arm.settings.items() if name != setting}
            key = json.dumps(rest, sort_keys=True, default=str)
            groups.setdefault(key, []).append(index)
            others[key] = rest
    drawn = [key for key, of in groups.items() if len({arms[index].settings.get(setting) for index in of}) > 1]
    telling = [
        name for name in (others[drawn[0]] if drawn else ()) if len({str(others[key].get(name)) for key in drawn}) > 1
    ]

    def order(key: str) -> list[tuple[float, str]]:
        values = [others[key].get(name) for name in telling]
        return [(value, "") if isinstance(value, int | float) else (0, str(value)) for value in values]

    def title(key: str) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {others[key].get(name)}" for name in telling)

    return [(title(key) or str(others[key]["base_model"]), groups[key]) for key in sorted(drawn, key=order)]


def training_record(run: EvaluationRun) -> dict[str, Any]:
    """Return what the run's prompt says of its training.

    The results hold it; those of other tools, or without it, may name a prompt that is still there and still the same.
    It is looked at only below the current folder: a file must not decide what is opened on this machine.
    """
    recorded = run.config.get("prompt_metadata")
    if isinstance(recorded, dict) and recorded:
        return recorded
    place = run.model_args.get("prompt")
    if run.prompt_digest is None or not isinstance(place, str) or not is_below_current_folder(place):
        return {}
    if not os.path.exists(place):
        return {}
    from lm_eval_spt.prompt.soft_prompt import SoftPrompt  # takes seconds: not without need

    try:
        prompt = SoftPrompt.load(place)
    except UserError:
        return {}
    return prompt.metadata if prompt.digest == run.prompt_digest else {}


def data_set(family: str) -> str:
    """Return the documents' name of a task family: ``sib200`` of ``sib200_instruct``."""
    return CONTEXTS.sub("", family)


def _protocol(run: EvaluationRun) -> dict[str, Any]:
    """What has to be equal for two runs to be compared."""
    return {
        "data set": data_set(run.family),
        "task version": run.task_version,
        "few-shot number": run.num_fewshot,
        "limit": "none" if run.limit is None else f"{run.limit:g}",
    }


def _configuration(run: EvaluationRun, training: Mapping[str, Any]) -> str:
    """Equal for two runs that differ in the seed alone; unlike any other where too little is known to say so."""
    settings = Arm("", [run], [training]).settings
    return json.dumps([settings, None if training else run.prompt_digest], sort_keys=True, default=str)


def _describe(runs: Sequence[EvaluationRun], name_base_model: bool) -> str:
    """A name for an arm that was given none: its prompts, and its base model where that or a prompt tells nothing."""
    first = runs[0]
    base = str(first.base_model or first.model_name or first.model).rstrip("/").rpartition("/")[2]
    prompts = [run.prompt_name for run in runs if run.prompt_name]
    name = ", ".join(prompts[:3]) + (f" and {len(prompts) - 3} more" if len(prompts) > 3 else "")
    if not prompts or name_base_model:
        name = f"{base} + {name}" if prompts else base
    return name if first.family == data_set(first.family) else f"{name} ({first.family})"
