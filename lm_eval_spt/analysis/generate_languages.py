"""Write ``languages.csv``, the table of the languages of SIB-200.

    python -m lm_eval_spt.analysis.generate_languages

It needs a checkout (``tasks/*/languages.txt``) and langcodes with its data. The sources are:

- names and scripts: langcodes, which reads them from CLDR and IANA's registry of language subtags;
- family and branch: the ``fam`` features of lang2vec (Glottolog's tree as URIEL has it);
- macro area: Glottolog 5 (CC BY 4.0), listed below;
- shares in pre-training: ``pretraining_share.csv``, published with the code of arXiv 2402.03782.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from langcodes import Language

from lm_eval_spt.analysis.distances import family_nodes
from lm_eval_spt.common.files import write
from lm_eval_spt.common.paths import tasks_folder

FOLDER = Path(__file__).parent

NAMES = {"prs": "Dari", "tgl": "Tagalog"}
"""langcodes takes these for Persian and Filipino, and names them so."""

SCRIPTS = {"Hans": "Han (simplified)", "Hant": "Han (traditional)"}

MACRO_AREAS = {
    "Africa": "aeb afr aka amh ary arz bam bem cjk dik dyu ewe fon fuv gaz hau ibo kab kam kbp kea kik kin kmb knc kon "
    "lin lua lug luo mos nqo nso nus nya plt run sag sna som sot ssw swh taq tir tsn tso tum twi tzm umb wol xho yor "
    "zul",
    "North America": "hat",
    "Papunesia": "ace ban bjn bug ceb fij ilo ind jav min mri pag smo sun tgl tpi war",
    "South America": "ayr grn pap quy",
}
"""By ISO 639-3 code; all others are in Eurasia. Glottolog has no area for the macro-languages est grn kon srd zho: they
have the area of their varieties."""

BRANCH_DEPTH = 4
"""How many nodes from the family down are searched for a branch: Austronesian divides at the third node."""

NOT_IN_THAT_SCRIPT = {"arb_Latn"}
"""Shares are given per language, but the pre-training data in Arabic are not in Latin letters."""

BLOOM_WITHOUT_SHARE = "lug nya pan run sot tsn tso"
"""Languages that BLOOM's model card names, and for which no share was published."""


def generate() -> str:
    """Return the table as CSV."""
    codes = _codes("sib200")
    nodes = family_nodes(sorted({code[:3] for code in codes}))
    branches = _branches(nodes)
    areas = {language: area for area, languages in MACRO_AREAS.items() for language in languages.split()}
    shares = _shares()
    rows = [
        {
            "code": code,
            "iso639_3": code[:3],
            "name": _name(code[:3]),
            "script": code[4:],
            "script_name": SCRIPTS.get(code[4:]) or Language.make(script=code[4:]).script_name(),
            "family": nodes[code[:3]][0],
            "branch": branches[code[:3]],
            "macro_area": areas.get(code[:3], "Eurasia"),
            "xglm_share": shares.get(code, {}).get("xglm_share", ""),
            "bloom_share": shares.get(code, {}).get("bloom_share", ""),
            "seen_by": " ".join(_seen_by(code, shares)),
        }
        for code in codes
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _codes(task: str) -> list[str]:
    return (tasks_folder() / task / "languages.txt").read_text(encoding="utf-8").split()


def _name(iso639_3: str) -> str:
    """The English name. Nepali (individual language) and the like differ from a macro-language that is not here."""
    return NAMES.get(iso639_3) or Language.get(iso639_3).language_name().removesuffix(" (individual language)")


def _branches(nodes: dict[str, list[str]]) -> dict[str, str]:
    """Language to the first node below its family at which the family's languages here divide, if it is near the top.

    Otherwise the branch is the node right below the family; "" if there is none.
    """
    families = Counter(path[0] for path in nodes.values())
    members = Counter(node for path in nodes.values() for node in path)
    branches = {}
    for language, path in nodes.items():
        dividing = [node for node in path[1:BRANCH_DEPTH] if members[node] < families[path[0]]]
        branches[language] = (dividing or path[1:] or [""])[0]
    return branches


def _shares() -> dict[str, dict[str, str]]:
    with (FOLDER / "pretraining_share.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {code: row for row in rows for code in row["sib200"].split() if code not in NOT_IN_THAT_SCRIPT}


def _seen_by(code: str, shares: dict[str, dict[str, str]]) -> Iterable[str]:
    if shares.get(code, {}).get("xglm_share"):
        yield "xglm"
    if shares.get(code, {}).get("bloom_share") or code[:3] in BLOOM_WITHOUT_SHARE.split():
        yield "bloom"
    if code in _codes("mini_topics"):  # the demo task has the embedded model's languages
        yield "mini"


if __name__ == "__main__":
    write(FOLDER / "languages.csv", generate().encode())
