"""Sweep files, and the runs that they plan: ::

    output: sweeps/example
    targets: [mini_topics]                     # tasks and groups that every prompt is scored on
    settings:                                  # of `lm-eval-spt train`, the same in all runs
      model: mini
      task: mini_topics_eng_Latn
    axes:                                      # any setting: a run for each combination
      prompt_length: [5, 10]
      seed: [0, 1, 2, 3]
    arms:                                      # optional: named changes, each crossed with the axes
      suffix: {}
      prefix: {placement: prefix, lr: [1e-3, 5e-3]}    # a list is an axis of this arm, one value replaces an axis
    baselines:                                 # optional: the plain base model on these tasks
      none: [mini_topics]
    ensemble_over: seed                        # optional: also the ensemble of runs that differ in this axis alone
    average_over: seed                         # optional: also the mean of their vectors
    evaluate: {limit: 100}                     # optional: options of `lm-eval-spt evaluate`
    include_path: my_tasks                     # optional: folder with further tasks
    shard_size: 16                             # optional: how many runs share the texts that they read

The names of settings and axes are the fields of :class:`~lm_eval_spt.train.config.TrainingConfig`, which checks the
values.

An arm of a sweep file is a named set of settings. Its runs that differ in their seed alone become one
:class:`~lm_eval_spt.analysis.arms.Arm` in an analysis or on a leaderboard; each baseline becomes one, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from lm_eval_spt.common.errors import UserError, shown
from lm_eval_spt.common.files import is_text, read_yaml_mapping
from lm_eval_spt.harness.options import EvaluationOptions
from lm_eval_spt.train.config import MAX_YAML, TrainingConfig, as_kind
from lm_eval_spt.train.run_name import run_name

Combination = Literal["ensemble", "average"]

MAX_RUNS = 500
SHARD_SIZE = 16
MAX_NAME = 200

PLANNED = ("output", "config", "include_path")
"""Settings that a run can not have: the sweep names its output, and the sweep file is its configuration."""

BASE = (
    "model", "revision", "gguf_file", "dtype", "quantization", "device", "device_map", "add_bos_token",
    "trust_remote_code",
)  # fmt: skip
"""The settings that must be equal in runs that share a loaded base model."""

EVALUATE: dict[str, Any] = {
    "limit": float | None,
    "num_fewshot": int | None,
    "apply_chat_template": bool | str,
    "system_instruction": str | None,
    "fewshot_as_multiturn": bool | None,
    "gen_kwargs": dict | None,
    "use_cache": str | None,
    "cache_requests": bool | str,
    "batch_size": int | str,
    "log_samples": bool,
}
"""The options of ``lm-eval-spt evaluate`` that a sweep file can have, and their types."""


@dataclass(frozen=True)
class SweepRun:
    """One prompt to train and score, a combination of several, or a baseline: the plain base model to score.

    Attributes:
        name: readable and stable: the arm and the values of the axes, in the order of the sweep file.
        config: the settings of its training; a baseline uses only those of the base model.
        targets: the tasks and groups to score it on.
        arm: the name of its arm in the sweep file, or of the baseline.
        prompted: False for a baseline.
        combination: how the prompts of `members` become the run's own, if it is made of others: their answers are
            averaged (``ensemble``), or their vectors (``average``).
        members: those runs; the settings in `config` are the first one's.
    """

    name: str
    config: TrainingConfig
    targets: tuple[str, ...]
    arm: str = ""
    prompted: bool = True
    combination: Combination | None = None
    members: tuple[SweepRun, ...] = ()

    @property
    def base(self) -> tuple[Any, ...]:
        """The values of :data:`BASE`: runs in which they are equal can share a loaded base model."""
        return tuple(getattr(self.config, name) for name in BASE)

    @property
    def prompt(self) -> str:
        """The prompt that is scored, as ``prompt=`` names it."""
        return "+".join(self.files) if self.combination == "ensemble" else self.config.output

    @property
    def files(self) -> list[str]:
        """The prompt files that training leaves, or that an ensemble is made of."""
        if self.combination == "ensemble":
            return [member.config.output for member in self.members]
        return [self.config.output] if self.prompted and self.config.prompt_length else []

    @property
    def frozen(self) -> bool:
        """Whether the base model stays as it is, so that runs can share it."""
        return not self.prompted or self.config.tune == "prompt"

    def settings(self) -> dict[str, Any]:
        """Return the settings that decide the outcome of training."""
        base = {name: getattr(self.config, name) for name in ("model", "revision", "gguf_file", "dtype")}
        if not self.prompted:
            return base | {"add_bos_token": self.config.add_bos_token, "quantization": self.config.quantization}
        made_of = {self.combination: [member.name for member in self.members]} if self.combination else {}
        return base | {"task": self.config.task} | self.config.hyperparameters() | made_of


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep.

    Attributes:
        name: the sweep's name, which is the file's.
        output: folder of its prompts, results and records.
        shards: the runs in groups of the same base model, which share the texts that they read. The shards depend
            neither on the engine nor on what is already done.
        evaluate: options of :func:`lm_eval_spt.harness.evaluate.evaluate_prompts`.
        include_path: folder with further tasks.
    """

    name: str
    output: Path
    shards: tuple[tuple[SweepRun, ...], ...]
    evaluate: dict[str, Any] = field(default_factory=dict)
    include_path: str | None = None

    @property
    def runs(self) -> list[SweepRun]:
        """All runs, in the order in which one machine does them."""
        return [run for shard in self.shards for run in shard]


def read_plan(
    path: Path, output: str | None = None, targets: Sequence[str] | None = None, max_runs: int = MAX_RUNS
) -> Plan:
    """Read a sweep file.

    Args:
        path: the file.
        output: replaces the file's output.
        targets: replaces the file's targets for prompts; baselines keep their own.
        max_runs: the most runs that the file may ask for.

    Raises:
        UserError: the file can not be read, something in it is unknown or of a wrong type, a run's settings make no
            sense, there are too many runs, or two runs would have the same name.
    """
    content = read_yaml_mapping(path, MAX_YAML, "'settings:', 'axes:' and 'targets:'")
    kinds = {
        "output": str, "targets": list, "settings": dict, "axes": dict, "arms": dict, "baselines": dict,
        "ensemble_over": str, "average_over": str, "evaluate": dict, "include_path": str, "shard_size": int,
    }  # fmt: skip
    for name, value in content.items():
        if name not in kinds:
            raise UserError(f"{path}: there is no key {shown(name)}; known are {', '.join(kinds)}")
        expected = {str: "text", list: "a list", dict: "a mapping", int: "a whole number"}[kinds[name]]
        is_kind = is_text(value) if kinds[name] is str else type(value) is kinds[name]
        if not is_kind and not (name == "targets" and isinstance(value, str)):
            raise UserError(f"{path}: {name} is {shown(value)}, expected {expected}")
    size = content.get("shard_size", SHARD_SIZE)
    if size < 1:
        raise UserError(f"{path}: shard_size is {shown(size)}, expected a whole number from 1 on")
    wanted = tuple(targets or _names(content.get("targets"), f"{path}: targets"))
    folder = Path(output or content.get("output") or f"sweeps/{path.stem}")
    evaluate = {
        name: as_kind(value, _known(name, EVALUATE, f"{path}: evaluate"), f"{path}: evaluate: {name}")
        for name, value in content.get("evaluate", {}).items()
    }
    if "batch_size" in evaluate:  # such as auto:4
        evaluate["batch_size"] = str(evaluate["batch_size"])
    evaluation_options(evaluate, f"{path}: evaluate")

    grids = _grids(content, path)
    if (count := sum(prod(map(len, grid.values())) for grid in grids.values())) > max_runs:
        raise UserError(
            f"{path} asks for {count} runs, more than {max_runs}: take values away, or give --max-runs {count}"
        )
    common = {"include_path": content.get("include_path")}
    axes = {_key(name) for name in content.get("axes", {})}
    lists = {
        _text(arm): {_key(name) for name, values in changes.items() if isinstance(values, list)}
        for arm, changes in (content.get("arms") or {"": {}}).items()
    }
    runs = []
    for arm, grid in grids.items():
        for settings in _combinations(grid):
            name = run_name(arm, {name: settings[name] for name in grid if name in axes | lists[arm]})
            place = folder / "prompts" / f"{name}.safetensors"
            runs.append(SweepRun(name, _config(common | settings, place, f"{path}: {name}"), wanted, arm))
    if not runs:
        raise UserError(f"{path} asks for no runs: an axis is empty")
    for combination in get_args(Combination):
        if (axis := content.get(f"{combination}_over")) is not None:
            runs += _combined(runs, combination, _key(axis), f"{path}: {combination}_over")
    runs += _baselines(content.get("baselines", {}), runs, path)
    _check_names(runs, path)
    return Plan(path.stem, folder, tuple(_shards(runs, size)), evaluate, content.get("include_path"))


def evaluation_options(evaluate: Mapping[str, Any], where: str = "evaluate") -> EvaluationOptions:
    """Return those of a sweep's options that are the harness's.

    Args:
        evaluate: :attr:`Plan.evaluate`.
        where: file and key, for the message.

    Raises:
        UserError: an option makes no sense.
    """
    known = {option.name for option in fields(EvaluationOptions)}
    try:
        return EvaluationOptions(**{name: value for name, value in evaluate.items() if name in known})
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _grids(content: Mapping[str, Any], path: Path) -> dict[str, dict[str, list[Any]]]:
    """Return arm to setting to the list of its values; a file without arms has a single one, named ''."""
    settings = _values(content.get("settings", {}), f"{path}: settings", "setting")
    axes = _values(content.get("axes", {}), f"{path}: axes", "axis")
    for name, values in content.get("settings", {}).items():
        if isinstance(values, list):
            raise UserError(f"{path}: the setting {_key(name)} has several values: move it to 'axes'")
    for name, values in content.get("axes", {}).items():
        if not isinstance(values, list):
            raise UserError(f"{path}: the axis {_key(name)} is {shown(values)}, expected a list")
    grids = {}
    for key, changes in (content.get("arms") or {"": {}}).items():
        arm = _text(key)
        if not isinstance(changes, dict):
            raise UserError(f"{path}: the arm {arm} is {shown(changes)}, expected settings, or {{}} for no change")
        fixed = {name: values for name, values in settings.items() if name not in axes}  # so that axes keep their order
        grids[arm] = fixed | axes | _values(changes, f"{path}: arm {arm}", "setting")
    return grids


def _values(given: Mapping[Any, Any], where: str, what: str) -> dict[str, list[Any]]:
    """Return each setting's values as a list, checked against the types of the training settings."""
    known = {name: kind for name, kind in get_type_hints(TrainingConfig).items() if name not in PLANNED}
    checked = {}
    for key, values in given.items():
        name = _key(key)
        kind = _known(name, known, where, what)
        checked[name] = [as_kind(value, kind, f"{where}: {name}") for value in _as_list(values)]
    return checked


def _text(key: Any) -> str:
    """Return a mapping's key as text; YAML also allows a number or a date."""
    return key if is_text(key) else shown(key)


def _key(name: Any) -> str:
    """Return the name of a setting as a field of the dataclass."""
    return _text(name).replace("-", "_")


def _known(name: str, known: Mapping[str, Any], where: str, what: str = "option") -> Any:
    if name not in known:
        raise UserError(f"{where}: there is no {what} {shown(name)}; known are {', '.join(known)}")
    return known[name]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _names(value: Any, where: str) -> list[str]:
    """Return task names from a list, or from text with commas."""
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(is_text(name) and name.strip() for name in names):
        raise UserError(f"{where} is {shown(value)}, expected a list of tasks and groups")
    return [name.strip() for name in names]


def _combinations(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _config(settings: Mapping[str, Any], output: Path, where: str) -> TrainingConfig:
    """Return a run's configuration: its settings override those of its preset."""
    try:
        return TrainingConfig.from_settings({**settings, "output": str(output)})
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _combined(runs: Sequence[SweepRun], combination: Combination, axis: str, where: str) -> list[SweepRun]:
    """Return a run for each set of runs with a frozen model that differ in one setting alone."""
    groups: dict[str, list[SweepRun]] = {}
    for run in runs:
        if run.frozen and not run.members and run.config.prompt_length:
            others = {name: value for name, value in asdict(run.config).items() if name not in (axis, "output")}
            groups.setdefault(json.dumps([run.arm, others], sort_keys=True), []).append(run)
    combined = []
    for members in groups.values():
        if len(members) < 2:
            continue
        own = run_name("", {axis: getattr(members[0].config, axis)})
        name = f"-{members[0].name}-".replace(f"-{own}-", "-", 1) + combination
        name = name.removeprefix("-")
        config = replace(members[0].config, output=str(Path(members[0].config.output).with_name(f"{name}.safetensors")))
        combined.append(SweepRun(name, config, members[0].targets, members[0].arm, True, combination, tuple(members)))
    if not combined:
        raise UserError(
            f"{where} is {shown(axis)}, expected an axis with two values or more of runs that leave the model frozen"
        )
    return combined


def _baselines(given: Mapping[Any, Any], runs: Sequence[SweepRun], path: Path) -> list[SweepRun]:
    """Return a run without a prompt for each baseline and base model."""
    models = {run.base: run.config for run in runs}
    baselines = []
    for baseline, targets in ((_text(key), value) for key, value in given.items()):
        wanted = tuple(_names(targets, f"{path}: baseline {baseline}"))
        for config in models.values():
            # What the base models differ in tells their baselines apart.
            axes = {
                name: getattr(config, name)
                for name in BASE
                if len({getattr(other, name) for other in models.values()}) > 1
            }
            baselines.append(SweepRun(run_name(baseline, axes), config, wanted, baseline, prompted=False))
    return baselines


def _check_names(runs: Sequence[SweepRun], path: Path) -> None:
    seen: dict[str, SweepRun] = {}
    same: dict[tuple[str, str], SweepRun] = {}
    for run in runs:
        if len(run.name) > MAX_NAME:
            raise UserError(
                f"{path}: a run would have a name of {len(run.name)} characters ({run.name[:60]}...), but "
                f"{MAX_NAME} make a file's name: give a shorter name to the arm, or several values to fewer settings"
            )
        # Some file systems take capitals and small letters for the same.
        if other := seen.get(run.name.lower()):
            differing = [
                f"{setting.name} {getattr(other.config, setting.name)!r} and {getattr(run.config, setting.name)!r}"
                for setting in fields(TrainingConfig)
                if getattr(other.config, setting.name) != getattr(run.config, setting.name)
                and setting.name not in PLANNED
            ]
            raise UserError(
                f"{path}: two runs would have the name {run.name} ({'; '.join(differing) or 'the same settings'}): "
                "give each value of an axis once, and each arm a name of its own"
            )
        seen[run.name.lower()] = run
        trained = run.prompted and not run.members
        if trained and (twin := same.setdefault((run.arm, run.config.apart_from_output()), run)) is not run:
            raise UserError(
                f"{path}: {twin.name} and {run.name} would be the same run: what tells them apart has no effect"
            )


def _shards(runs: Sequence[SweepRun], size: int) -> Iterator[tuple[SweepRun, ...]]:
    """Group the runs by base model in their order, at most `size` in a group; baselines come first.

    Runs that tune the model have shards of their own. What is combined stays together, also if it is more than `size`.
    """
    groups: dict[tuple[Any, ...], list[SweepRun]] = {}
    for run in sorted(runs, key=lambda run: run.prompted):
        groups.setdefault((*run.base, run.frozen), []).append(run)
    for group in groups.values():
        shard: list[SweepRun] = []
        for block in _blocks(group):
            if shard and len(shard) + len(block) > size:
                yield tuple(shard)
                shard = []
            shard += block
        yield tuple(shard)


def _blocks(runs: Sequence[SweepRun]) -> Iterator[list[SweepRun]]:
    """Group runs that are combined, which one worker has to do, and what is made of them, in their order."""
    block_of = {run.name: {run.name} for run in runs}
    for made in runs:
        joined = block_of[made.name].union(*(block_of[member.name] for member in made.members))
        block_of |= dict.fromkeys(joined, joined)
    for block in dict.fromkeys(map(frozenset, block_of.values())):
        yield [run for run in runs if run.name in block]
