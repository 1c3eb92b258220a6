"""In which order documents of several tasks, such as several source languages, are shown in an epoch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence


def epochs(sizes: Sequence[int], mixture: str, seed: int) -> Iterator[list[int]]:
    """Yield the order of one epoch after the other, without end.

    Args:
        sizes: how many documents each task has; the documents of all are numbered in a row.
        mixture: ``proportional``: every document once, so that a task counts by its size. ``balanced``: equally many
            documents of each task, and as many in all as there are; a larger task shows others of its documents in the
            next epoch, a smaller one shows its documents again.
        seed: of the order.

    Yields:
        Document numbers, shuffled.
    """
    order = random.Random(seed)
    total = sum(sizes)
    firsts = [sum(sizes[:task]) for task in range(len(sizes))]
    waiting: list[list[int]] = [[] for _ in sizes]
    while True:
        if mixture == "proportional" or len(sizes) == 1:
            numbers = list(range(total))
        else:
            numbers = []
            for task, size in enumerate(sizes):
                share = total // len(sizes) + (task < total % len(sizes))
                while len(waiting[task]) < share:
                    again = list(range(firsts[task], firsts[task] + size))
                    order.shuffle(again)
                    waiting[task] += again
                numbers += waiting[task][:share]
                del waiting[task][:share]
        order.shuffle(numbers)
        yield numbers
