"""The settings of a training run: one dataclass is the command line, the YAML file and the record in the prompt."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lm_eval_spt.common.errors import UserError, shown
from lm_eval_spt.common.files import is_text, read_yaml_mapping
from lm_eval_spt.harness.options import ContextOptions
from lm_eval_spt.prompt.metadata import Placement, PromptKind

INITIALIZATIONS = ("uniform", "vocab", "text", "labels")
Mixture = Literal["proportional", "balanced"]
Tune = Literal["prompt", "all", "model", "lora"]
ReparameterizationKind = Literal["none", "mlp", "residual", "xpe", "dual"]
Dtype = Literal["float32", "bfloat16", "float16", "auto"]

MODEL_LR = {"all": 1e-5, "model": 1e-5, "lora": 5e-4}
"""Default learning rates of what is tuned beside the prompt."""

OF_A_DEEP_PREFIX = {"placement": "prefix", "lr": 2e-2}
"""Settings that have another default with ``--prompt-kind kv``."""

SOURCES = ("model", "revision", "gguf_file", "task")
"""Settings that a prompt file records by themselves."""
PLACES = (
    "output", "include_path", "data", "config", "device", "device_map", "context_cache", "checkpoint",
    "checkpoint_steps", "resume", "tracker", "gradient_accumulation_steps", "activation_checkpointing",
    "trust_remote_code",
)  # fmt: skip
"""Settings that say where and how the work is done, and change nothing in what is learned."""

FILES = ("train_file", "validation_file")
"""Settings that name a file with documents: what decides is its content."""

DEFAULT_TEMPLATE = "default"
"""Names the chat template that a tokenizer has, or uses unless another one is named."""

MAX_YAML = 2**16
"""Bytes of a file with settings."""

WORDS = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping", NoneType: "null",
}  # fmt: skip

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


@dataclass(frozen=True)
class DocumentOptions:
    """Which documents of a task are learned from and validate; the attributes are settings of the same names."""

    train_split: str | None = None
    validation_split: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    columns: str | None = None
    allow_test_documents: bool = False


def _setting(default: Any, text: str, **argument: Any) -> Any:
    """Return a field; `argument` holds further arguments of ``add_argument`` for its flag."""
    return field(default=default, metadata={"help": text, **argument})


@dataclass
class TrainingConfig:
    """Every setting of a training run; the help texts say what each means."""

    model: str = _setting("", "base model: a Hub id, a folder, a .gguf file, or 'mini', which ships with the package")
    task: str = _setting(
        "",
        "tasks, groups and tags of the harness to learn from, comma separated, such as sib200_eng_Latn,sib200_arb_Arab",
    )
    output: str = _setting("", "prompt file to write, such as prompts/my.safetensors")

    revision: str | None = _setting(None, "revision of the base model on the Hub")
    gguf_file: str | None = _setting(None, "name of a GGUF file in the folder or Hub repository --model")
    include_path: str | None = _setting(None, "folder with further task YAML files, as in lm_eval")
    data: str | None = _setting(
        None,
        "local copies of data sets, comma separated, such as nollysenti=FOLDER: a data set is named as in the task's "
        "dataset_path, or by the last part of that",
    )
    preset: str | None = _setting(None, f"a named set of settings, which other flags override: {', '.join(PRESETS)}")
    config: str | None = _setting(None, "YAML file with settings, which flags override")

    tune: Tune = _setting(
        "prompt",
        "what is learned: 'prompt', the model being frozen; 'all': prompt and model; 'model': the model without a "
        "prompt; 'lora': a LoRA adapter (PEFT) and the prompt, or without one where --prompt-length is 0. A model or "
        "adapter is saved in a folder that is named as the prompt file without its ending",
    )
    prompt_kind: PromptKind = _setting(
        "embeddings",
        "'embeddings': vectors among those of the text; 'kv', a deep prefix: keys and values of every layer before the "
        "text (prefix tuning)",
    )
    prompt_length: int = _setting(16, "number of virtual tokens")
    placement: Placement = _setting(
        "suffix", "the prompt comes before or after the text, or on both sides; prefix with --prompt-kind kv"
    )
    num_prefix_tokens: int | None = _setting(
        None, "how many of the virtual tokens come before the text with --placement both; default: half of them"
    )
    num_frozen_tokens: int = _setting(
        0,
        "so many of the first virtual tokens stay as they are; 1 keeps what attention falls back on, if that is there",
    )
    init: str = _setting(
        "text",
        "vectors to start from: 'uniform' in (-0.5, 0.5) before the embedding's scale, 'vocab' for the embeddings of "
        "tokens sampled from the training texts, 'text' for those of --init-text, 'labels' for those of the choices; "
        "what text or labels do not fill is sampled as in 'vocab' and comes first. Or a trained prompt: FILE, a PEFT "
        "folder or a Hub repository, repeated or cut at its beginning where its length is another. With --prompt-kind "
        "kv what the model makes of these vectors; 'uniform' draws keys and values themselves",
    )
    init_text: str = _setting(
        "\nTopic:", "text for --init text, best what would stand before the answer; \\n is a line break"
    )

    reparameterization: ReparameterizationKind = _setting(
        "none",
        "what makes the vectors while they are learned, and is folded into them afterwards: 'none', 'mlp' (the "
        "paper's), 'residual' (mlp(x) + x), 'xpe' (the Cross-Prompt Encoder), 'dual' (a share of the vectors from it)",
    )
    reparameterization_hidden_size: int | None = _setting(
        None, "hidden size of that network; default: 200 (mlp, residual) or 256 (xpe, dual)"
    )
    reparameterization_lr: float | None = _setting(None, "peak learning rate of that network; default: --lr")
    dual_share: float = _setting(0.3, "share of the vectors that the encoder makes with --reparameterization dual")

    loss: Literal["choices", "target"] = _setting(
        "choices",
        "'choices': cross-entropy over the log-likelihoods of a document's choices, what the harness decides by; "
        "'target': cross-entropy of the right answer's tokens over the vocabulary",
    )
    label_smoothing: float = _setting(
        0.0, "share of the target that is spread evenly: over the choices, or over the vocabulary with --loss target"
    )
    train_split: str | None = _setting(
        None,
        "split of the task's data to learn from, or a slice of it such as 'train[:100]' or 'train[:80%]'; default: "
        "what the task says",
    )
    validation_split: str | None = _setting(None, "split to validate with, in the same way")
    train_file: str | None = _setting(
        None, "documents to learn from: a .csv, .tsv, .jsonl or .parquet file with the columns of the task's data"
    )
    validation_file: str | None = _setting(None, "documents to validate with, in the same way")
    columns: str | None = _setting(
        None,
        "columns of files (and of local copies, --data) that are called otherwise in the task, comma separated: "
        "text=review,label=sentiment takes the column review for the task's text. The file's may be a pattern",
    )
    allow_test_documents: bool = _setting(
        False, "also learn from, or validate with, documents that the harness scores; the prompt's record says so"
    )
    shots: int | None = _setting(None, "training documents per class, drawn with the seed; default: all documents")
    shots_seed: int | None = _setting(
        None, "draw documents with this seed, so that runs with other seeds learn from the same; default: --seed"
    )
    validation_shots: int | None = _setting(None, "validation documents per class; default: all documents")
    mixture: Mixture = _setting(
        "proportional",
        "several tasks: 'proportional' shows every document once an epoch; 'balanced' shows equally many of each task, "
        "as many in all",
    )
    num_fewshot: int | None = _setting(
        None, "shots in every context, drawn as the harness draws them; default: what the task says"
    )
    apply_chat_template: str | None = _setting(
        None,
        "make a chat of every context, as in lm_eval: with the tokenizer's chat template, 'default', or the one of "
        "this name",
        nargs="?",
        const=DEFAULT_TEMPLATE,
    )
    system_instruction: str | None = _setting(None, "text before every context, in a chat the system's")
    fewshot_as_multiturn: bool | None = _setting(
        None, "make each shot a turn of the chat; default: yes with --apply-chat-template"
    )
    max_length: int | None = _setting(None, "tokens of text and prompt; default: what the model can read")
    truncation_side: Literal["left", "right"] = _setting("left", "where a text that is too long is cut")
    add_bos_token: bool | None = _setting(None, "begin texts with the BOS token; default: as the tokenizer does")

    epochs: int = _setting(
        20, "passes over the training documents; the best by validation loss is kept; 0 writes the initial prompt"
    )
    average_checkpoints: int | None = _setting(
        None,
        "also try the mean of the last so many epochs' vectors, and keep what has the lowest validation loss; with "
        "--tune prompt",
    )
    keep: Literal["best", "average"] = _setting(
        "best", "'average' keeps that mean whatever its validation loss; 'best' what has the lowest"
    )
    patience: int | None = _setting(
        None, "stop after so many epochs in a row without a lower validation loss; default: never"
    )
    lr: float = _setting(
        5e-3,
        "peak learning rate (AdamW), decaying linearly to zero after the warm-up; with --prompt-kind kv the default is "
        "2e-2",
    )
    model_lr: float | None = _setting(
        None, "that of the model or adapter, where one is tuned; default: 1e-5 (all, model) or 5e-4 (lora)"
    )
    lora_rank: int = _setting(8, "rank of the adapter's matrices")
    lora_alpha: int = _setting(16, "the adapter's output is multiplied by alpha / rank")
    lora_target_modules: str | None = _setting(
        None, "modules that are adapted, comma separated; default: PEFT's choice for the architecture"
    )
    batch_size: int = _setting(16, "documents per step")
    warmup_ratio: float = _setting(0.1, "share of the steps over which the learning rate rises")
    weight_decay: float = _setting(0.0, "AdamW's weight decay")
    clip: float = _setting(1.0, "largest norm of a step's gradient")
    gradient_accumulation_steps: int = _setting(1, "parts in which a step's documents are read, to save memory")
    activation_checkpointing: bool = _setting(
        False, "compute activations again in the backward pass instead of keeping them: less memory, more time"
    )
    context_cache: Literal["auto", "device", "host", "disk", "off"] = _setting(
        "auto",
        "where to keep the frozen model's keys and values of the texts (suffix prompts): on the model's device, in "
        "host memory, in a temporary file, or nowhere; 'auto' takes the first that has room; one that has not enough "
        "hands on to the next",
    )
    checkpoint: bool = _setting(True, "write the state of the run beside the prompt after every epoch, for --resume")
    checkpoint_steps: int | None = _setting(None, "also write it after so many steps of an epoch")
    resume: bool = _setting(False, "go on from the checkpoint of an interrupted run, if there is one")
    tracker: str | None = _setting(
        None, "also report to an experiment tracker that accelerate knows and that is installed, such as tensorboard"
    )

    seed: int = _setting(0, "of the initial vectors, the choice of documents and their order")
    dtype: Dtype = _setting(
        "auto",
        "of the model; auto: bfloat16 where the checkpoint is stored so and the device is not slower with it, else "
        "float32; vectors, and what AdamW moves of a tuned model, are float32 all the same",
    )
    quantization: Literal["none", "4bit", "8bit"] = _setting(
        "none", "load the frozen model's weights quantised by bitsandbytes (4 bits: NF4); score with load_in_4bit=True"
    )
    device: str | None = _setting(None, "cpu, cuda, cuda:1, mps; default: the best that is here")
    trust_remote_code: bool = _setting(False, "run the code that a base model brings along")
    device_map: str | None = _setting(None, "spread a large base model over devices, such as auto or balanced")

    def __post_init__(self) -> None:
        self.init_text = self.init_text.replace("\\n", "\n")
        for name in ("model", "task", "output"):
            if not getattr(self, name):
                raise UserError(f"--{name} is missing: {help_text(name)}")
        for name, kind in get_type_hints(TrainingConfig).items():
            if get_origin(kind) is Literal:
                _expect_choice(name, getattr(self, name), get_args(kind))
        for name in ("batch_size", "lora_rank", "lora_alpha", "gradient_accumulation_steps"):
            _expect(name, getattr(self, name), getattr(self, name) >= 1, "a whole number from 1 on")
        if not (self.tune in ("model", "lora") and self.prompt_length == 0):
            expected = "a whole number from 1 on (0, no prompt, goes with --tune model or lora)"
            _expect("prompt_length", self.prompt_length, self.prompt_length >= 1, expected)
        _expect("epochs", self.epochs, self.epochs >= 0, "a whole number from 0 on (0 writes the initial prompt)")
        optional_counts = ("shots", "validation_shots", "max_length", "patience", "reparameterization_hidden_size")
        for name in (*optional_counts, "checkpoint_steps", "average_checkpoints"):
            value = getattr(self, name)
            _expect(name, value, value is None or value >= 1, "a whole number from 1 on, or nothing")
        frozen = self.num_frozen_tokens
        expected = "a number from 0 to below --prompt-length"
        _expect("num_frozen_tokens", frozen, frozen == 0 or 0 < frozen < self.prompt_length, expected)
        for name in ("seed", "shots_seed"):
            value = getattr(self, name)
            _expect(name, value, value is None or -(2**63) <= value < 2**63, "a whole number of 64 bits")
        for name in ("lr", "clip", "reparameterization_lr", "model_lr"):
            value = getattr(self, name)
            optional = name not in ("lr", "clip")
            _expect(name, value, (optional and value is None) or 0 < value < float("inf"), "a number above 0")
        _expect("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "a share from 0 to below 1")
        _expect("dual_share", self.dual_share, 0 < self.dual_share < 1, "a share between 0 and 1")
        _expect("weight_decay", self.weight_decay, 0 <= self.weight_decay < float("inf"), "a number from 0 on")
        _expect("warmup_ratio", self.warmup_ratio, 0 <= self.warmup_ratio <= 1, "a share between 0 and 1")
        _expect("output", self.output, self.output.endswith(".safetensors"), "a file name that ends in .safetensors")
        _expect("output", self.output, "," not in self.output, "a name without commas (they separate model_args)")
        self._expect_no_contradictions()
        _ = self.contexts  # which has checks of its own
        self._digests = {name: _file_digest(name, path) for name in FILES if (path := getattr(self, name)) is not None}

    def _expect_no_contradictions(self) -> None:
        """Raise UserError where one setting makes another pointless, and fill in what follows from others."""
        if self.tune == "model":
            self.prompt_length = 0
        if self.model_lr is None:
            self.model_lr = MODEL_LR.get(self.tune)
        if self.prompt_length == 0:
            without = f"--tune {self.tune}" + (" --prompt-length 0" if self.tune == "lora" else "")
            for name in ("prompt_kind", "reparameterization", "init_text", "num_prefix_tokens"):
                _expect(name, getattr(self, name), self._is_default(name), f"nothing: {without} has no prompt")
            _expect("init", self.init, self.init in INITIALIZATIONS, f"no file: {without} has no prompt")
        for purpose in ("train", "validation"):
            file, split = getattr(self, f"{purpose}_file"), getattr(self, f"{purpose}_split")
            _expect(f"{purpose}_split", split, None in (file, split), f"it or --{purpose}-file, not both")
        any_file = bool(self.data or self.train_file or self.validation_file)
        _expect("columns", self.columns, any_file or not self.columns, "it together with a file or with --data")
        if self.tune == "prompt":
            _expect("model_lr", self.model_lr, self.model_lr is None, "nothing: --tune prompt leaves the model frozen")
        else:
            expected = "'auto' or 'off': what a tuned model makes of a text changes with every step"
            _expect("context_cache", self.context_cache, self.context_cache in ("auto", "off"), expected)
        if self.tune in ("all", "model"):
            expected = f"none: quantised weights are not tuned, which --tune {self.tune} does"
            _expect("quantization", self.quantization, self.quantization == "none", expected)
            expected = "auto, float32 or bfloat16 (with master weights in float32): gradients vanish in float16"
            _expect("dtype", self.dtype, self.dtype != "float16", expected)
        if self.tune != "lora":
            for name in ("lora_rank", "lora_alpha", "lora_target_modules"):
                _expect(name, getattr(self, name), self._is_default(name), "it together with --tune lora")
        if self.reparameterization == "none":
            for name in ("reparameterization_hidden_size", "reparameterization_lr"):
                _expect(name, getattr(self, name), self._is_default(name), "it together with --reparameterization")
        if self.reparameterization != "dual":
            _expect("dual_share", self.dual_share, self._is_default("dual_share"), "it with --reparameterization dual")
        else:
            expected = "2 or more: a dual prompt has a vector from the encoder and a free one at least"
            _expect("prompt_length", self.prompt_length, self.prompt_length >= 2, expected)
        if self.average_checkpoints is not None:
            expected = "nothing: copies of a tuned model are not kept; use --tune prompt"
            _expect("average_checkpoints", self.average_checkpoints, self.tune == "prompt", expected)
        elif self.keep == "average":
            _expect("keep", self.keep, False, "it together with --average-checkpoints")
        if self.num_frozen_tokens:
            expected = "none: a network makes all vectors, and --num-frozen-tokens keeps some"
            _expect("reparameterization", self.reparameterization, self.reparameterization == "none", expected)
        if self.prompt_kind == "kv":
            _expect("placement", self.placement, self.placement == "prefix", "prefix: a deep prefix is before the text")
            expected = "no: a deep prefix is a cache, which computing activations again would extend twice"
            _expect(
                "activation_checkpointing", self.activation_checkpointing, not self.activation_checkpointing, expected
            )
        before = self.num_prefix_tokens
        if self.placement != "both":
            _expect("num_prefix_tokens", before, before is None, "it together with --placement both")
        elif self.prompt_length:
            expected = "2 or more: --placement both needs a vector on either side"
            _expect("prompt_length", self.prompt_length, self.prompt_length >= 2, expected)
            expected = f"a number from 1 to {self.prompt_length - 1}, so that vectors stand on both sides"
            _expect("num_prefix_tokens", before, before is None or 0 < before < self.prompt_length, expected)

    def _is_default(self, name: str) -> bool:
        return bool(getattr(self, name) == next(setting.default for setting in fields(self) if setting.name == name))

    @property
    def contexts(self) -> ContextOptions:
        """What stands in a context beside the document."""
        template = self.apply_chat_template
        return ContextOptions(
            num_fewshot=self.num_fewshot,
            apply_chat_template=True if template == DEFAULT_TEMPLATE else template or False,
            system_instruction=self.system_instruction,
            fewshot_as_multiturn=self.fewshot_as_multiturn,
        )

    @property
    def documents(self) -> DocumentOptions:
        """Which of the tasks' documents are read."""
        return DocumentOptions(**{option.name: getattr(self, option.name) for option in fields(DocumentOptions)})

    @property
    def reading(self) -> Hashable:
        """What decides which documents are read, and as what: runs in which it is equal share them."""
        files = tuple(self._digests.values())
        return (self.task, self.include_path, self.data, self.documents, files, self.contexts)

    @property
    def documents_seed(self) -> int:
        """The seed that documents are drawn with."""
        return self.seed if self.shots_seed is None else self.shots_seed

    @property
    def vectors_before(self) -> int:
        """How many virtual tokens stand among the embeddings before the text; none of a deep prefix."""
        if self.placement == "both":
            return self.num_prefix_tokens or self.prompt_length // 2
        return self.prompt_length if self.placement == "prefix" and self.prompt_kind == "embeddings" else 0

    @property
    def vectors_after(self) -> int:
        """How many stand after the text."""
        return 0 if self.placement == "prefix" else self.prompt_length - self.vectors_before

    @property
    def model_folder(self) -> Path | None:
        """Where the tuned model or the adapter goes; None where the model stays frozen."""
        return None if self.tune == "prompt" else Path(self.output).with_suffix("")

    @property
    def tasks(self) -> list[str]:
        """The names in `task`."""
        return [name.strip() for name in self.task.split(",") if name.strip()]

    def record(self) -> dict[str, Any]:
        """Return every setting, for the log."""
        return asdict(self)

    def apart_from_output(self) -> str:
        """Return all settings but the output, as text: equal where two runs would be the same one."""
        return json.dumps(self.record() | {"output": ""}, sort_keys=True)

    def hyperparameters(self) -> dict[str, Any]:
        """Return the settings that decide what is learned, for the record in the prompt file."""
        return {name: value for name, value in self.identity().items() if name not in SOURCES}

    def identity(self) -> dict[str, Any]:
        """Return what two runs must have in common for one to go on where the other stopped: of files the content."""
        return {name: value for name, value in (asdict(self) | self._digests).items() if name not in PLACES}

    @classmethod
    def from_settings(cls, given: Mapping[str, Any]) -> TrainingConfig:
        """Return the settings that some of them ask for: a preset, then the file `config`, then `given`.

        The later outweighs the earlier; what none of them says is the default.

        Args:
            given: settings by name; ``preset`` and ``config`` may be among them.

        Raises:
            UserError: an unknown preset, an unknown setting in the file, or a value that makes no sense.
        """
        from_file = _read_settings(given["config"]) if given.get("config") else {}
        preset = given.get("preset") or from_file.get("preset")
        if preset is not None:
            _expect_choice("preset", preset, tuple(PRESETS))
        settings = {**PRESETS.get(preset or "", {}), **from_file, **given}
        if settings.get("prompt_kind") == "kv":
            settings = OF_A_DEEP_PREFIX | settings
        try:
            return cls(**settings)
        except TypeError as error:  # a YAML value of a wrong type met a comparison
            raise UserError(f"a value in {given.get('config')} has the wrong type: {error}") from error


def _read_settings(path: str) -> dict[str, Any]:
    """Return the settings in a YAML file, each as what its annotation says."""
    try:
        content = read_yaml_mapping(Path(path), MAX_YAML, "'setting: value' lines")
    except UserError as error:
        raise UserError(f"--config {error}") from None
    if not all(isinstance(name, str) for name in content):
        raise UserError(f"--config {path} has settings whose names are no text")
    settings = {name.replace("-", "_"): value for name, value in content.items()}
    kinds = {name: kind for name, kind in get_type_hints(TrainingConfig).items() if name != "config"}
    if unknown := sorted(set(settings) - set(kinds)):
        raise UserError(
            f"--config {path} has unknown settings: {', '.join(unknown)}; known are {', '.join(sorted(kinds))}"
        )
    return {name: as_kind(value, kinds[name], f"--config {path}: {name}") for name, value in settings.items()}


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words in which settings a record differs; a setting that is newer than the record had its default."""
    defaults = {field.name: field.default for field in fields(TrainingConfig)}
    differing = [
        f"{name} {recorded.get(name, defaults.get(name))!r} there, {value!r} now"
        for name, value in now.items()
        if recorded.get(name, defaults.get(name)) != value
    ]
    return "; ".join(differing)


def as_kind(value: Any, kind: Any, where: str) -> Any:
    """Return a YAML value as what a setting is; its range is for the dataclass to check.

    YAML 1.1 reads "5e-3" as a string, and takes yes, no, on and off for truth values, which ``--context-cache`` has.

    Args:
        value: what the YAML file holds.
        kind: the setting's annotation.
        where: file and name, for the message.

    Raises:
        UserError: it can not be that.
    """
    kinds = (kind,) if get_origin(kind) is Literal else get_args(kind) or (kind,)
    allowed = [str if get_origin(member) is Literal else member for member in kinds]
    words = [word for member in kinds if get_origin(member) is Literal for word in get_args(member)]
    if isinstance(value, bool) and (word := "on" if value else "off") in words:
        return word
    if value is None and type(None) in allowed:
        return None
    number = next((number for number in (int, float) if number in allowed), None)
    if number and isinstance(value, str | int | float) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            converted: float = number(value)
            same = isinstance(value, str) or converted == value  # 1.5 is no whole number
            if same and (math.isfinite(converted) if number is float else -(2**63) <= converted < 2**63):
                return converted
    if type(value) in allowed and (isinstance(value, bool | dict) or is_text(value)):
        return value
    expected = " or ".join(WORDS[member] for member in dict.fromkeys(allowed))
    raise UserError(f"{where} is {shown(value)}, expected {expected}")


def _file_digest(name: str, path: str) -> str:
    """Return the name of a file with documents, and its digest."""
    try:
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"--{name.replace('_', '-')} {path} can not be read: {error.strerror or error}") from error
    return f"{Path(path).name} sha256:{digest}"


def help_text(name: str) -> str:
    """Return what a setting's help says."""
    return str(next(setting.metadata["help"] for setting in fields(TrainingConfig) if setting.name == name))


def _expect(name: str, value: Any, holds: bool, expected: str) -> None:
    if not holds:
        raise UserError(f"--{name.replace('_', '-')} is {shown(value)}: expected {expected}")


def _expect_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    _expect(name, value, value in choices, f"one of {', '.join(choices)}")
