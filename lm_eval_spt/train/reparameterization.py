"""Reparameterization: while a soft prompt is learned, its vectors are the output of a small network.

The optimizer moves raw vectors `[P, d]` and a network that all positions share; the model receives the network's
output. After training only that output is kept: a prompt file holds plain vectors, and scoring needs no network.
Everything here is before the embedding's scale (:mod:`lm_eval_spt.train.initialization`).

============  ==============================================================================================
``none``      the raw vectors themselves
``mlp``       LayerNorm(Linear(ReLU(Linear(x)))): arXiv 2402.03782, from its published code
``residual``  x + the same network: residual prompt tuning, Razdaibiedina et al. 2023 (arXiv 2305.03937)
``xpe``       the Cross-Prompt Encoder, meant for many source languages: Mikaberidze et al. 2025 (arXiv 2508.10352)
``dual``      the last vectors come from that encoder, the others are free: the same paper
============  ==============================================================================================

Of XPE the paper and its published code and configurations give: two hidden layers, each Linear - ReLU - dropout of 0.1,
then a Linear back to d, no LayerNorm and no residual; hidden size 256; in DUAL the free vectors come first, 30% are
encoded (rounded down) and there is at least one of each. Different here: the encoder's inputs start from ``--init``,
where the published code draws them from N(0, 1); and a dropout mask depends on the seed and the step alone, so that a
run gives the same vectors by itself, beside others and resumed.
"""

from __future__ import annotations

import random
from typing import get_args

import torch
from torch import Tensor, nn

from lm_eval_spt.train.config import ReparameterizationKind

KINDS: tuple[ReparameterizationKind, ...] = get_args(ReparameterizationKind)

HIDDEN_SIZES = {"mlp": 200, "residual": 200, "xpe": 256, "dual": 256}
"""Hidden sizes of the networks, as published (for ``residual`` that of ``mlp``)."""

XPE_DROPOUT = 0.1


class Reparameterization(nn.Module):
    """Raw vectors, the last `encoded` of which go through a network.

    Attributes:
        raw: the parameter `[P - frozen, d]`.
        network: maps `[encoded, d]` to `[encoded, d]`, row by row; None where the raw vectors are the prompt.
        frozen: the first vectors, which stay as they are, `[frozen, d]`.
    """

    frozen: Tensor

    def __init__(
        self,
        initial: Tensor,
        network: nn.Module | None = None,
        encoded: int = 0,
        residual: bool = False,
        num_frozen: int = 0,
    ):
        super().__init__()
        self.raw = nn.Parameter(initial[num_frozen:].clone())
        self.register_buffer("frozen", initial[:num_frozen].clone(), persistent=False)
        self.network = network
        self._free = len(initial) - encoded
        self._residual = residual

    def forward(self) -> Tensor:
        """Return the prompt `[P, d]`, before the embedding's scale."""
        if self.network is None:
            return torch.cat([self.frozen, self.raw]) if len(self.frozen) else self.raw
        free, inputs = self.raw[: self._free], self.raw[self._free :]
        outputs: Tensor = self.network(inputs)
        return torch.cat([free, inputs + outputs if self._residual else outputs])

    def parameter_groups(self, lr: float, network_lr: float) -> list[dict[str, object]]:
        """Return groups for an optimizer: the raw vectors, and the network's parameters where there is a network."""
        groups: list[dict[str, object]] = [{"params": [self.raw], "lr": lr}]
        if self.network is not None:
            groups.append({"params": list(self.network.parameters()), "lr": network_lr})
        return groups


def reparameterize(
    initial: Tensor,
    kind: ReparameterizationKind,
    *,
    hidden_size: int | None = None,
    share: float = 0.3,
    seed: int = 0,
    num_frozen: int = 0,
) -> Reparameterization:
    """Return a module that computes a prompt of as many vectors as `initial`.

    Args:
        initial: the raw vectors `[P, d]` to start from.
        kind: one of the table above.
        hidden_size: of the network; default: :data:`HIDDEN_SIZES`.
        share: the share of the vectors that the encoder of ``dual`` computes, 0 < share < 1.
        seed: decides the network's initial weights and its dropout; the global random state is left as it is.
        num_frozen: so many of the first vectors stay as they are; only with the kind ``none``.

    Raises:
        ValueError: ``dual`` with fewer than two vectors.
    """
    length, width = initial.shape
    if kind == "none":
        return Reparameterization(initial, num_frozen=num_frozen)
    hidden = hidden_size or HIDDEN_SIZES[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind in ("mlp", "residual"):
            network = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.LayerNorm(width))
        else:
            network = nn.Sequential(
                nn.Linear(width, hidden), nn.ReLU(), SeededDropout(XPE_DROPOUT, seed),
                nn.Linear(hidden, hidden), nn.ReLU(), SeededDropout(XPE_DROPOUT, seed + 1),
                nn.Linear(hidden, width),
            )  # fmt: skip
    return Reparameterization(initial, network, encoded_vectors(length, kind, share), residual=kind == "residual")


def encoded_vectors(length: int, kind: ReparameterizationKind, share: float) -> int:
    """Return how many of `length` vectors come from a network.

    Raises:
        ValueError: ``dual`` with fewer than two vectors.
    """
    if kind != "dual":
        return 0 if kind == "none" else length
    if length < 2:
        raise ValueError("a dual prompt needs at least two vectors: one from the encoder and a free one")
    return max(1, min(length - 1, int(length * share)))


class SeededDropout(nn.Module):
    """Dropout whose mask depends on the seed and the step alone, whatever else draws random numbers.

    Each call of :meth:`train` begins a step. A step has one mask, in all parts of its batch and in all processes. The
    number of steps is part of the module's state, and so of a checkpoint.
    """

    step: Tensor

    def __init__(self, probability: float, seed: int) -> None:
        super().__init__()
        self._probability = probability
        self._seed = seed
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def train(self, mode: bool = True) -> SeededDropout:
        """Begin a step, which has a mask of its own; or end training."""
        if mode:
            self.step += 1
        return super().train(mode)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs; in training a share of them is zero and the rest is scaled up to keep the mean."""
        if not self.training:
            return inputs
        seed = random.Random(f"{self._seed} {int(self.step)}").getrandbits(63)
        generator = torch.Generator().manual_seed(seed)
        kept = torch.rand(inputs.shape, generator=generator) >= self._probability
        return inputs * kept.to(inputs.device) / (1 - self._probability)
