"""The inflected forms of words, told from lists of frequent words by their stems.

Dictionaries have a word in one form, texts have it in many: of the words in SIB-200's Finnish training and development
texts, 32% are in the dictionary as they stand, 55% by their stem.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from lm_eval_spt.common.errors import UserError

# A word in any script: Devanagari's vowel signs are no letters to Python.
FOREIGN_WORD = re.compile(r"(?:[^\W\d_]|[\u0900-\u0963])+")
# Snowball's stemmers; Vietnamese, Chinese and (here) Swahili have none, a word's only form is the word.
STEMMERS = {
    "deu": "german", "nld": "dutch", "swe": "swedish", "fra": "french", "spa": "spanish", "por": "portuguese",
    "ita": "italian", "rus": "russian", "ces": "czech", "pol": "polish", "ell": "greek", "fin": "finnish",
    "hun": "hungarian", "tur": "turkish", "ara": "arabic", "hin": "hindi", "ind": "indonesian",
}  # fmt: skip
Words = Callable[[str], list[str]]
Stem = Callable[[str], str]


def frequent_words(language: str, most: int = 200_000) -> list[str]:
    """Return the words that wordfreq (Speer 2022) knows of a language, the most frequent first, in lower case.

    None of a language without a stemmer: they would be forms of nothing.
    """
    if language not in STEMMERS:
        return []
    words = _package("wordfreq").top_n_list(_package("langcodes").standardize_tag(language), most)
    # They are case-folded, which takes Greek's final sigma away.
    return [re.sub("σ$", "ς", word) for word in words if FOREIGN_WORD.fullmatch(word)]


def stemmer(language: str) -> Stem:
    """Return what maps a word in lower case to its stem: Snowball's algorithm, or the word itself where it has none."""
    if language not in STEMMERS:
        return str
    snowball, known = _package("snowballstemmer").stemmer(STEMMERS[language]), dict[str, str]()

    def stem(word: str) -> str:
        if word not in known:
            known[word] = snowball.stemWord(word)
        return known[word]

    return stem


def _package(name: str) -> Any:
    """Return a package of the recipe.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"the package {name} is not installed: pip install -e '.[recipe]'") from None


class Inflections:
    """The forms of one language's words.

    Arguments:
        language: whose.
        texts: of that language; they tell more words, and which are written with a capital.
        words: returns a language's words, the most frequent first.
    """

    def __init__(self, language: str, texts: Iterable[str], words: Words = frequent_words):
        self.stem = stemmer(language)
        self.capitals: Counter[str] = Counter()
        written: Counter[str] = Counter()
        for text in texts:
            for i, word in enumerate(FOREIGN_WORD.findall(text)):
                written[word.lower()] += 1
                # The first word of a text has a capital anyway.
                self.capitals[self.stem(word.lower())] += 0 if i == 0 else 1 if word[0].isupper() else -1
        self.by_stem: dict[str, dict[str, None]] = defaultdict(dict)
        for word in [*words(language), *(word for word, _ in written.most_common())]:
            self.by_stem[self.stem(word)][word] = None

    def forms(self, word: str, most: int = 8) -> list[str]:
        """Return the most frequent words with the stem of `word`, or it alone where none is known or it is several."""
        if " " in word:
            return [word]
        stem = self.stem(word.lower())
        return self._written(stem, list(self.by_stem.get(stem, [word.lower()]))[:most], word[:1].isupper())

    def forms_of_stem(self, stem: str, most: int = 8) -> list[str]:
        """Return the most frequent words with a stem that the texts have."""
        return self._written(stem, list(self.by_stem[stem])[:most], False)

    def _written(self, stem: str, words: list[str], capital: bool) -> list[str]:
        """Return words of one stem as the texts write it, with a capital or without; `capital` decides otherwise."""
        if self.capitals[stem] > 0 or (self.capitals[stem] == 0 and capital):
            return [word[:1].upper() + word[1:] for word in words]
        return words
