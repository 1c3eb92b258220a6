#!/usr/bin/env python
"""Train the tokenizer: byte-level BPE, with about the same number of characters from every language but English.

python -m recipes.mini_model.tokenizer --corpus corpus --output tokenizer
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lm_eval_spt.common.errors import show_user_errors_in_one_line
from recipes.mini_model.corpus import Corpus
from recipes.mini_model.languages import SOURCE, TOPICS

# Characters; Chinese says in one what others say in three.
BUDGET, BUDGETS = 1_300_000, {SOURCE: 6_000_000, "zho": 500_000}
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
# Words with their combining marks, up to three digits, runs of signs, white space; a space goes with what follows it.
PIECES = r" ?[\p{L}\p{M}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"


def train_tokenizer(corpus: Corpus, vocabulary: int, seed: int = 0) -> PreTrainedTokenizerFast:
    """Return a tokenizer with `vocabulary` tokens, in which each topic's first word is a single one."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(corpus, random.Random(seed)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=512, clean_up_tokenization_spaces=False, **SPECIAL
    )


def _texts(corpus: Corpus, rng: random.Random) -> Iterator[str]:
    """Yield each language's texts up to its budget, and the words of questions and answers until they are tokens."""
    for _ in range(3000):
        yield " " + " ".join(TOPICS).replace("/", " ") + " topic Topic category Category keywords Keywords\n"
    by_language = {language: list(texts) for language, texts in corpus.single.items()}
    for group in corpus.groups:
        for language, text in group.texts.items():
            by_language.setdefault(language, []).append(text)
    for language, texts in sorted(by_language.items()):
        rng.shuffle(texts)
        used = 0
        for text in texts:
            yield text
            used += len(text)
            if used > BUDGETS.get(language, BUDGET):
                break


def main() -> int:
    show_user_errors_in_one_line()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--corpus", type=Path, default=Path("corpus"), help="folder that recipes.mini_model.prepare wrote"
    )
    parser.add_argument("--output", type=Path, default=Path("tokenizer"), help="folder for the tokenizer")
    parser.add_argument("--vocabulary", type=int, default=20480, help="number of tokens")
    arguments = parser.parse_args()
    train_tokenizer(Corpus.load(arguments.corpus), arguments.vocabulary).save_pretrained(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
