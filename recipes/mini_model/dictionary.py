"""Word translations for mixing languages: from wordnets and counted in parallel texts, in the forms that texts have."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from recipes.mini_model.corpus import Group
from recipes.mini_model.inflections import FOREIGN_WORD, Inflections
from recipes.mini_model.languages import LANGUAGES, SOURCE
from recipes.mini_model.topics import WORD

# English word -> its translations, the closest first, by language.
Dictionary = dict[str, dict[str, list[str]]]
# The same with the forms of each translation, the most frequent first.
InflectedDictionary = dict[str, dict[str, list[list[str]]]]
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


def from_texts(
    groups: Iterable[Group],
    inflections: Mapping[str, Inflections],
    fewest: int = 3,
    closeness: float = 0.25,
    most: int = 2,
) -> Dictionary:
    """Return English word -> stems of each language that occur in the same groups, the closest first.

    Closeness is Dice's coefficient of the word's and the stem's groups, 2 |both| / (|one| + |other|).

    Arguments:
        groups: texts that are translations of each other; longer texts than sentences say little.
        inflections: of every language to count.
        fewest: groups that both must have in common.
        closeness: the least closeness.
        most: stems for one English word.
    """
    together: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    english: dict[str, Counter[str]] = defaultdict(Counter)
    foreign: dict[str, Counter[str]] = defaultdict(Counter)
    for group in groups:
        if SOURCE not in group.texts:
            continue
        sources = set(WORD.findall(group.texts[SOURCE].lower()))
        for language, text in group.texts.items():
            if language not in inflections or language in UNSPACED:
                continue
            targets = {inflections[language].stem(word.lower()) for word in FOREIGN_WORD.findall(text)}
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


def inflected(
    stems: Dictionary, words: Dictionary, inflections: Mapping[str, Inflections], most: int = 4
) -> InflectedDictionary:
    """Return English word -> its `most` closest translations in all their forms: `stems` come before `words`."""
    found: InflectedDictionary = {}
    for language, known in inflections.items():
        first, second = stems.get(language, {}), words.get(language, {})
        found[language] = {}
        for source in {**first, **second}:
            translations = {stem: known.forms_of_stem(stem) for stem in first.get(source, ())}
            for word in second.get(source, ()):
                translations.setdefault(known.stem(word.lower()), known.forms(word))
            found[language][source] = list(translations.values())[:most]
    return found
