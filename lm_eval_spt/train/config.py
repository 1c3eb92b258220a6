"""The settings of a training run: one dataclass is the command line, the YAML file and the record in the prompt."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from transformers import HfArgumentParser

from lm_eval_spt.errors import UserError
from lm_eval_spt.prompt import PLACEMENTS

Initialization = Literal["uniform", "vocab", "text", "labels"]

PRESETS: dict[str, dict[str, Any]] = {
    # The recipe of arXiv 2402.03782, from its published code; the README's 20 epochs, 8 examples per class.
    "paper": {
        "prompt_length": 10,
        "placement": "suffix",
        "init": "uniform",
        "loss": "target",
        "shots": 8,
        "validation_shots": 2,
        "epochs": 20,
        "lr": 5e-3,
        "batch_size": 8,
        "warmup_ratio": 0.1,
        "weight_decay": 0.0,
        "clip": 1.0,
        "dtype": "float32",
        "max_length": 128,
        "truncation_side": "right",
        "add_bos_token": False,
    },
}


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class TrainingConfig:
    """Every setting of a training run; the help texts say what each means."""

    model: str = _setting("", "base model: a Hub id, a folder, or 'mini', the model that ships with the package")
    task: str = _setting("", "harness task(s) to learn from, comma separated, such as sib200_eng_Latn")
    output: str = _setting("", "prompt file to write, such as prompts/my.safetensors")

    revision: str | None = _setting(None, "revision of the base model on the Hub")
    include_path: str | None = _setting(None, "folder with further task YAML files, as in lm_eval")
    preset: str | None = _setting(None, f"a named set of settings, which other flags override: {', '.join(PRESETS)}")
    config: str | None = _setting(None, "YAML file with settings, which flags override")

    prompt_length: int = _setting(16, "number of virtual tokens")
    placement: Literal["prefix", "suffix"] = _setting("suffix", "the prompt comes before or after the text")
    init: Initialization = _setting(
        "text",
        "vectors to start from: 'uniform' in (-0.5, 0.5) before the embedding's scale, 'vocab' for the embeddings of "
        "tokens sampled from the training texts, 'text' for those of --init-text, 'labels' for those of the choices; "
        "what text or labels do not fill is sampled as in 'vocab' and comes first",
    )
    init_text: str = _setting(
        "\nTopic:", "text for --init text, best what would stand before the answer; \\n is a line break"
    )

    loss: Literal["choices", "target"] = _setting(
        "choices",
        "'choices': cross-entropy over the log-likelihoods of a document's choices, what the harness decides by; "
        "'target': cross-entropy of the right answer's tokens over the vocabulary",
    )
    shots: int | None = _setting(None, "training documents per class, drawn with the seed; default: all documents")
    validation_shots: int | None = _setting(None, "validation documents per class; default: all documents")
    max_length: int | None = _setting(None, "tokens of text and prompt; default: what the model can read")
    truncation_side: Literal["left", "right"] = _setting("left", "where a text that is too long is cut")
    add_bos_token: bool | None = _setting(None, "begin texts with the BOS token; default: as the tokenizer does")

    epochs: int = _setting(
        20, "passes over the training documents; the best by validation loss is kept; 0 writes the initial prompt"
    )
    lr: float = _setting(5e-3, "peak learning rate (AdamW), decaying linearly to zero after the warm-up")
    batch_size: int = _setting(16, "documents per step")
    warmup_ratio: float = _setting(0.1, "share of the steps over which the learning rate rises")
    weight_decay: float = _setting(0.0, "AdamW's weight decay")
    clip: float = _setting(1.0, "largest norm of a step's gradient")
    context_cache: Literal["auto", "on", "off"] = _setting(
        "auto", "keep the frozen model's keys and values of the texts (suffix prompts): 'auto' does where they fit"
    )

    seed: int = _setting(0, "of the initial vectors, the choice of documents and their order")
    dtype: str = _setting("float32", "of the frozen model: float32, bfloat16, float16 or auto; vectors stay float32")
    device: str | None = _setting(None, "cpu, cuda, cuda:1, mps; default: the best that is here")

    def __post_init__(self) -> None:
        self.init_text = self.init_text.replace("\\n", "\n")
        for name in ("model", "task", "output"):
            if not getattr(self, name):
                raise UserError(f"--{name} is missing: {_help(name)}")
        _expect_choice("placement", self.placement, PLACEMENTS)
        _expect_choice("init", self.init, ("uniform", "vocab", "text", "labels"))
        _expect_choice("loss", self.loss, ("choices", "target"))
        _expect_choice("truncation-side", self.truncation_side, ("left", "right"))
        _expect_choice("context-cache", self.context_cache, ("auto", "on", "off"))
        _expect_choice("dtype", self.dtype, ("float32", "bfloat16", "float16", "auto"))
        for name in ("prompt_length", "batch_size"):
            _expect(name, getattr(self, name), getattr(self, name) >= 1, "a whole number from 1 on")
        _expect("epochs", self.epochs, self.epochs >= 0, "a whole number from 0 on (0 writes the initial prompt)")
        for name in ("shots", "validation_shots", "max_length"):
            value = getattr(self, name)
            _expect(name, value, value is None or value >= 1, "a whole number from 1 on, or nothing")
        for name in ("lr", "clip"):
            _expect(name, getattr(self, name), 0 < getattr(self, name) < float("inf"), "a number above 0")
        _expect("weight_decay", self.weight_decay, 0 <= self.weight_decay < float("inf"), "a number from 0 on")
        _expect("warmup_ratio", self.warmup_ratio, 0 <= self.warmup_ratio <= 1, "a share between 0 and 1")
        _expect("output", self.output, self.output.endswith(".safetensors"), "a file name that ends in .safetensors")
        _expect("output", self.output, "," not in self.output, "a name without commas (they separate model_args)")

    @property
    def tasks(self) -> list[str]:
        """The names in `task`."""
        return [name.strip() for name in self.task.split(",") if name.strip()]

    def hyperparameters(self) -> dict[str, Any]:
        """Every setting but those that say where things are, for the record in the prompt file."""
        places = {"model", "revision", "task", "output", "include_path", "config", "device"}
        return {name: value for name, value in asdict(self).items() if name not in places}

    @classmethod
    def from_command_line(cls, arguments: Sequence[str] | None = None) -> TrainingConfig:
        """Read settings from flags; a preset, then ``--config file.yaml``, then flags decide, the later the stronger.

        Raises:
            UserError: an unknown setting in the YAML file, or a value that makes no sense.
        """
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        given = _flags_given(arguments)
        from_file = _read_yaml(given["config"]) if given.get("config") else {}
        preset = given.get("preset") or from_file.get("preset")
        if preset is not None:
            _expect_choice("preset", preset, tuple(PRESETS))
        try:
            return cls(**{**PRESETS.get(preset or "", {}), **from_file, **given})
        except TypeError as error:  # a YAML value of a wrong type met a comparison
            raise UserError(f"a value in {given.get('config')} has the wrong type: {error}") from error


def parser() -> HfArgumentParser:
    """Return the command line's parser, made from the dataclass."""
    return HfArgumentParser(
        TrainingConfig,  # type: ignore[arg-type]
        prog="train_prompt.py",
        description="Learn a soft prompt: a few vectors in the input space of a frozen causal language model.",
        epilog="example: train_prompt.py --model mini --task mini_topics_eng_Latn --output prompts/my.safetensors; "
        "several values (--seed 0 1 2 --lr 1e-3 5e-3) train a prompt for each combination",
    )


def _flags_given(arguments: Sequence[str]) -> dict[str, Any]:
    """Return only the settings that stand on the command line."""
    complete = parser().parse_args(list(arguments))
    silent = parser()
    for action in silent._actions:
        action.default = argparse.SUPPRESS
    names = set(vars(silent.parse_args(list(arguments))))
    return {name: value for name, value in vars(complete).items() if name in names}


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path} can not be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(settings, dict):
        raise UserError(f"--config {path} must hold 'setting: value' lines")
    settings = {str(name).replace("-", "_"): value for name, value in settings.items()}
    known = {setting.name for setting in fields(TrainingConfig)} - {"config"}
    if unknown := sorted(set(settings) - known):
        raise UserError(
            f"--config {path} has unknown settings: {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    # YAML 1.1 reads "5e-3" as a string; the dataclass says what is a number.
    for name, kind in get_type_hints(TrainingConfig).items():
        if isinstance(settings.get(name), str) and kind in (float, int):
            try:
                settings[name] = kind(settings[name])
            except ValueError as error:
                raise UserError(f"--config {path}: {name} is {settings[name]!r}, expected a number") from error
    return settings


def _help(name: str) -> str:
    return str(next(setting.metadata["help"] for setting in fields(TrainingConfig) if setting.name == name))


def _expect(name: str, value: Any, holds: bool, expected: str) -> None:
    if not holds:
        raise UserError(f"--{name.replace('_', '-')} is {value!r}: expected {expected}")


def _expect_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    _expect(name, value, value in choices, f"one of {', '.join(choices)}")
