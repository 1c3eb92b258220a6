"""The order of documents in an epoch, by counting."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_spt.train.mixture import epochs
from tests.helpers.training import TASK, run

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=4)


@given(sizes=SIZES, seed=st.integers(0, 9))
def test_proportional_shows_every_document_once(sizes, seed):
    shuffled = random.Random(seed)
    for epoch in islice(epochs(sizes, "proportional", seed), 3):
        assert sorted(epoch) == list(range(sum(sizes)))
        expected = list(range(sum(sizes)))
        shuffled.shuffle(expected)
        assert epoch == expected


@settings(deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 9))
def test_balanced_shows_equally_many_of_each_task_and_none_before_the_others(sizes, seed):
    task_of = [task for task, size in enumerate(sizes) for _ in range(size)]
    shown: Counter[int] = Counter()
    for epoch in islice(epochs(sizes, "balanced", seed), 7):
        assert len(epoch) == sum(sizes)
        of_tasks = Counter(task_of[number] for number in epoch)
        assert max(of_tasks.values()) - min(of_tasks[task] for task in range(len(sizes))) <= 1
        shown.update(epoch)
        for task in range(len(sizes)):
            times = [shown[number] for number, owner in enumerate(task_of) if owner == task]
            assert max(times) - min(times) <= 1


def test_the_seed_decides():
    def orders(seed: int) -> list[list[int]]:
        return list(islice(epochs([9, 3], "balanced", seed), 4))

    assert orders(1) == orders(1) != orders(2)
    assert len({tuple(order) for order in orders(1)}) == 4


def test_several_source_languages_balanced(tmp_path, monkeypatch):
    import lm_eval_spt.train.loop as loop

    shown: list[list[int]] = []
    epochs = loop.epochs

    def watched(*arguments):
        for order in epochs(*arguments):
            shown.append(order)
            yield order

    monkeypatch.setattr(loop, "epochs", watched)
    tasks = [TASK, "mini_topics_arb_Arab", "mini_topics_hin_Deva"]
    prompt, _ = run(tmp_path / "p.safetensors", task=",".join(tasks), mixture="balanced", epochs=1, shots=2)
    assert prompt.metadata["tasks"] == tasks
    assert prompt.metadata["source_languages"] == ["eng_Latn", "arb_Arab", "hin_Deva"]
    assert prompt.metadata["training_documents"] == 3 * 14
    assert sorted(number // 14 for number in shown[0]) == [0] * 14 + [1] * 14 + [2] * 14
