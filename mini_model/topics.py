"""A topic classifier for English, learned from the project's own sentences and word lists, that labels public text.

The parallel corpora carry no topics. The classifier gives the English of each group a probability of each topic, and
the model learns that answer in all languages of the group. It never sees SIB-200's labels.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from mini_model.languages import TOPICS

WORD = re.compile(r"[^\W\d_]+")


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
        answers = torch.tensor([TOPICS.index(topic) for topic, _ in sentences])
        self.weights, self.bias = start.clone().requires_grad_(True), torch.zeros(len(TOPICS), requires_grad=True)
        optimizer = torch.optim.LBFGS([self.weights, self.bias], max_iter=80, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            logits = features @ self.weights + self.bias
            error = torch.nn.functional.cross_entropy(logits, answers, reduction="sum")
            total = error + (self.weights - start).square().sum() / (2 * spread)
            total.backward()
            return total

        optimizer.step(loss)
        self.weights, self.bias = self.weights.detach(), self.bias.detach()

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
