"""In which parts documents are read: texts of like length together, so that little of a batch is padding.

Of documents in the wild a few are many times as long as most, and a batch is as wide as its longest text.
"""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval_spt.train.examples import Example


def parts_of(examples: Sequence[Example], most: int, pass_tokens: int) -> list[list[Example]]:
    """Return examples in the parts that are read fastest one after the other, short texts first.

    A part takes as long as its tokens, padding included, and `pass_tokens` more.

    Args:
        examples: the examples.
        most: how many a part may have.
        pass_tokens: how many tokens are read in the time that one more pass through the model takes.
    """
    ordered = sorted(examples, key=_width)
    fastest = [(0, 0)]  # for the first n examples: how long they take, and where their last part begins
    for end in range(1, len(ordered) + 1):
        width, rows, options = _width(ordered[end - 1]), 0, []
        for start in range(end - 1, max(end - most, 0) - 1, -1):
            rows += _rows(ordered[start])
            options.append((fastest[start][0] + rows * width + pass_tokens, start))
        fastest.append(min(options))
    parts: list[list[Example]] = []
    end = len(ordered)
    while end:
        start = fastest[end][1]
        parts.insert(0, ordered[start:end])
        end = start
    return parts


def _rows(example: Example) -> int:
    """How many rows of a batch an example takes: one for each context."""
    return len({context for context, _ in example.pairs})


def _width(example: Example) -> int:
    return max(len(context) + len(continuation) for context, continuation in example.pairs)
