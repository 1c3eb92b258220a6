#!/usr/bin/env python
"""Embeddings to start pre-training from, in which translations are close.

python -m recipes.mini_model.embeddings --corpus corpus --tokenizer tokenizer --output embeddings.pt

Tokens of every language are described by the English texts of the groups that they occur in, in two ways: by these
texts' tokens, of whose positive pointwise mutual information a truncated singular value decomposition is made (Levy and
Goldberg 2014, for words and their neighbours), and by the mean of these texts' vectors (word_vectors.py).
"""

from __future__ import annotations

import argparse
import io
import logging
import sys
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lm_eval_spt.common.errors import show_user_errors_in_one_line
from lm_eval_spt.common.files import write
from recipes.mini_model.corpus import Corpus, Group
from recipes.mini_model.languages import SOURCE
from recipes.mini_model.word_vectors import WordVectors

logger = logging.getLogger(__name__)

# Groups of these sources count less: their sentences are many and short.
GROUP_WEIGHTS = {"tatoeba": 0.5}
RARE = 5.0  # added to a token's count, so that tokens seen a few times are not all special
SCALE = 0.6  # length of the typical embedding


def cross_lingual_embeddings(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, size: int, fewest: int = 40, seed: int = 0
) -> torch.Tensor:
    """Return embeddings [vocabulary, size] of length about :data:`SCALE`; those of tokens never seen are noise alone.

    As many coordinates as a word vector has come from these, the others from the tokens; then all are rotated.

    Arguments:
        corpus: its groups that have English, but for the held-out ones, are counted.
        tokenizer: decides on the tokens.
        size: of an embedding.
        fewest: groups in which an English token must occur to describe others.
        seed: of the decomposition's start, a rotation and the noise.
    """
    torch.manual_seed(seed)
    groups = [group for group in corpus.split()[0] if SOURCE in group.texts]
    counts = {english: _occurrences(groups, tokenizer, english) for english in (True, False)}
    everything = (counts[True] + counts[False]).minimum(1)
    frequency = np.asarray(counts[True].sum(0)).ravel()
    describing = np.flatnonzero((frequency >= fewest) & (frequency < 0.2 * len(groups)))
    weights = scipy.sparse.diags(np.array([GROUP_WEIGHTS.get(group.source, 1.0) for group in groups], dtype=np.float32))
    together = torch.from_numpy((everything.T @ (weights @ counts[True][:, describing])).toarray().astype(np.float32))

    expected = together.sum(0, keepdim=True) ** 0.75
    ratio = together / (together.sum(1, keepdim=True) + RARE) / (expected / expected.sum())
    information = torch.where(together > 1, ratio.clamp(min=1e-9).log().clamp(min=0), 0.0)
    by_vectors = _mean_vectors(corpus, groups, weights @ everything)
    rest = size - by_vectors.shape[1]
    left, values, _ = torch.svd_lowrank(information, q=min(rest + 32, *information.shape), niter=3)
    by_tokens = left[:, :rest] * values[:rest].sqrt()
    by_tokens = torch.nn.functional.pad(by_tokens, (0, rest - by_tokens.shape[1]))

    vectors = torch.cat([_like_lengths(by_tokens), _like_lengths(by_vectors)], 1) / 2**0.5
    # A random rotation, so that no coordinate carries the large singular values alone.
    rotation, _ = torch.linalg.qr(torch.randn(size, size))
    return SCALE * (vectors @ rotation + 0.15 * torch.randn_like(vectors) / size**0.5)


def _mean_vectors(corpus: Corpus, groups: list[Group], occurrences: scipy.sparse.csr_matrix) -> torch.Tensor:
    """Return for each token the mean vector [vocabulary, size] of the groups' English texts that it occurs in."""
    texts = [group.texts[SOURCE] for group in groups]
    word_vectors = WordVectors(
        corpus.vectors, [t for t, group in zip(texts, groups, strict=True) if group.source not in GROUP_WEIGHTS]
    )
    of_groups = torch.stack([word_vectors.of_text(text) for text in texts]).numpy()
    number = np.asarray(occurrences.sum(0)).reshape(-1, 1)
    return torch.from_numpy((occurrences.T @ of_groups / (number + RARE)).astype(np.float32))


def _like_lengths(vectors: torch.Tensor) -> torch.Tensor:
    """Return vectors of length about 1, a special token's longer than a common one's; zeros stay zeros."""
    norms = vectors.norm(dim=1, keepdim=True)
    seen = norms > 1e-4
    typical = norms[seen].median() if seen.any() else torch.tensor(1.0)
    return torch.where(seen, vectors / norms.clamp(min=1e-6) * (norms / typical).clamp(0.3, 1.7), 0.0)


def _occurrences(groups: list[Group], tokenizer: PreTrainedTokenizerBase, english: bool) -> scipy.sparse.csr_matrix:
    """Return which tokens [groups, vocabulary] occur in the English texts of each group, or in the others."""
    texts = [(i, text) for i, group in enumerate(groups) for language, text in group.texts.items()
             if (language == SOURCE) == english]  # fmt: skip
    tokens = tokenizer([text for _, text in texts], add_special_tokens=False)["input_ids"]
    rows = np.repeat([i for i, _ in texts], [len(row) for row in tokens])
    matrix = scipy.sparse.csr_matrix(
        (np.ones(len(rows), dtype=np.float32), (rows, np.concatenate([np.asarray(row, dtype=int) for row in tokens]))),
        shape=(len(groups), len(tokenizer)),
    )
    return matrix.minimum(1)


def main() -> int:
    show_user_errors_in_one_line()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--corpus", type=Path, default=Path("corpus"), help="folder that recipes.mini_model.prepare wrote"
    )
    parser.add_argument("--tokenizer", default="tokenizer", help="folder of the tokenizer")
    parser.add_argument("--output", type=Path, default=Path("embeddings.pt"), help="file to write")
    parser.add_argument("--size", type=int, default=256, help="hidden size of the model")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    vectors = cross_lingual_embeddings(Corpus.load(arguments.corpus), tokenizer, arguments.size)
    buffer = io.BytesIO()
    torch.save(vectors, buffer)
    write(arguments.output, buffer.getvalue())
    for word in (" health", " football", " travel"):
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        nearest = (torch.nn.functional.normalize(vectors, dim=1) @ vectors[ids[0]]).topk(12).indices
        logger.info("%r is near %s", word, [tokenizer.decode([i]) for i in nearest.tolist()])
    return 0


if __name__ == "__main__":
    sys.exit(main())
