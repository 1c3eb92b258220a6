"""Keeping sentences that a model is scored on out of what it learns from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# So many words in a row, or characters where words are not set apart, tell a copy from a coincidence.
WORDS, CHARACTERS = 8, 16
UNSPACED = ("zho",)


def grams(language: str, text: str) -> set[str]:
    """Return a text's runs of :data:`WORDS` words, or :data:`CHARACTERS` characters; a shorter text is one run."""
    units, length, joint = (
        (list(text.lower()), CHARACTERS, "") if language in UNSPACED else (re.findall(r"\w+", text.lower()), WORDS, " ")
    )
    return {joint.join(units[i : i + length]) for i in range(max(1, len(units) - length + 1))}


class HeldOut:
    """Texts that nothing may be learned from, and a check against them.

    Arguments:
        texts: by language, as the sources yield them.
    """

    def __init__(self, texts: Iterable[Mapping[str, str]]):
        self._grams: dict[str, set[str]] = {}
        for translations in texts:
            for language, text in translations.items():
                self._grams.setdefault(language, set()).update(grams(language, text))

    def overlaps(self, language: str, text: str) -> bool:
        """Return whether `text` has a run of words in common with a held-out text of its language."""
        return not grams(language, text).isdisjoint(self._grams.get(language, ()))
