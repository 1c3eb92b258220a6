"""English texts with words of another language: translations word by word, where there are no others."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from recipes.mini_model.topics import WORD

Entry = TypeVar("Entry")


@dataclass
class Glossed:
    """A text, and of its words, where they are known, the place after their last character and their English."""

    text: str
    glosses: list[tuple[int, str]] = field(default_factory=list)


def mix(
    rng: random.Random, text: str, words: Mapping[str, Sequence[Sequence[str]]] | None = None, share: float = 1
) -> Glossed:
    """Return an English text with words replaced.

    Arguments:
        rng: decides on the words, their translations and forms.
        text: in English.
        words: English word -> its translations, each in all its forms; the first of both are drawn most often.
        share: of the words to replace, as far as they have a translation.
    """
    mixed, glosses, copied = "", [], 0
    for match in WORD.finditer(text):
        english = match.group(0).lower()
        forms = (english, re.sub("s$", "", english), re.sub("e[sd]$", "", english), re.sub("d$|ing$", "", english))
        known = next((words[form] for form in forms if form in words), None) if words and rng.random() < share else None
        word = _often_the_first(rng, _often_the_first(rng, known)) if known else match.group(0)
        mixed += text[copied : match.start()] + word
        glosses.append((len(mixed), english))
        copied = match.end()
    return Glossed(mixed + text[copied:], glosses)


def _often_the_first(rng: random.Random, entries: Sequence[Entry]) -> Entry:
    """Return one of the entries, the n-th with a probability in proportion to 1 / n."""
    return rng.choices(entries, [1 / (1 + i) for i in range(len(entries))])[0]
