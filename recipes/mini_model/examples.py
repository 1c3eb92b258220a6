"""What the model learns from in a step: documents for the next token, and questions with a position for the answer."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from recipes.mini_model.corpus import Corpus, Group
from recipes.mini_model.languages import SOURCE, TOPICS
from recipes.mini_model.mixing import Glossed, mix
from recipes.mini_model.topics import WORD, TopicClassifier, VectorClassifier, agreed
from recipes.mini_model.word_vectors import WordVectors

TOPIC_QUESTIONS = ("\nTopic:", "\nTopic:", "\nTopic:", "\nCategory:", " topic:", "\nLabel:", "\nSubject:", " ->")
KEYWORD_QUESTIONS = ("\nKeywords:", "\nAbout:", " about:")
# How often a pair comes from each source; of the large ones each language, not each sentence, counts the same.
SOURCE_WEIGHTS = {
    "sib-train": 0.20, "ntrex": 0.28, "pud": 0.12, "tatoeba": 0.24, "tico": 0.05, "xquad-s": 0.09, "xquad-q": 0.03,
}  # fmt: skip
# Of the pairs so many are an English text and its words in other languages; so many of these texts are mere words.
WORD_BY_WORD, MERE_WORDS = 0.4, 0.3
MOST_LEFT_OUT = 0.3  # of the tokens of a question's text
# Sources whose texts also serve as single texts.
RUNNING_TEXT = ("sib-train", "ntrex", "pud", "xquad-s")

Entry = TypeVar("Entry")


@dataclass
class Question:
    """A row of tokens in which the model answers.

    Attributes:
        tokens: the row, with the answer's tokens where it has several, all but the first learned as they stand.
        position: of the last token before the answer.
        filler: (start, stop) of random tokens that stand for virtual ones; noise is added to their embeddings.
        answer: token id -> probability; empty where only the alignment with the translation is learned.
        about_topic: whether the answer is a topic or a keyword.
        english: the text in English, whose vector is learned too.
        glosses: of tokens that end a word, their position and the word's English, whose direction is learned.
    """

    tokens: list[int]
    position: int
    filler: tuple[int, int] = (0, 0)
    answer: dict[int, float] = field(default_factory=dict)
    about_topic: bool = True
    english: str | None = None
    glosses: list[tuple[int, str]] = field(default_factory=list)


class Examples:
    """Draws examples from a corpus; the same generator gives the same examples.

    Arguments:
        corpus: the prepared corpus.
        words: typical English words of each topic.
        tokenizer: of the model.
        longest: tokens of a text that a question may have; longer ones are cut on the right.
    """

    def __init__(
        self,
        corpus: Corpus,
        words: dict[str, list[str]],
        tokenizer: PreTrainedTokenizerBase,
        longest: int = 56,
    ):
        self.tokenizer, self.longest, self.words = tokenizer, longest, words
        self.dictionary, self.chains, self.labelled = corpus.dictionary, corpus.chains, corpus.labelled
        groups, self.held_out = corpus.split()
        self.by_source: dict[str, dict[str, list[Group]]] = defaultdict(lambda: defaultdict(list))
        self.single = defaultdict(list, {language: list(texts) for language, texts in corpus.single.items()})
        for group in groups:
            pair = sorted(set(group.texts) - {SOURCE})
            self.by_source[group.source][pair[0] if len(group.texts) == 2 and pair else "*"].append(group)
            if group.source in RUNNING_TEXT:
                for language, text in group.texts.items():
                    self.single[language].append(text)
        self.english = [text for _, text in corpus.labelled] + self.single[SOURCE]
        self.sources = [source for source in SOURCE_WEIGHTS if source in self.by_source]
        english = [g.texts[SOURCE] for g in groups if SOURCE in g.texts and g.source != "tatoeba"]
        self.keywords = _keywords(english, tokenizer)
        self.classifier = TopicClassifier(corpus.labelled, words, english)
        self.vectors = WordVectors(corpus.vectors, english)
        frequency = Counter(word for text in english for word in WORD.findall(text.lower()))
        self.frequent = sorted(frequency), list(accumulate(frequency[word] ** 0.5 for word in sorted(frequency)))
        self.second_classifier = VectorClassifier(corpus.labelled, self.vectors.of_text)
        spellings = [self.encode(" " + topic) for topic in TOPICS]
        self.topic_tokens = [tokens[0] for tokens in spellings]
        self.topic_spelling = {tokens[0]: tokens if len(tokens) > 1 else [] for tokens in spellings}

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    # Texts

    def pair(self, rng: random.Random) -> tuple[Glossed, Glossed, str | None]:
        """Return two translations of a text, one or both perhaps English with foreign words, and its English."""
        if rng.random() < WORD_BY_WORD:
            text = self.mere_words(rng) if rng.random() < MERE_WORDS else rng.choice(self.english)
            return self.mix(rng, text), self.mix(rng, text) if rng.random() < 0.5 else mix(rng, text), text
        source = rng.choices(self.sources, [SOURCE_WEIGHTS[source] for source in self.sources])[0]
        texts = rng.choice(self.by_source[source][rng.choice(list(self.by_source[source]))]).texts
        others = [language for language in texts if language != SOURCE]
        if SOURCE in texts and (len(others) == 1 or rng.random() < 0.6):
            english, other = texts[SOURCE], texts[rng.choice(others)]
            first, second = self.mix(rng, english) if rng.random() < 0.5 else mix(rng, english), Glossed(other)
        else:
            first, second = (Glossed(texts[language]) for language in rng.sample(others, 2))
        return first, second, texts.get(SOURCE)

    def mix(self, rng: random.Random, text: str) -> Glossed:
        """Return an English text with a random share of its words replaced by those of one other language."""
        return mix(rng, text, self.dictionary[rng.choice(list(self.dictionary))], rng.uniform(0.3, 1))

    def mere_words(self, rng: random.Random) -> str:
        """Return English words that have nothing to do with each other, frequent ones more often."""
        return " ".join(rng.choices(self.frequent[0], cum_weights=self.frequent[1], k=rng.randint(3, 12)))

    def topic_text(self, rng: random.Random) -> tuple[Glossed, str, str]:
        """Return (text, topic, English): a labelled sentence or words of a list, mostly mixed with other languages."""
        if rng.random() < 0.5:
            topic, text = rng.choice(self.labelled)
        else:
            topic = rng.choice(TOPICS)
            text = " ".join(rng.sample(self.words[topic], min(len(self.words[topic]), rng.randint(2, 8))))
        return self.mix(rng, text) if rng.random() < 0.75 else mix(rng, text), topic, text

    def topic_probabilities(self, english: str) -> list[float]:
        """Return the probability of each of the topics for an English text, as the classifiers have it."""
        found = self.classifier.probabilities(english)
        return agreed(found, self.second_classifier.probabilities(english))

    # Next-token documents

    def document(self, rng: random.Random) -> str:
        """Return a text to learn next tokens from: translations, one text, a labelled text or words of one meaning."""
        kind = rng.random()
        if kind < 0.4:
            first, second, _ = self.pair(rng)
            return "\n".join(rng.sample([first.text, second.text], 2))
        if kind < 0.7:
            return rng.choice(self.single[rng.choice(list(self.single))])
        if kind < 0.85:
            text, topic, _ = self.topic_text(rng)
            return f"{text.text}{rng.choice(TOPIC_QUESTIONS)} {topic}"
        lines = []
        for chain in rng.sample(self.chains, min(4, len(self.chains))):
            languages = rng.sample(sorted(chain), min(len(chain), 4))
            if SOURCE in chain and SOURCE not in languages and rng.random() < 0.7:
                languages[0] = SOURCE
            lines.append(" = ".join(chain[language] for language in languages))
        return "\n".join(lines)

    def packed(self, rng: random.Random, rows: int, length: int) -> list[list[int]]:
        """Return `rows` rows of `length` tokens, filled with documents that end in the EOS token."""
        tokens: list[int] = []
        while len(tokens) < rows * length:
            document = self.encode(self.document(rng))[:192]
            begin = [self.tokenizer.bos_token_id] if rng.random() < 0.5 else []
            tokens += [*begin, *document, self.tokenizer.eos_token_id]
        return [tokens[row * length : (row + 1) * length] for row in range(rows)]

    # Questions

    def questions(self, rng: random.Random, pairs: int, topics: int) -> list[Question]:
        """Return 2 `pairs` questions on translations, side by side, then `topics` questions on texts of known topic."""
        rows = []
        for _ in range(pairs):
            first, second, english = self.pair(rng)
            about_topic = rng.random() < 0.6
            question = rng.choice(TOPIC_QUESTIONS if about_topic else KEYWORD_QUESTIONS)
            answer: dict[int, float] = {}
            if english is not None and about_topic:
                answer = dict(zip(self.topic_tokens, self.topic_probabilities(english), strict=True))
            elif english is not None:
                found = {self.keywords[word] for word in WORD.findall(english.lower()) if word in self.keywords}
                rarest = sorted(found, key=lambda entry: (-entry[1], entry[0]))[:8]
                answer = {token: 1 / len(rarest) for token, _ in rarest}
            rows += [self._ask(rng, text, question, answer, about_topic, english) for text in (first, second)]
        for _ in range(topics):
            text, topic, english = self.topic_text(rng)
            answer = {self.topic_tokens[TOPICS.index(topic)]: 1.0}
            rows.append(self._ask(rng, text, rng.choice(TOPIC_QUESTIONS), answer, True, english))
        return rows

    def _ask(
        self,
        rng: random.Random,
        text: Glossed,
        question: str,
        answer: dict[int, float],
        about_topic: bool,
        english: str | None,
    ) -> Question:
        """Put text, question and filler in one of the orders that prompts before and after a text will make."""
        glossed = self._gaps(rng, self._tokens(text)[: self.longest])
        text_tokens, question_tokens = [token for token, _ in glossed], self.encode(question)
        spelled = self.topic_spelling[max(answer, key=answer.__getitem__)] if answer and about_topic else []
        size = rng.randint(1, 16) if rng.random() < 0.5 else 0
        filler = [rng.randrange(4, len(self.tokenizer)) for _ in range(size)]
        if rng.random() < 0.25:  # before the text, as a trained prefix prompt stands
            row, start, text_start = [*filler, *question_tokens, *text_tokens], 0, size + len(question_tokens)
        else:
            row, start, text_start = [*text_tokens, *filler, *question_tokens], len(text_tokens), 0
        glosses = [(text_start + i, word) for i, (_, word) in enumerate(glossed) if word is not None]
        return Question([*row, *spelled], len(row) - 1, (start, start + size), answer, about_topic, english, glosses)

    def _tokens(self, text: Glossed) -> list[tuple[int, str | None]]:
        """Return the tokens of a text, each with the English of the word that it ends, if that is known."""
        encoded = self.tokenizer(text.text, add_special_tokens=False, return_offsets_mapping=True)
        ends = dict(text.glosses)
        return [
            (t, ends.get(stop)) for t, (_, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]

    def _gaps(self, rng: random.Random, tokens: list[Entry]) -> list[Entry]:
        """Return a text without a random share of its tokens, mostly: there are few texts, and they are seen often."""
        share = rng.uniform(0, MOST_LEFT_OUT) if rng.random() < 0.7 else 0.0
        return [token for token in tokens if rng.random() >= share] or tokens


def _keywords(english: list[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, tuple[int, float]]:
    """Return (token id, rarity) of English content words: single tokens, neither rare nor in one text of a hundred."""
    frequency = Counter(word for text in english for word in set(WORD.findall(text.lower())))
    tokens: dict[str, tuple[int, float]] = {}

    for word, count in frequency.items():
        if (
            len(word) > 2
            and 5 <= count < max(6, 0.01 * len(english))
            and len(ids := tokenizer(" " + word, add_special_tokens=False)["input_ids"]) == 1
        ):
            tokens[word] = ids[0], math.log(len(english) / count)
    return tokens
