#!/usr/bin/env python
"""Make the corpus from the sources.

python -m recipes.mini_model.prepare --sources sources --output corpus

Texts that share a run of words with a development or test sentence of SIB-200 or the demo task in their language are
left out, wherever they come from, the project's own sentences included. ``report.json`` counts what was kept and what
was left out.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

from lm_eval_spt.common.errors import show_user_errors_in_one_line
from lm_eval_spt.common.files import write
from recipes.mini_model import dictionary, sources
from recipes.mini_model.contamination import HeldOut
from recipes.mini_model.corpus import Corpus, Group
from recipes.mini_model.inflections import Inflections, Words, frequent_words
from recipes.mini_model.languages import LANGUAGES
from recipes.mini_model.topics import WORD, read_sentences

logger = logging.getLogger(__name__)
LABELLED = Path(__file__).parent / "labelled"
HELD_OUT = ("dev", "test")
SHORTEST, LONGEST = 3, 3000  # characters of a text


def prepare(
    folder: Path, labelled: Path = LABELLED, words: Words = frequent_words
) -> tuple[Corpus, dict[str, dict[str, int]]]:
    """Return the corpus made of the sources in `folder`, and by source how much was kept and left out.

    Arguments:
        folder: the sources' clones.
        labelled: the project's own sentences with topics.
        words: returns the words of a language, the most frequent first, for the dictionary.

    Raises:
        UserError: a file of a source is missing or not as expected.
    """
    held_out = HeldOut(
        chain.from_iterable(
            sources.topic_texts(data, split)
            for data in (folder / sources.SIB200, sources.DEMO_TASK)
            for split in HELD_OUT
        )
    )
    corpus, report = Corpus([], {}, [], {}, [], {}), {}
    for source in sources.SOURCES:
        counts = Counter(groups=0, single=0, overlapping=0)
        for found in source.read(folder):
            texts = {language: re.sub(r"\s+", " ", text).strip() for language, text in found.items()}
            sized = {language: text for language, text in texts.items() if SHORTEST <= len(text) <= LONGEST}
            kept = {language: text for language, text in sized.items() if not held_out.overlaps(language, text)}
            counts["overlapping"] += len(sized) - len(kept)
            if len(kept) > 1:
                corpus.groups.append(Group(source.name, kept))
                counts["groups"] += 1
            for language, text in kept.items() if len(kept) == 1 else ():
                corpus.single.setdefault(language, []).append(text)
                counts["single"] += 1
        report[source.name] = dict(counts)
        logger.info("%s: %s", source.name, dict(counts))
    sentences = read_sentences(labelled / "sentences.tsv")
    corpus.labelled = [(topic, text) for topic, text in sentences if not held_out.overlaps(sources.SOURCE, text)]
    report["labelled"] = {"single": len(corpus.labelled), "overlapping": len(sentences) - len(corpus.labelled)}
    synsets = sources.wordnets(folder)
    corpus.chains = dictionary.chains(synsets)
    groups = corpus.split()[0]
    inflections = {
        language: Inflections(language, [g.texts[language] for g in groups if language in g.texts], words)
        for language in LANGUAGES
        if language != sources.SOURCE
    }
    corpus.dictionary = dictionary.inflected(
        dictionary.from_texts(groups, inflections), dictionary.from_wordnets(synsets), inflections
    )
    english = [group.texts[sources.SOURCE] for group in corpus.groups if sources.SOURCE in group.texts]
    english += corpus.single.get(sources.SOURCE, []) + [text for _, text in corpus.labelled]
    occurring = sorted({word for text in english for word in WORD.findall(text.lower())})
    corpus.vectors = sources.word_vectors(folder, occurring)
    return corpus, report


def main() -> int:
    show_user_errors_in_one_line()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", type=Path, default=Path("sources"), help="folder with the sources' clones")
    parser.add_argument("--output", type=Path, default=Path("corpus"), help="folder for the corpus files")
    arguments = parser.parse_args()
    corpus, report = prepare(arguments.sources)
    corpus.save(arguments.output)
    write(arguments.output / "report.json", json.dumps(report, indent=1).encode())
    logger.info("wrote %s", arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
