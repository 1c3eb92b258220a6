"""The cost of a sweep in floating-point operations, time and disk space, estimated before anything is trained.

To read a token costs two operations for each parameter of the model's body (all but embeddings and vocabulary head).
Its gradient costs as much again; if the model is tuned, the weights' gradients cost the same a third time. The
vocabulary head costs the same for each scored position. The products of attention itself are under a tenth at these
lengths and are left out.

If a text precedes the prompt and the model is frozen, the text's hidden states are the same in every step of every run.
`Sharing` says how often such a text is read:

``none``   in every step, and for every prompt that is scored: tools without shared contexts do so
``run``    once in a training run, and once for every prompt that is scored
``shard``  once for all runs of a shard
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, Literal

import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerBase

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.paths import MINI
from lm_eval_spt.harness import patches
from lm_eval_spt.harness.contexts import ChatTemplate, as_scored, build_requests
from lm_eval_spt.harness.options import BY_TASK, ContextOptions
from lm_eval_spt.harness.patches import task_manager
from lm_eval_spt.inference.base_model import cannot_load, ensure_available
from lm_eval_spt.inference.gguf import find_gguf
from lm_eval_spt.inference.products import product
from lm_eval_spt.sweep.plan import Plan, SweepRun
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.examples import load_tasks
from lm_eval_spt.train.splits import Rows, training_rows, validation_rows

Split = Literal["training", "validation", "test"]
Sharing = Literal["none", "run", "shard"]
SHARING: tuple[Sharing, ...] = ("shard", "run", "none")
"""All ways of sharing, the cheapest first."""

UTILISATION = 0.4
"""The share of the speed of large matrix products that training and scoring reach; see benchmarks/RESULTS.md."""

PUBLISHED: dict[str, tuple[str, dict[str, int]]] = {
    "facebook/xglm-564M": (
        "xglm",
        {"vocab_size": 256008, "d_model": 1024, "ffn_dim": 4096, "num_layers": 24, "attention_heads": 16},
    ),
    "facebook/xglm-1.7B": (
        "xglm",
        {"vocab_size": 256008, "d_model": 2048, "ffn_dim": 8192, "num_layers": 24, "attention_heads": 16},
    ),
    "bigscience/bloom-560m": ("bloom", {"vocab_size": 250880, "hidden_size": 1024, "n_layer": 24, "n_head": 16}),
    "bigscience/bloom-1b1": ("bloom", {"vocab_size": 250880, "hidden_size": 1536, "n_layer": 24, "n_head": 16}),
}
"""The shapes of the paper's models, so that their sweeps can be planned without access to them."""

SAMPLED_DOCUMENTS = 32
"""The number of documents of each task that are measured."""


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters in the body, in the vocabulary head and in total; the width of the embeddings."""

    body: int
    head: int
    total: int
    hidden: int


@dataclass(frozen=True)
class Texts:
    """The amount of text in a set of documents.

    Attributes:
        documents: the number of documents.
        tokens: the mean number of tokens in a document's context.
        answer_tokens: the mean number of tokens in all choices of a document, without the first token of each.
        choices: the number of choices of a document.
    """

    documents: int
    tokens: float
    answer_tokens: float
    choices: int


ASSUMED = {
    "training": Texts(701, 103.0, 0.0, 7),
    "validation": Texts(99, 103.0, 0.0, 7),
    "test": Texts(204, 103.0, 0.0, 7),
}
"""Stand-ins for documents that are not available: SIB-200, in tokens of the embedded model, mean of 205 languages."""


@cache
def model_size(name: str, revision: str | None = None, trust_remote_code: bool = False) -> ModelSize:
    """Return the size of a base model, from its configuration alone.

    Raises:
        UserError: there is no such model, or it can not be reached.
    """
    if name in PUBLISHED:
        family, shape = PUBLISHED[name]
        config = AutoConfig.for_model(family, **shape)
    else:
        try:
            options = {"revision": revision, "trust_remote_code": trust_remote_code}
            config = AutoConfig.from_pretrained(ensure_available(name, revision), **options)
        except (OSError, ValueError) as error:
            raise error if isinstance(error, UserError) else cannot_load(name, error) from error
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model = kind.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError as error:
        raise cannot_load(name, error) from error
    inputs = model.get_input_embeddings()
    embedding, head = inputs.weight, (model.get_output_embeddings() or inputs).weight
    outside = {id(embedding): embedding.numel(), id(head): head.numel()}
    total = sum(weight.numel() for weight in model.parameters())
    return ModelSize(total - sum(outside.values()), head.numel(), total, embedding.shape[1])


def _place(config: TrainingConfig) -> str:
    """Return the name of a run's base model; of one in a GGUF file the folder that it is unpacked into."""
    gguf = find_gguf(config.model, config.gguf_file, config.revision)
    return config.model if gguf is None else str(gguf.unpacked(config.dtype))


class TextSizes:
    """Measures the documents of tasks.

    Args:
        include_path: folder with further tasks.
        limit: how many documents of each target task are scored, or their share, as in lm_eval.
        scoring: what stands in the contexts that are scored.

    Attributes:
        assumptions: what was assumed about models and documents that are not available, a line for each.
    """

    def __init__(
        self, include_path: str | None = None, limit: float | None = None, scoring: ContextOptions = BY_TASK
    ) -> None:
        self._include_path, self._limit, self._scoring = include_path, limit, scoring
        self._measured: dict[Hashable, Texts] = {}
        self.assumptions: list[str] = []

    def training(self, config: TrainingConfig) -> tuple[Texts, Texts]:
        """Return the sizes of a run's training and validation documents."""
        tasks = tuple(config.tasks)
        training, validation = self._texts(tasks, "training", config), self._texts(tasks, "validation", config)
        return _few_shot(training, config.shots), _few_shot(validation, config.validation_shots)

    def test(self, config: TrainingConfig, targets: Sequence[str]) -> Texts:
        """Return the size of the documents that a run is scored on."""
        return self._texts(tuple(targets), "test", config)

    def _texts(self, tasks: tuple[str, ...], split: Split, config: TrainingConfig) -> Texts:
        tokenizer = self._tokenizer(config)
        options = self._scoring if split == "test" else config.contexts
        key = (tasks, split, id(tokenizer), config.data if split == "test" else config.reading)
        if key not in self._measured:
            names = single_tasks(tasks, self._include_path)
            try:
                loaded = load_tasks(names, self._include_path, config.data, config.columns)
                each = [_look(task, split, tokenizer, options, config) for task in loaded]
            except (UserError, OSError):
                tokens = round(ASSUMED[split].tokens)
                self._assume(f"{', '.join(tasks)}: texts of {tokens} tokens, as in SIB-200, for they are not here")
                each = [ASSUMED[split]] * len(names)
            documents = [text.documents for text in each]
            if split == "test" and (limit := self._limit) is not None:
                limits = [int(limit) if limit >= 1 else math.ceil(limit * number) for number in documents]
                documents = [min(pair) for pair in zip(documents, limits, strict=True)]
            self._measured[key] = Texts(
                sum(documents),
                sum(text.tokens for text in each) / len(each),
                sum(text.answer_tokens for text in each) / len(each),
                max(text.choices for text in each),
            )
        return self._measured[key]

    def _tokenizer(self, config: TrainingConfig) -> PreTrainedTokenizerBase:
        try:
            return _tokenizer(_place(config), config.revision, config.trust_remote_code)
        except (UserError, OSError, ValueError):
            self._assume(f"the embedded model's tokens stand for those of {config.model}, which can not be reached")
            return _tokenizer(MINI, None, False)

    def _assume(self, text: str) -> None:
        if text not in self.assumptions:
            self.assumptions.append(text)


@cache
def _tokenizer(model: str, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    path = ensure_available(model, revision)
    return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)


@cache
def single_tasks(names: tuple[str, ...], include_path: str | None) -> list[str]:
    """Return the tasks of these names and in the groups of these names, without reading their documents.

    Raises:
        UserError: there is no such task, or one comes twice.
    """
    return patches.single_tasks(task_manager(names, include_path), names)


def _look(
    task: ConfigurableTask,
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    options: ContextOptions,
    config: TrainingConfig,
) -> Texts:
    """Measure a task's documents by the first of them."""
    read: Rows | None = None
    if split != "test":
        read = training_rows(task, config.documents)
    if split == "validation" and read is not None:
        read = validation_rows(task, config.documents, read)
    rows: Sequence[Any] = read.documents if read else list(task.eval_docs) if split == "test" else []
    ready = as_scored(task, options, read.splits if read else None)
    tokens = answer_tokens = 0
    choices = 1
    for row in rows[:SAMPLED_DOCUMENTS]:
        requests = build_requests(ready, row, options, _chat_template(tokenizer))
        tokens += len(tokenizer(requests[0].args[0], verbose=False)["input_ids"])
        answers = [request.args[1] for request in requests if isinstance(request.args[1], str)]
        ids = tokenizer(answers, add_special_tokens=False)["input_ids"] if answers else []
        answer_tokens += sum(len(answer) - 1 for answer in ids)
        choices = max(choices, len(answers))
    sampled = max(1, min(len(rows), SAMPLED_DOCUMENTS))
    return Texts(len(rows), tokens / sampled, answer_tokens / sampled, choices)


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """Return what makes a text of a chat, as the model class does, from the tokenizer alone."""
    return partial(HFLM.apply_chat_template, SimpleNamespace(tokenizer=tokenizer, chat_template_args={}))


def _few_shot(texts: Texts, shots: int | None) -> Texts:
    if shots is None:
        return texts
    return Texts(min(texts.documents, shots * texts.choices), texts.tokens, texts.answer_tokens, texts.choices)


def run_work(run: SweepRun, sizes: TextSizes, read: set[Hashable] | None) -> float:
    """Return the floating-point operations of training and scoring one run.

    Args:
        run: the run.
        sizes: measures its documents.
        read: keys of texts that were read and are kept; those of this run are added. None: nothing is kept.
    """
    config = run.config
    model = model_size(_place(config), config.revision, config.trust_remote_code)
    keeps = read is not None and run.frozen and config.placement == "suffix" and config.context_cache != "off"
    known = read if read is not None else set()

    def passes(texts: Texts, prompt: int, with_text: bool, answers: float) -> float:
        tokens = prompt + answers + (texts.tokens if with_text else 0)
        return texts.documents * (model.body * tokens + model.head * (1 + answers))

    def reading(texts: Texts, key: Hashable) -> float:
        if key in known:
            return 0
        known.add(key)
        return 2 * texts.documents * model.body * texts.tokens

    if run.combination == "ensemble":
        return 0  # its members' answers are there
    length = config.vectors_before + config.vectors_after  # a deep prefix is not read
    test = sizes.test(config, run.targets)
    if not run.prompted:
        return 2 * passes(test, 0, True, test.answer_tokens)
    work = 2 * passes(test, length, not keeps, test.answer_tokens)
    work += reading(test, (run.base, run.targets, config.data)) if keeps else 0
    if run.combination == "average":
        return work

    training, validation = sizes.training(config)
    drawn = config.documents_seed if config.shots is not None or config.validation_shots is not None else None
    share = 1.0 if config.loss == "choices" else 1 / training.choices  # "target" reads the right answer alone
    step = passes(training, length, not keeps, share * training.answer_tokens)
    check = passes(validation, length, not keeps, share * validation.answer_tokens)
    work += config.epochs * (4 if run.frozen else 6) * step + (config.epochs + 1) * 2 * check
    if keeps:
        key = (run.base, config.reading, config.shots, config.validation_shots, drawn)
        work += reading(training, ("training", *key)) + reading(validation, ("validation", *key))
    return work


def plan_work(plan: Plan, sizes: TextSizes, sharing: Sharing) -> dict[str, float]:
    """Return the operations of every run by name; a shared text counts for the first run that reads it."""
    work = {}
    for shard in plan.shards:
        read: set[Hashable] = set()
        for run in shard:
            if sharing == "run":
                read = set()
            work[run.name] = run_work(run, sizes, None if sharing == "none" else read)
    return work


def gpu_hours(work: Mapping[str, float], runs: Sequence[SweepRun], throughput: float) -> float:
    """Return the hours that some runs take on one device.

    Args:
        work: floating-point operations by run, see :func:`plan_work`.
        runs: the runs.
        throughput: the device's, in TFLOP/s.
    """
    return sum(work[run.name] for run in runs) / throughput / 3.6e15


def disk_needed(plan: Plan, sizes: TextSizes, runs: Sequence[SweepRun]) -> int:
    """Estimate the bytes that the prompts, logs and results of `runs` take."""
    needed = 0
    for run in runs:
        try:
            model = model_size(_place(run.config), run.config.revision, run.config.trust_remote_code)
        except UserError:
            continue
        if run.prompted:
            needed += 4 * run.config.prompt_length * model.hidden + 300 * run.config.epochs + 10_000
            needed += 4 * model.total if run.config.tune in ("all", "model") else 0
        tasks = len(single_tasks(run.targets, plan.include_path))
        needed += 10_000 + 6_000 * tasks  # a results file of 21 tasks has 4.9 kB for each
        needed += (4_000 if plan.evaluate.get("log_samples") else 100) * sizes.test(run.config, run.targets).documents
    return needed


def disk_free(plan: Plan) -> int:
    """Return the free bytes on the disk that the sweep writes to."""
    existing = next(folder for folder in (plan.output, *plan.output.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(existing).free


def speed_here(dtype: torch.dtype = torch.float32) -> float:
    """Return the floating-point operations per second of matrix products on this machine's best device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 4096 if device == "cuda" else 768
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    product(left, right).sum().item()  # the first product is slower
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < 0.3:
        product(left, right)[0, 0].item()
        done += 2 * size**3
    return done / (time.perf_counter() - started)
