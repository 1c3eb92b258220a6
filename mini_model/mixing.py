"""English texts with words of another language: translations word by word, where there are no others."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from mini_model.topics import WORD

Entry = TypeVar("Entry")


def mix(rng: random.Random, text: str, words: Mapping[str, Sequence[Sequence[str]]], share: float) -> str:
    """Return an English text with words replaced.

    Arguments:
        rng: decides on the words, their translations and forms.
        text: in English.
        words: English word -> its translations, each in all its forms; the first of both are drawn most often.
        share: of the words to replace, as far as they have a translation.
    """

    def translate(match: re.Match[str]) -> str:
        word = match.group(0).lower()
        if rng.random() < share:
            for form in (word, re.sub("s$", "", word), re.sub("e[sd]$", "", word), re.sub("d$|ing$", "", word)):
                if form in words:
                    return _often_the_first(rng, _often_the_first(rng, words[form]))
        return match.group(0)

    return WORD.sub(translate, text)


def _often_the_first(rng: random.Random, entries: Sequence[Entry]) -> Entry:
    """Return one of the entries, the n-th with a probability in proportion to 1 / n."""
    return rng.choices(entries, [1 / (1 + i) for i in range(len(entries))])[0]
