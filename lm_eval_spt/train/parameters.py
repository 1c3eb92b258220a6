"""What a run learns: the prompt's vectors, perhaps through a network, and perhaps the base model or an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lm_eval_spt.common.offloading import input_device
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference.deep_prefix import check_deep_prefix, deep_prefix_size
from lm_eval_spt.prompt.file_format import by_position
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.examples import Example
from lm_eval_spt.train.initialization import (
    embedding_scale,
    initial_deep_prefix,
    initial_vectors,
    record_of,
    starting_prompt,
)
from lm_eval_spt.train.reparameterization import Reparameterization, reparameterize
from lm_eval_spt.train.tuning import TunableModel


@dataclass(frozen=True)
class Snapshot:
    """A copy of what a run had learned at one moment, on the CPU.

    Attributes:
        vectors: the prompt as the model receives it; None without a prompt.
        model: tuned parameters of the base model, by name.
    """

    vectors: Tensor | None
    model: dict[str, Tensor] = field(default_factory=dict)


class TrainableParameters:
    """The parameters of a run.

    Attributes:
        model: the base model, of which something may be tuned.
        prompt: makes the prompt's vectors, before the embedding's scale, or a row of all keys and values for each
            position of a deep prefix; None without a prompt.
        started_from: which trained prompt the vectors start from; None where they start from none.

    Args:
        lm: holds the base model, which gets an adapter where the settings say so.
        config: the settings.
        examples: the training documents.

    Raises:
        UserError: the prompt to start from does not fit, or the model can not get an adapter.
    """

    def __init__(self, lm: SPTLM, config: TrainingConfig, examples: Sequence[Example]) -> None:
        self._config = config
        self.model = TunableModel(lm, config)
        self.started_from: dict[str, Any] | None = None
        self.prompt: Reparameterization | None = None
        self._scale = 1.0
        self._size: tuple[int, ...] = ()  # of a deep prefix
        if config.prompt_length:
            embedding = lm.model.get_input_embeddings()
            start = starting_prompt(lm, config)
            self.started_from = record_of(start, config.prompt_length) if start else None
            if config.prompt_kind == "kv":
                check_deep_prefix(lm.model, config.prompt_length)
                self._size = deep_prefix_size(lm.model)
                initial = by_position(initial_deep_prefix(lm, config, examples, start))
            else:
                self._scale = embedding_scale(embedding)
                initial = initial_vectors(lm, config, examples, start)
            self.prompt = reparameterize(
                initial,
                config.reparameterization,
                hidden_size=config.reparameterization_hidden_size,
                share=config.dual_share,
                seed=config.seed,
                num_frozen=config.num_frozen_tokens,
            ).to(input_device(embedding))

    def vectors(self) -> Tensor | None:
        """Return the prompt as the model receives it, differentiable; None without a prompt.

        It is `[P, d]`, or of a deep prefix `[layers, 2, kv_heads, P, head_dim]`.
        """
        if self.prompt is None:
            return None
        rows: Tensor = self.prompt()
        return rows.unflatten(1, self._size).movedim(0, -2) if self._size else rows * self._scale

    def parameters(self) -> list[nn.Parameter]:
        """Return everything that is learned."""
        return [*(self.prompt.parameters() if self.prompt else ()), *self.model.tuned.values()]

    def load(self, values: Sequence[Tensor]) -> None:
        """Put back the values of :meth:`parameters`."""
        for parameter, value in zip(self.parameters(), values, strict=True):
            parameter.data.copy_(value)
        self.model.write_back()

    def buffers(self) -> dict[str, Tensor]:
        """Return the rest of the state: how many dropout masks the network has drawn."""
        return dict(self.prompt.named_buffers()) if self.prompt else {}

    def load_buffers(self, state: dict[str, Tensor]) -> None:
        """Put back what :meth:`buffers` returned."""
        for name, buffer in self.buffers().items():
            buffer.copy_(state[name])

    def count(self) -> int:
        """Return how many numbers are learned."""
        return sum(weight.numel() for weight in self.parameters())

    def groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's groups: vectors, network and model, each with its learning rate."""
        config = self._config
        groups = (
            self.prompt.parameter_groups(config.lr, config.reparameterization_lr or config.lr) if self.prompt else []
        )
        if self.model.tuned:
            groups.append({"params": list(self.model.tuned.values()), "lr": self.model.lr})
        return groups

    def train(self, mode: bool = True) -> None:
        """Turn dropout on for a step, or off."""
        self.model.train(mode)
        if self.prompt is not None:
            self.prompt.train(mode)

    def snapshot(self) -> Snapshot:
        """Return a copy of what has been learned so far, the network folded into vectors."""
        self.train(False)
        vectors = self.vectors()
        return Snapshot(None if vectors is None else vectors.detach().cpu().clone(), self.model.state())
