"""What an English text is about, by the vectors of its words, which were learned from far more text than is here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from recipes.mini_model.topics import WORD


class WordVectors:
    """Vectors of texts: the mean of the words' vectors, each weighted by its rarity, less that of the typical text.

    Arguments:
        vectors: of English words in lower case, [size] each.
        texts: English texts that tell how common a word is, and what is typical.

    Attributes:
        index: word -> its number.
        rarity: of the words, the logarithm of one in how many texts has it [words].
        directions: of the words from their mean, of length 1 [words, size].
        typical: the mean of all texts' vectors before it is taken off [size].
    """

    def __init__(self, vectors: Mapping[str, Sequence[float]], texts: Sequence[str]):
        self.index = {word: i for i, word in enumerate(vectors)}
        self.matrix = torch.tensor(list(vectors.values()))
        frequency = Counter(word for text in texts for word in set(self._words(text)))
        self.rarity = torch.tensor([math.log((1 + len(texts)) / (1 + frequency[word])) for word in vectors])
        self.directions = torch.nn.functional.normalize(self.matrix - self.matrix.mean(0), dim=-1)
        self.typical = torch.zeros(self.size)
        self.typical = torch.stack([self.of_text(text) for text in texts]).mean(0)

    @property
    def size(self) -> int:
        return self.matrix.shape[1]

    def of_text(self, text: str) -> torch.Tensor:
        """Return the vector [size] of an English text; where no word is known, the typical one's opposite."""
        known = [self.index[word] for word in self._words(text)]
        return torch.nn.functional.normalize(self.rarity[known] @ self.matrix[known], dim=0) - self.typical

    def _words(self, text: str) -> list[str]:
        return [word for word in WORD.findall(text.lower()) if word in self.index]
