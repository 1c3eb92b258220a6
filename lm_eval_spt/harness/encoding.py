"""From (context, continuation) texts to token ids, as the harness encodes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

SURROGATE = re.compile("[\ud800-\udfff]")

TEXTS_AT_ONCE = 1000
"""How many texts the tokenizer gets in one call: of all at once it would keep too much."""


def whole_characters(text: str) -> str:
    """Return a text without halves of surrogate pairs, which tokenizers do not take: U+FFFD stands for them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if SURROGATE.search(text) else text


@dataclass(frozen=True)
class PairEncoder:
    """Encodes pairs of texts.

    Attributes:
        tokenizer: the base model's.
        prefix_token_id: what stands for an empty context: the BOS token, or what the harness takes in its place.
        add_bos_token: whether contexts begin with the BOS token; None leaves it to the tokenizer.
        causal: whether context and continuation are one sequence; for an encoder-decoder model they are two.
    """

    tokenizer: PreTrainedTokenizerBase
    prefix_token_id: int
    add_bos_token: bool | None
    causal: bool

    def encode(self, pairs: Sequence[tuple[str, str]], placement: str) -> list[tuple[list[int], list[int]]]:
        """Return the token ids of (context, continuation) pairs.

        As the harness encodes them: both together, an empty context becoming the BOS token, white space at the
        context's end going to the continuation. A prompt with a part after the text comes between the two, so that
        they are encoded separately and nothing merges across it; so are an encoder's and a decoder's tokens. Texts
        that occur again are encoded once.

        Args:
            pairs: texts.
            placement: of the prompt; ``prefix`` where there is none.
        """
        parts = []
        for context, continuation in pairs:
            text = context.rstrip()
            parts.append((text, context[len(text) :] + continuation))
        together = placement == "prefix" and self.causal
        contexts = self._encode_texts(text for text, _ in parts)
        wholes = self._encode_texts(text + continuation for text, continuation in parts if together and text)
        alone = self._encode_texts((rest for text, rest in parts if not together or not text), special=False)

        encoded = []
        for text, continuation in parts:
            if not text:
                start, rest = [self.prefix_token_id], alone[continuation]
                if rest[:1] == start:
                    rest = rest[1:]
            elif together:
                start = contexts[text]
                rest = wholes[text + continuation][len(start) :]
            else:
                start, rest = contexts[text], alone[continuation]
            encoded.append((start, rest))

        # A continuation that merges into the context's last token would leave nothing to score.
        merged = [index for index, (_, rest) in enumerate(encoded) if not rest and parts[index][1]]
        alone = self._encode_texts((parts[index][1] for index in merged), special=False)
        for index in merged:
            encoded[index] = (encoded[index][0], alone[parts[index][1]])
        return encoded

    def token_at_the_end(self) -> str | None:
        """Return the special token, such as EOS, that the tokenizer puts behind every text; None where it puts none."""
        with_special, alone = (self._encode_texts(["a"], special)["a"] for special in (None, False))
        return None if with_special[-1:] == alone[-1:] else str(self.tokenizer.decode(with_special[-1:]))

    def _encode_texts(self, texts: Iterable[str], special: bool | None = None) -> dict[str, list[int]]:
        """Return the token ids of every text, as HFLM's `tok_encode` does.

        Args:
            texts: those that occur again are encoded once.
            special: whether special tokens are added; None: as `add_bos_token` says, and never to a text that begins
                with the BOS token already.
        """
        bos = str(self.tokenizer.decode(self.prefix_token_id))
        ordinary: list[str] = []
        begun: list[str] = []
        for text in dict.fromkeys(texts):
            (begun if special is None and text.startswith(bos) else ordinary).append(text)
        encoded: dict[str, list[int]] = {}
        for group, wanted in ((ordinary, self.add_bos_token if special is None else special), (begun, False)):
            options = {} if wanted is None else {"add_special_tokens": wanted}
            for start in range(0, len(group), TEXTS_AT_ONCE):
                part = group[start : start + TEXTS_AT_ONCE]
                whole = [whole_characters(text) for text in part]
                ids = self.tokenizer(whole, return_attention_mask=False, **options)["input_ids"]
                encoded |= zip(part, ids, strict=True)
        return encoded
