"""What a loaded model can do, as far as this package relies on it.

It is found out by trying (:mod:`lm_eval_spt.inference.probe`) and stored with the model; everything else reads it here.
A model that has not been tried counts as one that can do nothing: it is run slowly, and right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel

Layout = Literal["tree", "padded", "rows", "equal"]
"""How requests become the rows of a batch, from the fastest way to the slowest:

``tree``    a context and all its continuations in one row, with a mask that says which token may look at which
``padded``  each continuation in a row of its own, padded on the left, with mask and positions
``rows``    the same padded on the right, where causal attention never looks, without mask and positions
``equal``   the same without padding: rows of one length share a batch
"""


FAILURES = (
    AttributeError,
    AssertionError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a model raises where it can not do what it is tried on."""


@dataclass(frozen=True)
class Capabilities:
    """What a model can do.

    Attributes:
        layout: the fastest layout that gives the log-likelihoods of a plain pass.
        cache: whether it reads on from a KV cache as it would have read everything at once, gradients included.
        split: whether decoder and vocabulary head can be run apart.
        plain_head: whether logits are hidden states times the head's weights, and nothing else.
        longest: texts of more tokens are read in the layout ``equal``, without a cache; None: there are no such texts.
    """

    layout: Layout = "equal"
    cache: bool = False
    split: bool = False
    plain_head: bool = False
    longest: int | None = None

    def reads_plainly(self, tokens: int) -> bool:
        """Tell whether a text of so many tokens is to be read by itself, in the slowest and safest way."""
        return self.layout == "equal" or (self.longest is not None and tokens > self.longest)

    def reads_on(self, tokens: int) -> bool:
        """Tell whether texts that have so many tokens in all, with what follows, can be read on from a cache."""
        return self.cache and not self.reads_plainly(tokens)


_KEY = "lm_eval_spt_capabilities"


def capabilities(model: PreTrainedModel) -> Capabilities:
    """Return what is known of a model."""
    # Not getattr: a PeftModel would answer with what is known of the model without the adapter.
    stored: Capabilities = vars(model).get(_KEY, Capabilities())
    return stored


def set_capabilities(model: PreTrainedModel, known: Capabilities) -> None:
    """Store what is known of a model with it."""
    vars(model)[_KEY] = known


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Put a model that is tried into evaluation mode, and every module back into its own afterwards."""
    modes = {module: module.training for module in model.modules()}  # an adapter's may differ from the model's
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
