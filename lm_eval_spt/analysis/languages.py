"""Languages: their codes, names, scripts, families and areas, and which base models saw them in pre-training.

A language has one code here, whatever a task or a user calls it: that of FLORES-200 where it has one (``swh_Latn`` for
``sw``, ``swa``, ``swh`` and ``Swahili``), and else the ISO 639-3 code with the script in which the language is likely
written. Any language of ISO 639-3 has one. The facts come from:

- codes, names and scripts: langcodes, which reads CLDR and IANA's registry of language subtags;
- family and branch: the ``fam`` features of lang2vec (Glottolog's tree as URIEL has it);
- macro areas of the languages of SIB-200: Glottolog 5 (CC BY 4.0), listed below;
- shares in pre-training: ``pretraining_share.csv``, published with the code of arXiv 2402.03782.
"""

from __future__ import annotations

import csv
import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_spt.analysis.distances import family_nodes
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.paths import tasks_folder

if TYPE_CHECKING:
    import langcodes

ENGLISH = "eng_Latn"

NAMES = {"prs": "Dari", "tgl": "Tagalog"}
"""langcodes takes these for Persian and Filipino, and names them so."""

SCRIPTS = {"Hans": "Han (simplified)", "Hant": "Han (traditional)"}

INDIVIDUAL = {"fil": "tgl", "nor": "nob"}
"""Further codes that stand for one of SIB-200: those of macro-languages are known to langcodes."""

NONE = ("und", "mul", "mis", "zxx")
"""Codes of no or several languages."""

COMMON = ("pcm", "fil")
"""Nigerian Pidgin and Filipino, which are neither and have more than 100 million speakers."""

MACRO_AREAS = {
    "Africa": "aeb afr aka amh ary arz bam bem cjk dik dyu ewe fon fuv gaz hau ibo kab kam kbp kea kik kin kmb knc kon "
    "lin lua lug luo mos nqo nso nus nya plt run sag sna som sot ssw swh taq tir tsn tso tum twi tzm umb wol xho yor "
    "zul",
    "North America": "hat",
    "Papunesia": "ace ban bjn bug ceb fij ilo ind jav min mri pag smo sun tgl tpi war",
    "South America": "ayr grn pap quy",
}
"""By ISO 639-3 code; all others of SIB-200 are in Eurasia. Glottolog has no area for the macro-languages est grn kon
srd zho: they have the area of their varieties."""

BRANCH_DEPTH = 4
"""How many nodes from the family down are searched for a branch: Austronesian divides at the third node."""

NOT_IN_THAT_SCRIPT = {"arb_Latn"}
"""Shares are given per language, but the pre-training data in Arabic are not in Latin letters."""

BLOOM_WITHOUT_SHARE = "lug nya pan run sot tsn tso"
"""Languages that BLOOM's model card names, and for which no share was published."""


@dataclass(frozen=True)
class Language:
    """A language in a script.

    Attributes:
        code: as in FLORES-200, such as ``swh_Latn``.
        iso639_3: its ISO 639-3 code, such as ``swh``.
        name: in English.
        script: its ISO 15924 code, such as ``Latn``.
        script_name: in English.
        family: the top node in Glottolog's tree, such as ``Indo-European``; empty if it is not known.
        branch: the first node below the family at which its languages in SIB-200 divide; empty if there is none.
        macro_area: Glottolog's, such as ``Papunesia``; empty for languages that are not in SIB-200.
        xglm_share: share of XGLM's pre-training data, of 1; None if it was not seen, or if no share was published.
        bloom_share: the same for BLOOM.
        seen_by: the base models ``xglm``, ``bloom`` and ``mini``, those that saw the language.
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


def language_code(text: str) -> str | None:
    """Return the code of a language; None if `text` is no language.

    Macro-languages stand for their main language, and retired codes for those that replace them, as langcodes has it.

    Args:
        text: its FLORES-200, ISO 639-1, ISO 639-2 or ISO 639-3 code, a language tag such as ``pt-BR`` or ``zh_TW``, or
            its English name.

    >>> language_code("sw"), language_code("swa_Latn"), language_code("Swahili"), language_code("zh-TW")
    ('swh_Latn', 'swh_Latn', 'swh_Latn', 'zho_Hant')
    """
    import langcodes

    text = text.strip()
    if text in _codes("sib200"):
        return text
    try:
        tag = langcodes.Language.get(text.replace("_", "-"), normalize=False)
        # Names of five to eight letters also have the form of a tag.
        if len(tag.language or "") in (2, 3) and _is_language(tag):
            return _code(str(tag.language), tag.script or _script_of_territory(tag))
    except langcodes.LanguageTagError:
        pass
    if own := {name.casefold(): iso639_3 for iso639_3, name in NAMES.items()}.get(text.casefold()):
        return _code(own, None)
    try:
        found = langcodes.find(text, "en") if len(text) > 3 else None
    except LookupError:
        return None
    return _code(str(found.language), found.script) if found and _is_exact(found, text) else None


def is_common(code: str) -> bool:
    """Whether a code is that of a language in SIB-200, or of one that also has a code of two letters.

    Args:
        code: of ISO 639, or from :func:`language_code`.
    """
    from langcodes.data_dicts import LANGUAGE_ALPHA3

    iso639 = code.partition("_")[0]
    return len(iso639) == 2 or iso639 in _scripts() or iso639 in LANGUAGE_ALPHA3.values() or iso639 in COMMON


def source_code(text: str) -> str:
    """Return the code of a language that the user names, such as with ``--source``.

    Raises:
        UserError: it is no language.
    """
    code = language_code(text)
    if code is None:
        raise UserError(f"{text!r} is no language: expected a code such as eng_Latn, eng or en, or an English name")
    return code


@functools.cache
def language(code: str) -> Language:
    """Return what is known of a language.

    Args:
        code: from :func:`language_code`.
    """
    import langcodes

    iso639_3, _, script = code.partition("_")
    in_sib200 = iso639_3 in _scripts()
    nodes = family_nodes([iso639_3])[iso639_3]
    areas = {language: area for area, languages in MACRO_AREAS.items() for language in languages.split()}
    shares = _shares().get(code, {})
    name = NAMES.get(iso639_3) or langcodes.Language.get(iso639_3).language_name()
    return Language(
        code,
        iso639_3,
        # Nepali (individual language) and the like are told from a macro-language that has no code here.
        iso639_3 if name.startswith("Unknown language") else name.removesuffix(" (individual language)"),
        script,
        SCRIPTS.get(script) or langcodes.Language.make(script=script).script_name(),
        nodes[0] if nodes else "",
        _branch(nodes),
        areas.get(iso639_3, "Eurasia") if in_sib200 else "",
        _number(shares.get("xglm_share")),
        _number(shares.get("bloom_share")),
        _seen_by(code),
    )


@functools.cache
def languages() -> dict[str, Language]:
    """Return the 205 languages of SIB-200 by code, in the order of the codes."""
    return {code: language(code) for code in _codes("sib200")}


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
    return frozenset(code for code in _codes("sib200") if family in _seen_by(code))


def _script_of_territory(tag: langcodes.Language) -> str | None:
    """The script of a language in a territory, if it is another one than elsewhere: of zh-TW and pa-PK."""
    import langcodes

    script = tag.maximize().script
    return script if tag.territory and script != langcodes.Language.get(str(tag.language)).maximize().script else None


def _is_language(tag: langcodes.Language) -> bool:
    import langcodes

    private = "qaa" <= str(tag.language) <= "qtz"
    script = tag.script is None or langcodes.Language.make(script=tag.script).is_valid()
    return langcodes.Language.get(str(tag.language)).is_valid() and script and not private and tag.language not in NONE


def _code(tag: str, script: str | None) -> str:
    """The code of a language by its ISO 639 code, in this script or else in the likely one."""
    import langcodes
    from langcodes.data_dicts import LIKELY_SUBTAGS, MACROLANGUAGES

    standard = langcodes.Language.get(tag)  # a retired code becomes its successor
    script = script or standard.script
    iso639_3 = _iso639_3(tag, script)
    scripts = _scripts().get(iso639_3, ())
    if script is None and len(scripts) == 1:
        script = scripts[0]
    if script is None:
        names = (standard.language, MACROLANGUAGES.get(tag))
        likely = next((name for name in names if name in LIKELY_SUBTAGS), standard.language)
        script = langcodes.Language.get(str(likely)).maximize().script
    return f"{iso639_3}_{script}"


def _iso639_3(tag: str, script: str | None) -> str:
    """The ISO 639-3 code of a language, if there is a choice that of SIB-200."""
    import langcodes
    from langcodes.data_dicts import MACROLANGUAGES, NORMALIZED_MACROLANGUAGES

    standard = langcodes.Language.get(tag)
    macro = langcodes.Language.get(NORMALIZED_MACROLANGUAGES.get(tag, tag))  # of cmn: zh
    for iso639_3 in (tag, standard.to_alpha3(), macro.to_alpha3()):
        if iso639_3 in _scripts():
            return iso639_3
    members = [
        iso639_3
        for iso639_3, scripts in _scripts().items()
        if MACROLANGUAGES.get(iso639_3) == standard.language and (script is None or script in scripts)
    ]
    main = [member for member in members if NORMALIZED_MACROLANGUAGES.get(member) == standard.language]
    other = standard.to_alpha3()
    return next(iter([*main, *members]), INDIVIDUAL.get(other, other))


def _is_exact(found: langcodes.Language, name: str) -> bool:
    """Whether langcodes found a language by its whole name: it takes "Darija" for Dari, which it begins with."""
    import langcodes

    if found.language_name().casefold() == name.casefold():
        return True
    try:
        return langcodes.find(name[:-1], "en") != found
    except LookupError:
        return True


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def _seen_by(code: str) -> tuple[str, ...]:
    shares = _shares().get(code, {})
    saw = {
        "xglm": shares.get("xglm_share"),
        "bloom": shares.get("bloom_share") or code[:3] in BLOOM_WITHOUT_SHARE.split(),
        "mini": code in _codes("mini_topics"),  # the demo task has the embedded model's languages
    }
    return tuple(model for model in saw if saw[model])


def _branch(nodes: Sequence[str]) -> str:
    """The first of the nodes above a language at which its family divides in SIB-200, if it is near the top.

    Otherwise the branch is the node right below the family; "" if there is none.
    """
    members = _members()
    dividing = [node for node in nodes[1:BRANCH_DEPTH] if members[node] < members[nodes[0]]]
    return next(iter([*dividing, *nodes[1:2]]), "")


@functools.cache
def _members() -> Counter[str]:
    """How many languages of SIB-200 are below each node of the family tree."""
    return Counter(node for path in family_nodes(_scripts()).values() for node in path)


@functools.cache
def _scripts() -> dict[str, list[str]]:
    """ISO 639-3 code to the scripts in which SIB-200 has the language."""
    scripts: dict[str, list[str]] = {}
    for iso639_3, script in (code.split("_") for code in _codes("sib200")):
        scripts.setdefault(iso639_3, []).append(script)
    return scripts


@functools.cache
def _codes(task: str) -> list[str]:
    return (tasks_folder() / task / "languages.txt").read_text(encoding="utf-8").split()


@functools.cache
def _shares() -> dict[str, dict[str, str]]:
    with (Path(__file__).parent / "pretraining_share.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {code: row for row in rows for code in row["sib200"].split() if code not in NOT_IN_THAT_SCRIPT}
