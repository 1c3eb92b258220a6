"""The prepared corpus: what ``prepare`` writes and ``pretrain`` reads, one JSON object a line.

groups.jsonl      {"source": "ntrex", "texts": {"eng": ..., "deu": ...}}    texts that are translations of each other
single.jsonl      {"language": "deu", "text": ...}                          texts without a translation
chains.jsonl      {"eng": "river", "deu": "Fluss", ...}                     words of one meaning
dictionary.json   {"deu": {"river": [["Fluss", "Flusses"], ["Strom"]]}}     from English, in all forms
labelled.jsonl    {"topic": "geography", "text": ...}                       English sentences with topics
vectors.json      {"river": [0.12, -0.3, ...]}                              of the English words in these texts
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import write

# The last groups of this source are held out: they tell how well translations find each other.
HELD_OUT_SOURCE, HELD_OUT = "ntrex", 96


@dataclass
class Group:
    """Texts that are translations of each other, by language."""

    source: str
    texts: dict[str, str]


@dataclass
class Corpus:
    """Everything that the model learns from, but for the word lists of the topics."""

    groups: list[Group]
    single: dict[str, list[str]]
    chains: list[dict[str, str]]
    dictionary: dict[str, dict[str, list[list[str]]]]
    labelled: list[tuple[str, str]]
    vectors: dict[str, list[float]]

    def split(self) -> tuple[list[Group], list[Group]]:
        """Return (groups to learn from, held-out groups), without what the held-out English texts repeat."""
        candidates = [group for group in self.groups if group.source == HELD_OUT_SOURCE]
        held_out = candidates[-min(HELD_OUT, len(candidates) // 4) :] if len(candidates) >= 4 else []
        seen = {group.texts.get("eng") for group in held_out} - {None}
        chosen = {id(group) for group in held_out}
        return [g for g in self.groups if id(g) not in chosen and g.texts.get("eng") not in seen], held_out

    def save(self, folder: Path) -> None:
        """Write the corpus files into `folder`."""
        single = [{"language": language, "text": text} for language, texts in self.single.items() for text in texts]
        files: dict[str, Sequence[object]] = {
            "groups": [{"source": group.source, "texts": group.texts} for group in self.groups],
            "single": single,
            "chains": self.chains,
            "labelled": [{"topic": topic, "text": text} for topic, text in self.labelled],
        }
        for name, records in files.items():
            lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
            write(folder / f"{name}.jsonl", "".join(lines).encode())
        for name, content in (("dictionary", self.dictionary), ("vectors", self.vectors)):
            write(folder / f"{name}.json", json.dumps(content, ensure_ascii=False).encode())

    @classmethod
    def load(cls, folder: Path) -> Corpus:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: a file is missing or is not what it should be.
        """
        try:
            single: dict[str, list[str]] = {}
            for record in _lines(folder / "single.jsonl"):
                single.setdefault(record["language"], []).append(record["text"])
            return cls(
                [Group(record["source"], record["texts"]) for record in _lines(folder / "groups.jsonl")],
                single,
                _lines(folder / "chains.jsonl"),
                json.loads((folder / "dictionary.json").read_text(encoding="utf-8")),
                [(record["topic"], record["text"]) for record in _lines(folder / "labelled.jsonl")],
                json.loads((folder / "vectors.json").read_text(encoding="utf-8")),
            )
        except FileNotFoundError as error:
            raise UserError(
                f"{error.filename}: there is no such file: write the corpus with recipes.mini_model.prepare"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder}: not a corpus that recipes.mini_model.prepare wrote ({error})") from None


def _lines(path: Path) -> list[Any]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
