"""Continuations of a context as a tree, in which every distinct token stands once.

The seven category names of SIB-200 after one text are seven sequences to the harness. As a tree they are the text once,
with the names growing from its last token; names that begin alike share a branch. A model that is told which tokens
are ancestors of which reads a tree in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from lm_eval_spt.inference.virtual_tokens import is_virtual, pad_left, pad_right


@dataclass
class ScoringRequest:
    """A context and the continuations to score, as token ids.

    Both may hold virtual tokens, which are never scored: where a continuation begins with those of a suffix prompt,
    several prompts grow from one context.
    """

    context: list[int]
    continuations: list[list[int]]


@dataclass(frozen=True)
class TokenTree:
    """What grows from a context's last token: the continuations' tokens but their last, which is only scored.

    Attributes:
        tokens: n ids.
        ancestors: boolean `[n, n]`, what each token may look at: its ancestors among these tokens, and itself.
        depths: `[n]`, 1 right after the context.
        scored: the nodes at which something is scored; node 0 is the context's last token, node i + 1 is `tokens[i]`.
        targets: (which of `scored`, token, continuation): what is scored where.
    """

    tokens: tuple[int, ...]
    ancestors: Tensor
    depths: Tensor
    scored: tuple[int, ...]
    targets: tuple[tuple[int, int, int], ...]

    @property
    def is_chain(self) -> bool:
        """Whether nothing branches, so that a token may look at everything before it."""
        return len(self.tokens) < 2 or int(self.depths[-1]) == len(self.tokens)


@lru_cache(maxsize=256)  # the documents of a task mostly have the same choices; a tree of 2,000 nodes takes 4 MB
def build_tree(continuations: tuple[tuple[int, ...], ...]) -> TokenTree:
    """Put continuations together to a tree."""
    children: dict[tuple[int, int], int] = {}  # (node, token) -> node
    tokens: list[int] = []
    parents: list[int] = []
    scored: dict[int, int] = {}  # node -> its place among those that are scored
    targets = []
    for number, continuation in enumerate(continuations):
        node = 0
        for step, token in enumerate(continuation):
            if not is_virtual(token):
                targets.append((scored.setdefault(node, len(scored)), token, number))
            if step + 1 < len(continuation):
                if (node, token) not in children:
                    tokens.append(token)
                    parents.append(node)
                    children[node, token] = len(tokens)
                node = children[node, token]
    ancestors = torch.eye(len(tokens), dtype=torch.bool)
    for index, parent in enumerate(parents):
        if parent:
            ancestors[index] |= ancestors[parent - 1]
    return TokenTree(tuple(tokens), ancestors, ancestors.sum(dim=1), tuple(scored), tuple(targets))


def row_length(request: ScoringRequest) -> int:
    """Return how many tokens a request has, each counted once."""
    return len(request.context) + len(build_tree(tuple(map(tuple, request.continuations))).tokens)


def text_length(request: ScoringRequest) -> int:
    """Return how many tokens the model reads of the longest of a request's texts: all but its last, which is scored."""
    return len(request.context) + max((len(chosen) - 1 for chosen in request.continuations if chosen), default=0)


@dataclass
class TreeBatch:
    """Questions laid out for the model, one in each row, padded on the left.

    Attributes:
        ids, mask: `[batch, time]`, padded on either side.
        positions: `[batch, time]`, counted from the row's first token.
        visible: boolean `[batch, time, time]`, or None where each token may look at everything before it.
        scored: the (row, slot) of every node that has targets, `[2, nodes]`.
        targets: (node, token, continuation) `[targets, 3]`, nodes and continuations numbered through all requests.
        continuations: how many there are.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    visible: Tensor | None
    scored: Tensor
    targets: Tensor
    continuations: int


def collate(requests: Sequence[ScoringRequest], padding: Literal["left", "right"] = "left") -> TreeBatch:
    """Return requests as the rows of a batch."""
    trees = [build_tree(tuple(map(tuple, request.continuations))) for request in requests]
    pad = pad_left if padding == "left" else pad_right
    ids, mask = pad([[*request.context, *tree.tokens] for request, tree in zip(requests, trees, strict=True)])
    time = ids.shape[1]
    positions = text_positions(mask)
    visible = None
    if not all(tree.is_chain for tree in trees):
        visible = causal_mask(mask)
    slots: list[tuple[int, int]] = []
    targets: list[tuple[int, int, int]] = []
    number = 0
    for row, (request, tree) in enumerate(zip(requests, trees, strict=True)):
        first = len(request.context) + (time - len(request.context) - len(tree.tokens) if padding == "left" else 0)
        last = first + len(tree.tokens)
        if visible is not None and not tree.is_chain:
            visible[row, first:last, first:last] = tree.ancestors
            positions[row, first:last] = len(request.context) - 1 + tree.depths
        targets += [(len(slots) + node, token, number + which) for node, token, which in tree.targets]
        slots += [(row, first - 1 + node) for node in tree.scored]
        number += len(request.continuations)
    scored = torch.tensor(slots, dtype=torch.long).view(-1, 2).T
    return TreeBatch(ids, mask, positions, visible, scored, torch.tensor(targets, dtype=torch.long).view(-1, 3), number)


def text_positions(mask: Tensor) -> Tensor:
    """Return where in its text each token of rows without branches stands, `[batch, time]`, from their `mask`."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def causal_mask(mask: Tensor) -> Tensor:
    """Return what tokens may look at in rows without branches, boolean `[batch, time, time]`, from their `mask`.

    Padding looks at itself: looking at nothing is not defined.
    """
    time = mask.shape[1]
    before = torch.ones(time, time, dtype=torch.bool, device=mask.device).tril()
    itself = torch.eye(time, dtype=torch.bool, device=mask.device)
    return before & mask.bool()[:, None, :] | itself
