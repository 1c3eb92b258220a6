"""Topic classifiers for English, learned from the project's own sentences and word lists, that label public text.

The parallel corpora carry no topics. The classifiers give the English of each group a probability of each topic, and
the model learns that answer in all languages of the group. They never see SIB-200's labels.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from recipes.mini_model.languages import TOPICS

WORD = re.compile(r"[^\W\d_]+")

ITERATIONS = 80
"""So many steps of L-BFGS learn a classifier."""


def stem(word: str) -> str:
    """Return the singular of a regular English plural, any other word as it is."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith("es"):
        return word[:-2]
    if len(word) > 4 and word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word


def terms(text: str) -> set[str]:
    """Return the different stems of words of three letters and more."""
    return {stem(word) for word in WORD.findall(text.lower()) if len(word) > 2}


def read_words(path: Path) -> dict[str, list[str]]:
    """Return the words of each topic from a TSV file with the columns ``category`` and ``words``."""
    with path.open(encoding="utf-8", newline="") as file:
        return {row["category"]: row["words"].split() for row in csv.DictReader(file, delimiter="\t")}


def read_sentences(path: Path) -> list[tuple[str, str]]:
    """Return (topic, sentence) pairs from a TSV file with the columns ``category`` and ``text``."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["category"], row["text"]) for row in csv.DictReader(file, delimiter="\t")]


class TopicClassifier:
    """Logistic regression on TF-IDF, whose weights start at, and are drawn towards, the word lists.

    Arguments:
        sentences: (topic, English sentence) pairs to learn from.
        words: typical English words of each topic.
        texts: English texts that tell how common a word is.
        pull: weight of a listed word for its topic, before and while the sentences are learned.
        spread: variance of the weights around that start; the larger, the more the sentences decide.
    """

    def __init__(
        self,
        sentences: Sequence[tuple[str, str]],
        words: dict[str, list[str]],
        texts: Iterable[str],
        pull: float = 4.0,
        spread: float = 30.0,
    ):
        texts = list(texts)
        frequency = Counter(term for text in texts for term in terms(text))
        listed = {stem(word) for line in words.values() for word in line}
        known = sorted(listed.union(*(terms(text) for _, text in sentences)))
        self.index = {term: i for i, term in enumerate(known)}
        self.rarity = torch.tensor([math.log((1 + len(texts)) / (1 + frequency[term])) for term in known]).clamp(min=0)

        start = torch.zeros(len(known), len(TOPICS))
        for topic, line in words.items():
            for word in line:
                start[self.index[stem(word)], TOPICS.index(topic)] = pull
        features = torch.stack([self._features(text) for _, text in sentences])
        self.weights, self.bias = _logistic_regression(features, [topic for topic, _ in sentences], start, spread)

    def _features(self, text: str) -> torch.Tensor:
        """Return the TF-IDF vector of a text, of length 1 unless no term is known."""
        vector = torch.zeros(len(self.index))
        known = [self.index[term] for term in terms(text) if term in self.index]
        vector[known] = self.rarity[known]
        return vector / vector.norm().clamp(min=1e-6)

    def probabilities(self, text: str) -> list[float]:
        """Return the probability of each of :data:`TOPICS` for an English text."""
        known = [self.index[term] for term in terms(text) if term in self.index]
        values = self.rarity[known]
        logits = values @ self.weights[known] / values.norm().clamp(min=1e-6) + self.bias
        return logits.softmax(0).tolist()


class VectorClassifier:
    """Logistic regression on the vectors of texts, which also knows words that no sentence has, by those like them.

    Arguments:
        sentences: (topic, English sentence) pairs to learn from.
        vector: returns the vector of a text, [size].
        spread: variance of the weights around zero.
    """

    def __init__(
        self, sentences: Sequence[tuple[str, str]], vector: Callable[[str], torch.Tensor], spread: float = 10.0
    ):
        self.vector = vector
        features = torch.stack([vector(text) for _, text in sentences])
        start = torch.zeros(features.shape[1], len(TOPICS))
        self.weights, self.bias = _logistic_regression(features, [topic for topic, _ in sentences], start, spread)

    def probabilities(self, text: str) -> list[float]:
        """Return the probability of each of :data:`TOPICS` for an English text."""
        return (self.vector(text) @ self.weights + self.bias).softmax(0).tolist()


def agreed(first: Sequence[float], second: Sequence[float], share: float = 0.35) -> list[float]:
    """Return the weighted geometric mean of two lists of probabilities, `share` being the first's weight."""
    mean = [max(p, 1e-9) ** share * max(q, 1e-9) ** (1 - share) for p, q in zip(first, second, strict=True)]
    return [p / sum(mean) for p in mean]


def _logistic_regression(
    features: torch.Tensor, topics: Sequence[str], start: torch.Tensor, spread: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights [features, topics] and bias [topics], most likely where weights are normal around `start`."""
    answers = torch.tensor([TOPICS.index(topic) for topic in topics])
    weights, bias = start.clone().requires_grad_(True), torch.zeros(len(TOPICS), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        error = torch.nn.functional.cross_entropy(features @ weights + bias, answers, reduction="sum")
        total = error + (weights - start).square().sum() / (2 * spread)
        total.backward()
        return total

    optimizer.step(loss)
    return weights.detach(), bias.detach()
