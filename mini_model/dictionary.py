"""Word translations for mixing languages: from wordnets, and where those have none, counted in parallel texts."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from mini_model.corpus import Group
from mini_model.languages import LANGUAGES, SOURCE
from mini_model.topics import WORD

# A word in any script: Devanagari's vowel signs are no letters to Python.
FOREIGN_WORD = re.compile(r"(?:[^\W\d_]|[\u0900-\u0963])+")
Dictionary = dict[str, dict[str, list[str]]]
# Written without spaces: words can not be counted.
UNSPACED = ("zho",)


def from_wordnets(synsets: Iterable[Mapping[str, Sequence[str]]]) -> Dictionary:
    """Return English word -> translations by language, the first word of each synset that both languages have."""
    found: Dictionary = {language: {} for language in LANGUAGES if language != SOURCE}
    for synset in synsets:
        for word in synset.get(SOURCE, ()):
            for language, translations in found.items():
                for translation in synset.get(language, ())[:1]:
                    known = translations.setdefault(word.lower(), [])
                    if translation not in known:
                        known.append(translation)
    return found


def chains(synsets: Iterable[Mapping[str, Sequence[str]]], languages: int = 6) -> list[dict[str, str]]:
    """Return the first word in each language of the synsets that English and so many languages in all have."""
    first = [{language: words[0] for language, words in synset.items() if words} for synset in synsets]
    return [chain for chain in first if SOURCE in chain and len(chain) >= languages]


def from_texts(groups: Iterable[Group], fewest: int = 3, closeness: float = 0.25, most: int = 2) -> Dictionary:
    """Return English word -> words of each language that occur in the same groups, the closest first.

    Closeness is Dice's coefficient of the two words' groups, 2 |both| / (|one| + |other|).

    Arguments:
        groups: texts that are translations of each other; longer texts than sentences say little.
        fewest: groups that both words must have in common.
        closeness: the least closeness.
        most: words for one English word.
    """
    together: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    english: dict[str, Counter[str]] = defaultdict(Counter)
    foreign: dict[str, Counter[str]] = defaultdict(Counter)
    for group in groups:
        if SOURCE not in group.texts:
            continue
        sources = set(WORD.findall(group.texts[SOURCE].lower()))
        for language, text in group.texts.items():
            if language == SOURCE or language in UNSPACED:
                continue
            targets = set(FOREIGN_WORD.findall(text.lower()))
            english[language].update(sources)
            foreign[language].update(targets)
            together[language].update((source, target) for source in sources for target in targets)
    found: Dictionary = {}
    for language, pairs in together.items():
        scored: dict[str, list[tuple[float, str]]] = defaultdict(list)
        for (source, target), count in pairs.items():
            dice = 2 * count / (english[language][source] + foreign[language][target])
            if count >= fewest and dice >= closeness and len(source) > 2:
                scored[source].append((dice, target))
        found[language] = {
            source: [t for _, t in sorted(entries, reverse=True)[:most]] for source, entries in scored.items()
        }
    return found


def merged(first: Dictionary, second: Dictionary) -> Dictionary:
    """Return `first`, and `second`'s translations of the words that it lacks."""
    return {language: {**second.get(language, {}), **words} for language, words in first.items()}
