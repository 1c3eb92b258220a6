"""The loaded base model of a run, and what all runs that leave it frozen share: cached texts and read documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference.scoring import tokens_that_fit
from lm_eval_spt.inference.transformers_internals import let_gradients_through
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.context_cache import ContextCache
from lm_eval_spt.train.examples import ExampleReader, Examples
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

    def context_cache(self, config: TrainingConfig, examples: Examples) -> ContextCache | None:
        """Return the cache with a run's texts in it, or None where it is of no use or they do not fit.

        It is of use for suffix prompts on a frozen causal LM: there a text's keys and values never change.
        """
        if config.placement != "suffix" or config.tune != "prompt" or config.context_cache == "off":
            return None
        if self.lm.backend != "causal":
            return None
        texts = [context for example in (*examples.training, *examples.validation) for context, _ in example.pairs]
        medium = None if config.context_cache == "auto" else config.context_cache
        return self.cache if self.cache.add(texts, medium) else None


def load_base(config: TrainingConfig) -> Base:
    """Load the base model of a run.

    Raises:
        UserError: it can not be loaded.
    """
    loading: dict[str, Any] = {"parallelize": True, "device_map": config.device_map} if config.device_map else {}
    if config.quantization != "none":
        loading[f"load_in_{config.quantization}"] = True
    lm = SPTLM(
        pretrained=config.model,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        add_bos_token=config.add_bos_token,
        **loading,
    )
    return base_of(lm)


def base_of(lm: SPTLM) -> Base:
    """Return a loaded model as a base for runs."""
    let_gradients_through(lm.model)
    return Base(lm, ContextCache(lm.model, tokens_that_fit(lm.model, lm.device)), ExampleReader(lm))
