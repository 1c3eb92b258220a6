"""The languages of SIB-200: names, scripts, families, areas, and which base models saw them in pre-training.

The table is ``languages.csv`` beside this file; ``generate_languages.py`` writes it and names its sources.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

BASE_MODELS = ("xglm", "bloom", "mini")
"""Families of base models whose languages of pre-training are known."""


@dataclass(frozen=True)
class Language:
    """A language in a script.

    Attributes:
        code: as in FLORES-200, such as ``swh_Latn``.
        iso639_3: its ISO 639-3 code, such as ``swh``.
        name: in English.
        script: its ISO 15924 code, such as ``Latn``.
        script_name: in English.
        family: the top node in Glottolog's tree, such as ``Indo-European``.
        branch: the first node below the family at which its languages in SIB-200 divide; empty if there is none.
        macro_area: Glottolog's, such as ``Papunesia``.
        xglm_share: share of XGLM's pre-training data, of 1; None if it was not seen, or if no share was published.
        bloom_share: the same for BLOOM.
        seen_by: the families of :data:`BASE_MODELS` that saw the language.
    """

    code: str
    iso639_3: str
    name: str
    script: str
    script_name: str
    family: str
    branch: str
    macro_area: str
    xglm_share: float | None
    bloom_share: float | None
    seen_by: tuple[str, ...]


@functools.cache
def languages() -> dict[str, Language]:
    """Return the languages by code, in the order of the codes."""
    with (Path(__file__).parent / "languages.csv").open(encoding="utf-8", newline="") as file:
        return {row["code"]: _language(row) for row in csv.DictReader(file)}


def seen_by(base_model: str | None) -> frozenset[str] | None:
    """Return the codes of the languages that a base model saw in pre-training; None if that is not known.

    Args:
        base_model: such as ``bigscience/bloom-560m``; its family is read from its name.
    """
    name = (base_model or "").rstrip("/").rpartition("/")[2].lower()
    # By their beginnings, as BLOOMZ was pre-trained as BLOOM; but other models may be called mini-something.
    prefixes = (prefix for prefix in ("xglm", "bloom") if name.startswith(prefix))
    family = "mini" if name == "mini" else next(prefixes, None)
    if family is None:
        return None
    return frozenset(code for code, language in languages().items() if family in language.seen_by)


def _language(row: dict[str, str]) -> Language:
    shares = {key: float(row[key]) if row[key] else None for key in ("xglm_share", "bloom_share")}
    texts = {key: row[key] for key in row if key not in (*shares, "seen_by")}
    return Language(**texts, **shares, seen_by=tuple(row["seen_by"].split()))  # type: ignore[arg-type]
