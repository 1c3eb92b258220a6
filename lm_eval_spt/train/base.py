"""The loaded base model of a run, and what all runs that leave it frozen share: cached texts and read documents."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference.base_model import usual_dtype
from lm_eval_spt.inference.capabilities import capabilities
from lm_eval_spt.inference.scoring import tokens_that_fit
from lm_eval_spt.inference.virtual_tokens import place
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.context_cache import ContextCache
from lm_eval_spt.train.examples import ExampleReader, Examples, TaskRows
from lm_eval_spt.train.processes import Processes


@dataclass
class Base:
    """A loaded base model. Left frozen, it serves any number of runs.

    Attributes:
        lm: holds the model and its tokenizer.
        cache: keys and values of the texts that the model has read.
        reader: reads the tasks' documents.
    """

    lm: SPTLM
    cache: ContextCache
    reader: ExampleReader

    @property
    def processes(self) -> Processes:
        """The processes that share the work."""
        return Processes(self.lm.rank, self.lm.world_size)

    def try_out(self, config: TrainingConfig, examples: Examples, vectors: Tensor | None) -> None:
        """Find out what the model can do with a run's texts, gradients of the prompt included.

        Args:
            config: the run's settings.
            examples: the run's.
            vectors: the prompt to start from; None without one.
        """
        if self.lm.backend != "causal":
            return
        pairs = [
            (place(context, config.vectors_before, config.vectors_after), list(answer))
            for context, answer in _pairs(examples)
        ]
        self.lm.try_out(pairs, vectors, gradient=True)

    def context_cache(self, config: TrainingConfig, examples: Examples) -> ContextCache | None:
        """Return the cache with a run's texts in it, or None where it is of no use or they do not fit.

        It is of use for suffix prompts on a frozen causal LM: there a text's keys and values never change.
        """
        if config.placement != "suffix" or config.tune != "prompt" or config.context_cache == "off":
            return None
        if self.lm.backend != "causal":
            return None
        longest = max(len(context) + len(answer) for context, answer in _pairs(examples)) + config.prompt_length
        if not capabilities(self.lm.model).reads_on(longest):
            return None
        texts = [context for context, _ in _pairs(examples)]
        medium = None if config.context_cache == "auto" else config.context_cache
        return self.cache if self.cache.add(texts, medium) else None


def _pairs(examples: Examples) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the (context, continuation) of all documents and choices."""
    return [pair for example in (*examples.training, *examples.validation) for pair in example.pairs]


def load_model(config: TrainingConfig) -> SPTLM:
    """Load the base model of a run.

    Raises:
        UserError: it can not be loaded.
    """
    place: dict[str, Any] = {"pretrained": config.model, "gguf_file": config.gguf_file, "device": config.device}
    return SPTLM(**place, **loading(config))


def loading(config: TrainingConfig) -> dict[str, Any]:
    """Return the arguments with which the model class loads a run's base model: all but where it is and goes to."""
    arguments: dict[str, Any] = {
        "revision": config.revision,
        "dtype": dtype_of(config),
        "add_bos_token": config.add_bos_token,
    }
    if config.device_map:
        arguments |= {"parallelize": True, "device_map": config.device_map}
    if config.quantization != "none":
        arguments[f"load_in_{config.quantization}"] = True
    if config.trust_remote_code:
        arguments["trust_remote_code"] = True
    return {name: value for name, value in arguments.items() if value is not None}


def dtype_of(config: TrainingConfig) -> str:
    """Return what a run's base model is computed in, ``auto`` made one of the others.

    Raises:
        UserError: there is no such model.
    """
    if config.dtype != "auto":
        return config.dtype
    model = config.gguf_file or config.model
    return usual_dtype(model, config.revision, config.device, trust_remote_code=config.trust_remote_code)


def base_of(lm: SPTLM, rows: Mapping[Hashable, list[TaskRows]] | None = None) -> Base:
    """Return a loaded model as a base for runs; `rows` are what some of these read, by `config.reading`."""
    return Base(lm, ContextCache(lm.model, tokens_that_fit(lm.model, lm.device)), ExampleReader(lm, rows))
