"""The order of documents in an epoch, where they come from one task or several, such as several source languages."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence


def epochs(sizes: Sequence[int], mixture: str, seed: int) -> Iterator[list[int]]:
    """Yield the document numbers of each epoch, without end.

    Args:
        sizes: how many documents each task has. Documents are numbered through, task by task.
        mixture: ``proportional``: every document once, so that a task counts by its size. ``balanced``: equally many
            documents of each task, in all as many as there are documents; a larger task goes on with its other
            documents in the next epoch, a smaller task repeats its own.
        seed: decides the order.

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
