"""Several prompts of one base model whose answers are averaged: ``prompt=a.safetensors+b.safetensors``.

It looks like a prompt to whoever names, records and compares prompts. Its answers come from
:class:`~lm_eval_spt.harness.many_prompts.ManyPromptsLM`.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.grouped import log_sums
from lm_eval_spt.prompt.metadata import scored_documents
from lm_eval_spt.prompt.soft_prompt import SoftPrompt, size_in_words

Average = Literal["probability", "log_probability"]
"""What is averaged: the probabilities of a document's choices, or the log-likelihoods of their tokens."""

COMMON = (
    "base_model",
    "base_model_revision",
    "embedding_fingerprint",
    "gguf_file",
    "gguf_sha256",
    "task_type",
    "prompt_kind",
)
"""Entries of the first member that has them."""
SHARED = ("tasks", "source_languages", "shots", "training_documents", "label_counts", "hyperparameters")
"""Entries of the members' records that the ensemble has where they all agree."""


@dataclass(frozen=True)
class Ensemble:
    """Several prompts, and how their answers become one.

    Attributes:
        members: two or more prompts of one base model.
        average: ``probability``: the mean over the members of the choices' probabilities, each member's summing to 1
            over a document's choices; ``log_probability``: the mean of their log-likelihoods.

    Raises:
        UserError: fewer than two members, the same one twice, or members that do not go together.
    """

    members: tuple[SoftPrompt, ...]
    average: Average = "probability"

    def __post_init__(self) -> None:
        if self.average not in get_args(Average):
            raise UserError(f"ensemble is {self.average!r}, expected {' or '.join(map(repr, get_args(Average)))}")
        if len({member.digest for member in self.members}) < max(2, len(self.members)):
            names = ", ".join(repr(member.name) for member in self.members) or "none"
            raise UserError(f"an ensemble has two prompts or more, each once: found {names}")
        for key in ("base_model", "embedding_fingerprint"):
            known = {member.metadata[key] for member in self.members if member.metadata.get(key) is not None}
            if len(known) > 1:
                shown = ", ".join(sorted(str(value)[:60] for value in known))
                raise UserError(f"the prompts of an ensemble have different entries of {key} ({shown}): expected one")
        sizes = sorted({size_in_words(member.size) for member in self.members})
        if len(sizes) > 1:
            raise UserError(f"the prompts of an ensemble have {' and '.join(sizes)}: expected one kind and size")

    @property
    def name(self) -> str:
        """The members' names, or how many there are where that would be long."""
        return name_of([member.name for member in self.members])

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of all that can change a score; the members' order does not."""
        return digest_of([member.digest for member in self.members], self.average)

    @property
    def base_model(self) -> str | None:
        """See :attr:`SoftPrompt.base_model`."""
        return next((name for member in self.members if (name := member.base_model) is not None), None)

    def loading(self, pretrained: Any = None) -> dict[str, Any]:
        """See :meth:`SoftPrompt.loading`.

        Raises:
            UserError: the members need the base model in different ways.
        """
        base = {"pretrained": self.base_model if pretrained is None else pretrained}
        found = [member.loading(pretrained) | base for member in self.members]
        if any(other != found[0] for other in found):
            raise UserError(
                f"the prompts of the ensemble {self.name!r} were trained with different settings of loading"
            )
        return found[0]

    @property
    def placement(self) -> str:
        """The members' placement; the first one's where they differ."""
        return self.members[0].placement

    @property
    def length(self) -> int:
        """Virtual tokens of all members."""
        return sum(member.length for member in self.members)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the members' records have in common, and under ``ensemble`` who they are."""
        return record_of([(member.name, member.digest, member.metadata) for member in self.members], self.average)


def name_of(names: Sequence[str]) -> str:
    """Return an ensemble's name, from its members'."""
    joined = "+".join(names)
    return joined if len(joined) <= 80 else f"{names[0]}+{len(names) - 1}"


def digest_of(digests: Iterable[str], average: Average) -> str:
    """Return an ensemble's digest, from its members'."""
    return hashlib.sha256(json.dumps([average, *sorted(digests)]).encode()).hexdigest()


def record_of(members: Sequence[tuple[str, str, Mapping[str, Any]]], average: Average) -> dict[str, Any]:
    """Return an ensemble's record, from the name, the digest and the record of each member."""
    records = [record for _, _, record in members]
    known = {key: value for key in COMMON for record in records if (value := record.get(key)) is not None}
    for key in SHARED:
        values = [_without_seeds(record.get(key)) for record in records]
        if values[0] is not None and all(value == values[0] for value in values):
            known[key] = values[0]
    tuned = [record.get("tuned_parameters") for record in records]
    if None not in tuned:
        known["tuned_parameters"] = sum(tuned)
    if counts := scored_documents(records):
        known["scored_documents"] = counts
    named = [{"name": name, "digest": digest} for name, digest, _ in members]
    return known | {"ensemble": {"average": average, "members": named}}


def combine(values: NDArray[np.float64], groups: NDArray[np.int64], average: Average) -> NDArray[np.float64]:
    """Return the log-likelihoods of an ensemble.

    Args:
        values: `[members, requests]`, log-likelihoods.
        groups: `[requests]`, which requests are the choices of one document, as whole numbers from 0.
        average: see :attr:`Ensemble.average`.

    Returns:
        `[requests]`. With ``probability`` it is the logarithm of the mean probability, plus the mean over the members
        of the logarithm of their choices' summed likelihoods: the same for all choices of a document, and such that a
        member alone would give its own log-likelihoods.
    """
    if average == "log_probability":
        return np.asarray(values.mean(axis=0))
    totals = np.stack([log_sums(of_member, groups) for of_member in values])
    normalized = values - totals[:, groups]
    best = normalized.max(axis=0)
    mean = best + np.log(np.exp(normalized - best).mean(axis=0))
    return np.asarray(mean + totals.mean(axis=0)[groups])


def _without_seeds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: entry for key, entry in value.items() if key not in ("seed", "shots_seed")}
    return value


def names_several(name: object) -> bool:
    """Tell whether a name is that of an ensemble: files joined by ``+``, or a pattern of files."""
    if not isinstance(name, str) or os.path.exists(name):
        return False
    return glob.has_magic(name) or len(split_names(name)) > 1


def split_names(name: str) -> list[str]:
    """Return the names that are joined by ``+``; a file, or a pattern of files, with a plus in its own name is one."""
    return [name] if os.path.exists(name) or glob.glob(name) else name.split("+")


def matching_names(name: str) -> list[str]:
    """Return the prompt files that a pattern matches; a name that is none is returned as it is.

    Raises:
        UserError: no file matches.
    """
    matching = sorted(glob.glob(name)) if glob.has_magic(name) and not os.path.exists(name) else [name]
    if not matching:
        raise UserError(f"no prompt file matches {name!r}")
    return matching


def read_prompt(name: str, average: str | None = None) -> SoftPrompt | Ensemble:
    """Read a prompt, or an ensemble of prompts.

    Args:
        name: what :meth:`SoftPrompt.from_pretrained` takes; several of those joined by ``+``; patterns of files.
        average: of an ensemble; default: ``probability``.

    Raises:
        UserError: a prompt can not be read, no file matches, or `average` is given for one prompt.
    """
    if not names_several(name):
        if average is not None:
            raise UserError(f"ensemble={average} was given, but {name!r} is one prompt: join several by '+'")
        return SoftPrompt.from_pretrained(name)
    members = [SoftPrompt.from_pretrained(each) for part in split_names(name) for each in matching_names(part)]
    return Ensemble(tuple(members), average or "probability")  # type: ignore[arg-type]  # checked there


def members_of(prompts: Sequence[SoftPrompt | Ensemble]) -> list[SoftPrompt]:
    """Return all single prompts, the members of ensembles among them, each once."""
    singles = [
        member for prompt in prompts for member in (prompt.members if isinstance(prompt, Ensemble) else [prompt])
    ]
    return list({single.digest: single for single in singles}.values())
