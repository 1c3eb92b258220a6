"""The six distances of URIEL between languages.

See Littell et al. 2017, "URIEL and lang2vec: Representing languages as typological, geographical, and phylogenetic
vectors". A distance compares two feature vectors u and v. By default it is the angular distance of URIEL+ (Khan et al.
2024), ``2 arccos(cos(u, v)) / pi``, from 0 to 1; the other formula is ``1 - cos(u, v)``.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_spt.common.errors import UserError

KINDS = {
    "syntactic": ("typology", "S_"),
    "phonological": ("typology", "P_"),
    "inventory": ("typology", "INV_"),
    "featural": ("typology", ""),
    "genetic": ("family", ""),
    "geographic": ("geography", ""),
}
"""Each distance with its table of features and the prefix of the features' names."""

LIBRARIES = ("lang2vec", "urielplus")
FORMULAS = {"angular": "2 arccos(cosine) / pi", "cosine": "1 - cosine"}

NEAR_CODES = {
    "lvs": "lav",  # Standard Latvian: Latvian, its macro-language
    "ltg": "lav",  # Latgalian: Latvian
    "nno": "nor",  # Norwegian Nynorsk: Norwegian, its macro-language
    "nob": "nor",  # Norwegian Bokmål: Norwegian
    "nqo": "emk",  # N'Ko, a written standard of the Manding languages: Eastern Maninkakan, the nearest of them
    "twi": "aka",  # Twi: Akan, its macro-language
    "zho": "cmn",  # Chinese: Mandarin
    "ory": "ori",  # Odia: its macro-language; as the next, needed for the typology of urielplus alone
    "pbt": "pus",  # Southern Pashto: Pashto, its macro-language
}
"""ISO 639-3 codes of SIB-200 for which the tables hold nothing, or only the family's name, and their stand-ins."""

ISOLATES = {"eus": "Basque"}
"""Isolates that URIEL's tree lacks, and the names of their families. They get a node of their own, as the tree has for
other isolates such as Korean, and so are at distance 1 from all other languages."""


@dataclass(frozen=True)
class Distances:
    """Distances from one language to others.

    Attributes:
        source: the code of the one language, such as ``eng_Latn``.
        values: kind (see :data:`KINDS`) to language to distance; a language without a distance is absent.
        missing: kind to the targets without a distance.
        stand_ins: language to the ISO 639-3 code whose features were used instead for at least one of the kinds.
        method: the formula, the feature sets, the library and its version, in words.
    """

    source: str
    values: Mapping[str, Mapping[str, float]]
    missing: Mapping[str, Sequence[str]]
    stand_ins: Mapping[str, str]
    method: str

    def vector(self, kind: str, languages: Sequence[str]) -> np.ndarray:
        """Return the distances of `languages`, NaN for a missing one: `[languages]`."""
        return np.array([self.values[kind].get(language, np.nan) for language in languages])


def distances(source: str, targets: Iterable[str], formula: str = "angular", library: str = "lang2vec") -> Distances:
    """Measure the six distances.

    Args:
        source: a language's code that begins with its ISO 639-3 code, such as ``eng_Latn``.
        targets: codes of other languages. The script makes no difference.
        formula: ``angular`` or ``cosine``.
        library: ``lang2vec``: its feature vectors; if the installed version has precomputed distances and the formula
            is angular, these. ``urielplus``: the newer database, whose typological vectors are compared on the features
            that both languages have.

    Raises:
        UserError: the formula or the library is unknown, or the library is not installed.
    """
    if formula not in FORMULAS:
        raise UserError(f"unknown distance formula {formula!r}: expected {' or '.join(FORMULAS)}")
    if library not in LIBRARIES:
        raise UserError(f"unknown library of distances {library!r}: expected {' or '.join(LIBRARIES)}")
    targets = list(targets)
    languages = list(dict.fromkeys(code.partition("_")[0] for code in (source, *targets)))
    stand_ins: dict[str, str] = {}
    if library == "lang2vec" and formula == "angular" and (_data() / "distances2.zip").is_file():
        measured = _precomputed(languages, stand_ins)
        method = "precomputed by"
    else:
        table = (lambda name: _urielplus()[name]) if library == "urielplus" else _lang2vec
        measured = {kind: _measure(table(KINDS[kind][0]), kind, languages, formula, stand_ins) for kind in KINDS}
        method = f"of {FEATURE_SETS[library]} in"
    method = f"{formula}, {FORMULAS[formula]}, {method} {library} {importlib.metadata.version(library)}"
    values = {
        kind: {code: by_iso[iso] for code in targets if (iso := code.partition("_")[0]) in by_iso}
        for kind, by_iso in measured.items()
    }
    return Distances(
        source,
        values,
        {kind: [code for code in targets if code not in by_code] for kind, by_code in values.items()},
        {code: stand_ins[iso] for code in (source, *targets) if (iso := code.partition("_")[0]) in stand_ins},
        method,
    )


def family_nodes(languages: Iterable[str]) -> dict[str, list[str]]:
    """Return the nodes of URIEL's family tree above each language, the family first.

    Args:
        languages: ISO 639-3 codes. A code that the tree lacks has the nodes of its stand-in (:data:`NEAR_CODES`), or
            none.
    """
    table = _lang2vec("family")
    members = _members()
    nodes = {}
    for language in languages:
        code = table.code(language)
        above = np.flatnonzero(table.values[table.rows[code]] == 1).tolist() if code else []
        above.sort(key=lambda node: -members[node])  # a node further up holds more languages
        nodes[language] = [table.names[node].removeprefix("F_") for node in above]
    return nodes


def nearest(languages: Sequence[str], count: int) -> dict[str, list[list[tuple[int, float]]]]:
    """Find each language's nearest among `languages`, by lang2vec's feature vectors and the angular distance.

    Args:
        languages: codes that begin with ISO 639-3's.
        count: how many.

    Returns:
        For each kind (see :data:`KINDS`), in the order of `languages`, the positions in `languages` of the nearest and
        their distances, the nearest first. Of those equally near, the geographically nearer come first.
    """
    codes = [code.partition("_")[0] for code in languages]
    tables = {kind: _matrix(_lang2vec(KINDS[kind][0]), kind, codes, codes) for kind in KINDS}
    found = {}
    for kind, matrix in tables.items():
        orders = np.lexsort((tables["geographic"], matrix))  # NaN comes last
        found[kind] = [
            [(int(other), float(row[other])) for other in order if other != own and not np.isnan(row[other])][:count]
            for own, (order, row) in enumerate(zip(orders, matrix, strict=True))
        ]
    return found


def coordinates(languages: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Return where languages are spoken, as one point each: latitude and longitude in degrees.

    A vector of ``geo`` holds the distances (as shares of half the globe's girth) from 299 points, which the names of
    the features give. The cosine of a distance is the product of two vectors of length 1 from the globe's centre, so
    that the language's follows by least squares.

    Args:
        languages: ISO 639-3 codes. A language whose place is not known is absent.
    """
    table = _lang2vec("geography")
    latitude, longitude = np.radians([list(map(float, name.split("_")[1:])) for name in table.names]).T
    points = np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], 1)
    codes = {language: code for language in languages if (code := table.code(language))}
    angles = np.pi * table.values[[table.rows[code] for code in codes.values()]].astype(np.float64)
    places = np.linalg.lstsq(points, np.cos(angles).T, rcond=None)[0].T
    return {
        language: (round(math.degrees(math.atan2(z, math.hypot(x, y))), 2), round(math.degrees(math.atan2(y, x)), 2))
        for language, (x, y, z) in zip(codes, places, strict=True)
        if abs(math.hypot(x, y, z) - 1) < 0.05  # or the vector holds no distances
    }


@dataclass(frozen=True)
class _Table:
    """Features `[languages, features]`, -1 where unknown, with the codes of the rows and the names of the columns."""

    rows: Mapping[str, int]
    names: Sequence[str]
    values: np.ndarray

    def code(self, language: str) -> str | None:
        """The code whose features are used for `language`: its own, its stand-in's, or None."""
        near = NEAR_CODES.get(language)
        for code, least in ((language, 2 if near else 1), (near or language, 1)):
            # If a language with a stand-in has one feature only, that is the name of its family.
            if code in self.rows and (self.values[self.rows[code]] > 0).sum() >= least:
                return code
        return None


def _measure(
    table: _Table, kind: str, languages: Sequence[str], formula: str, stand_ins: dict[str, str]
) -> dict[str, float]:
    """Distances of `languages` from the first of them. Stand-ins that were used are added to `stand_ins`."""
    for language in languages:
        if (code := table.code(language)) not in (None, language):
            stand_ins[language] = str(code)
    row = _matrix(table, kind, languages[:1], languages, formula)[0]
    return {language: float(value) for language, value in zip(languages, row, strict=True) if not np.isnan(value)}


def _matrix(
    table: _Table, kind: str, starts: Sequence[str], languages: Sequence[str], formula: str = "angular"
) -> np.ndarray:
    """Distances `[starts, languages]`, each on the features that both have; NaN where there are none."""
    columns = [column for column, name in enumerate(table.names) if name.startswith(KINDS[kind][1])]

    def features(of: Sequence[str]) -> np.ndarray:
        codes = [table.code(language) for language in of]
        unknown = np.full(len(columns), -1)
        return np.array([unknown if code is None else table.values[table.rows[code]][columns] for code in codes], float)

    u, v = features(starts), features(languages)
    known_u, known_v = (u >= 0).astype(float), (v >= 0).astype(float)
    u, v = u * known_u, v * known_v
    with np.errstate(invalid="ignore"):  # without a shared feature
        cosines = np.clip(u @ v.T / np.sqrt((u**2 @ known_v.T) * (known_u @ (v**2).T)), -1, 1)
    return np.round(1 - cosines if formula == "cosine" else 2 * np.arccos(cosines) / math.pi, 6)


def _data() -> Path:
    """The folder of lang2vec's data.

    The files are read directly: lang2vec's own functions need ``pkg_resources``, which setuptools no longer has, and
    take seconds to look up the features' names.
    """
    try:
        # Not by an import: the commands installed beside the script lang2vec.py would import that script instead.
        return Path(str(importlib.metadata.distribution("lang2vec").locate_file("lang2vec/data")))
    except ModuleNotFoundError:
        raise UserError("the distances need lang2vec: pip install lang2vec") from None


FEATURE_SETS = {
    "lang2vec": "the feature vectors syntax_knn, phonology_knn, inventory_knn, all three (featural), fam (genetic), "
    "geo (geographic)",
    "urielplus": "the feature vectors as shipped (the union of the sources, nothing imputed), on the features that are "
    "known of both languages,",
}


@functools.cache
def _lang2vec(name: str) -> _Table:
    """A table of lang2vec. The typology is its knn set: values without a source are predicted from other languages."""
    files = {"typology": "feature_predictions", "family": "family_features", "geography": "geocoord_features"}
    with (_data() / f"{files[name]}.npz").open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
        return _table(arrays["langs"], arrays["feats"], arrays["data"])


@functools.cache
def _members() -> np.ndarray:
    """How many languages are below each node of the family tree `[nodes]`."""
    return (_lang2vec("family").values == 1).sum(axis=0)


@functools.cache
def _urielplus() -> dict[str, _Table]:
    """urielplus's tables."""
    level, handlers = logging.root.level, logging.root.handlers[:]
    try:
        from urielplus.urielplus import URIELPlus
    except ImportError:
        raise UserError("these distances need urielplus: pip install 'lm_eval_spt[uriel]'") from None
    finally:  # importing it configures the root logger
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
    uriel = URIELPlus()
    return {
        name: _table(uriel.langs[position], uriel.feats[position], uriel.data[position])
        for position, name in enumerate(("family", "typology", "geography"))
    }


def _table(languages: Iterable[Any], features: Iterable[Any], data: np.ndarray) -> _Table:
    """Make a table of data `[languages, features, sources]`: the union of the sources, and a node for each isolate."""
    rows = {str(language): row for row, language in enumerate(languages)}
    names = [str(feature) for feature in features]
    values = data[:, :, 0] if data.shape[2] == 1 else data.max(axis=2)
    for isolate, family in ISOLATES.items():
        if (values[rows[isolate]] == 0).all():
            values = np.hstack([values, np.zeros((len(rows), 1), dtype=values.dtype)])
            values[rows[isolate], -1] = 1
            names.append(f"F_{family}")
    return _Table(rows, names, values)


def _precomputed(languages: Sequence[str], stand_ins: dict[str, str]) -> dict[str, dict[str, float]]:
    """Distances of `languages` from the first of them, from the table that some versions of lang2vec have."""
    try:
        from lang2vec import lang2vec
    except ImportError as error:
        raise UserError(f"lang2vec can not be imported ({error}): try pip install 'setuptools<81'") from error
    codes = {}
    for language in languages:
        near = NEAR_CODES.get(language, language)
        if language in lang2vec.DISTANCE_LANGUAGES:
            codes[language] = language
        elif near in lang2vec.DISTANCE_LANGUAGES:
            codes[language] = stand_ins[language] = near
    start = codes.get(languages[0])
    if start is None:
        return {kind: {} for kind in KINDS}
    # For two languages lang2vec would return a number instead of a table.
    tables = {kind: lang2vec.distance(kind, [start, start, *codes.values()]) for kind in KINDS}
    return {kind: dict(zip(codes, map(float, table[0, 2:]), strict=True)) for kind, table in tables.items()}
