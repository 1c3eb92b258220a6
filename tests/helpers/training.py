"""What a small training run is given: settings, and examples of any shape."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.examples import Example

TASK = "mini_topics_eng_Latn"


def settings_for(output: Path, **changes) -> TrainingConfig:
    small = {"epochs": 2, "shots": 2, "validation_shots": 1, "prompt_length": 4, "batch_size": 4}
    return TrainingConfig(**{"model": "mini", "task": TASK, "output": str(output)} | small | changes)


def examples_of(data: st.DataObject) -> list[Example]:
    ids = st.integers(4, 20479)
    choices = data.draw(st.lists(st.lists(ids, min_size=1, max_size=4), min_size=2, max_size=5, unique_by=tuple))
    contexts = data.draw(st.lists(st.lists(ids, min_size=1, max_size=12), min_size=1, max_size=5))
    return [
        Example(
            tuple((tuple(context), tuple(choice)) for choice in choices), data.draw(st.integers(0, len(choices) - 1))
        )
        for context in contexts
    ]
