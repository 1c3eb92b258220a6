"""The language of a harness task, told from its name: ``xnli_de``, ``masakhanews_swa_prompt_1``, ``belebele_fra_Latn``.

A name is split into words. A word, or a few of them (``fra_Latn``, ``scottish_gaelic``), may be a language's code or
its English name. Many codes are other words, too (``is``, ``law``, ``sat``). So names that are read together help each
other: in ``multiblimp_abk``, ``multiblimp_aln``, ``multiblimp_kir`` the language is where they differ.
"""

from __future__ import annotations

import csv
import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from lm_eval_spt.analysis.languages import ENGLISH, is_common, language_code
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import parse_yaml, read_text

WORD = re.compile(r"[^\W_]+")

WORDS = (
    "an do in kv me mt no of to us ace ban bug cat est fin fur hat lit mar min mon nor npi pan run sag sat sin sun ton "
    "war more"
)
"""Codes and a name of common languages that are other words as well: they count where names differ."""

WORDS_UNLESS_LAST = "as be cs he is my or so"
"""The same, but at the end of a name they count."""

CODE_AND_SCRIPT, NAME, REGION, CODE, PREFIX, LAST, UNSURE = 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0
"""How much a part of a name says by itself: ``swh_Latn``, ``swahili``, ``pt_br``, ``sw``, ``arabicmmlu``, ``is`` at the
end. The rest is unsure, such as codes of small languages: then there must be :data:`ENOUGH` that differ there."""

ENOUGH = 3

HARNESS = {
    "*agieval_lsat_*": "eng_Latn",
    "AraDiCE_*_{egy}": "arz_Arab",
    "AraDiCE_*_{lev}": "apc_Arab",
    "AraDiCE_*_{msa}": "arb_Arab",
    "AraDiCE_*": "arb_Arab",
    "advanced_ai_risk_*": "eng_Latn",
    "aclue*": "zho_Hans",
    "agieval_gaokao_*": "zho_Hans",
    "agieval_jec_*": "zho_Hans",
    "arab_culture*": "arb_Arab",
    "assin*": "por_Latn",
    "blimp_expletive_it_*": "eng_Latn",
    "blimp_{nl}*": "nld_Latn",
    "cabbq_*": "cat_Latn",
    "ceval*": "zho_Hans",
    "click_*": "kor_Hang",
    "cmmlu*": "zho_Hans",
    "csatqa*": "kor_Hang",
    "darija*": "ary_Arab",
    "egy*": "arz_Arab",
    "esbbq_*": "spa_Latn",
    "evalita-*": "ita_Latn",
    "haerae*": "kor_Hang",
    "hrm8k_*_{en}": "eng_Latn",
    "hrm8k*": "kor_Hang",
    "infinitebench_*_{chn}": "zho_Hans",
    "kbl_*": "kor_Hang",
    "kmmlu*": "kor_Hang",
    "kobest*": "kor_Hang",
    "kormedmcqa*": "kor_Hang",
    "persona_*": "eng_Latn",
    "pisa_{ch}*": "zho_Hans",
    "polemo2*": "pol_Latn",
    "tmlu*": "zho_Hant",
    "tmmluplus*": "zho_Hant",
    "translation_dr_*": "ary_Arab",
    "translation_*_dr_*": "ary_Arab",
    "turblimp*": "tur_Latn",
    "uncheatable_eval_arxiv_*": "eng_Latn",
    "xlsum_{pidgin}_*": "pcm_Latn",
    "xwinograd_{jp}": "jpn_Jpan",
    "zhoblimp*": "zho_Hans",
}
"""Tasks of the harness whose names do not say their language, or say it in a way of their own."""

PREFIXES = (
    "arabic bangla basque catalan chinese english french galician german greek indonesian italian japanese korean "
    "persian portuguese russian spanish swahili turkish vietnamese"
)
"""Names that words can begin with, such as ``arabicmmlu``."""


MAX_NAMES = 20_000
"""How many names are remembered: results of many runs have the same tasks."""


class TaskLanguage(NamedTuple):
    """What a task's name says.

    Attributes:
        family: the name without the language, the same for the tasks that differ in their language alone.
        language: its code, see :mod:`lm_eval_spt.analysis.languages`.
    """

    family: str
    language: str


_Place = tuple[str, str, int]


class _Candidate(NamedTuple):
    """A part of a name that may be its language, and what is around it."""

    before: str
    text: str
    after: str
    language: str
    sure: float

    @property
    def place(self) -> _Place:
        """The same for names that differ in this part alone."""
        return self.before, self.after, 0

    @property
    def place_of_its_length(self) -> _Place:
        """The same for names that differ in this part alone, and have a code of the same length there."""
        return self.before, self.after, len(self.text) if len(self.text) < 4 else 4

    @property
    def family(self) -> str:
        before = self.before.rstrip("_-. ")
        return (f"{before}{self.after}" if before else self.after.lstrip("_-. ")) or self.text


def task_languages(names: Iterable[str], given: Mapping[str, str] | None = None) -> dict[str, TaskLanguage]:
    """Tell the languages of tasks that belong together, such as those of one results file.

    Args:
        names: the tasks' names.
        given: patterns of names with their languages, see :func:`read_languages`; they come first.

    Returns:
        Name to language. A task whose language can not be told is absent.

    >>> task_languages(["masakhanews_swa_prompt_1"])
    {'masakhanews_swa_prompt_1': TaskLanguage(family='masakhanews_prompt_1', language='swh_Latn')}
    """
    candidates = {name: _candidates(name) for name in names}
    places: dict[_Place, list[str]] = {}
    for one in (one for found in candidates.values() for one in found):
        for place in {one.place, one.place_of_its_length}:
            places.setdefault(place, []).append(one.language)
    # Where two names have one language, they differ elsewhere.
    differing = {place: len(found) if len(found) == len(set(found)) else 0 for place, found in places.items()}

    told = {}
    for name, found in candidates.items():
        fixed = _given(name, given or {}) or _of_harness(name)
        possible = [one for one in found if one.sure or differing[one.place_of_its_length] >= ENOUGH]
        if fixed or possible:
            told[name] = fixed or max(
                possible, key=lambda one: (one.sure > 0, differing[one.place], one.sure, len(one.before))
            )
    count = Counter((one.family, one.language) for one in told.values())
    several = {family for (family, _), names in count.items() if names > 1}
    return {
        name: TaskLanguage(f"{one.before}*{one.after}" if one.family in several else one.family, one.language)
        for name, one in told.items()
    }


def read_languages(path: Path) -> dict[str, str]:
    """Read a file that says the languages of tasks.

    Args:
        path: YAML, a mapping from a task's name to its language, or CSV with a task and its language in each line. For
            a name there can be a pattern (``*``, ``?``). Braces mark the part of a name that stands for the language,
            so that tasks which differ there belong together: ``pisa_{ch}: Chinese``.

    Returns:
        Pattern to the language's code, in the file's order: the first that fits counts.

    Raises:
        UserError: the file can not be read, or names something that is no language.
    """
    try:
        text = read_text(path, 2**20)
        if path.suffix == ".csv":
            rows = [row for row in csv.reader(text.splitlines()) if row]
            entries: object = dict(rows[1:] if rows and rows[0] == ["task", "language"] else rows)
        else:
            entries = parse_yaml(text)
        if not isinstance(entries, dict):
            raise ValueError("no mapping")
        # YAML takes no for false.
        given = {str(pattern): "no" if said is False else str(said) for pattern, said in entries.items()}
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"--languages {path} can not be read: {error.strerror or error}") from None
    except (ValueError, yaml.YAMLError, RecursionError):
        given = {}
    if not given:
        raise UserError(f"--languages {path}: expected YAML lines such as 'my_task: deu', or CSV such as 'my_task,deu'")
    languages = {}
    for pattern, said in given.items():
        code = language_code(said)
        if code is None:
            raise UserError(
                f"--languages {path}: {said[:80]!r} of {pattern[:80]!r} is no language: expected a code such as "
                "deu_Latn, deu or de, or an English name"
            )
        languages[pattern] = code
    return languages


@functools.lru_cache(MAX_NAMES)
def _candidates(name: str) -> Sequence[_Candidate]:
    """The parts of a name that can be its language."""
    words = list(WORD.finditer(name))
    found: list[_Candidate] = []
    covered = region = 0  # where the last sure candidate ends, and the last region
    for index in range(len(words)):
        for count in (3, 2, 1):
            span = words[index : index + count]
            start, end = span[0].start(), span[-1].end()
            if len(span) < count or end <= covered or (count == 2 and name[span[0].end()] != "_"):
                continue
            told = _language(tuple(word[0] for word in span), end == len(name))
            prefix = next((one for one in PREFIXES.split() if count == 1 and span[0][0].lower().startswith(one)), None)
            if told is None and prefix is not None:
                told, end = (str(language_code(prefix)), PREFIX), start + len(prefix)
            if told is None or (start, end) == (0, len(name)):
                continue
            language, sure = told
            if span[0].end() == region:
                sure = UNSURE
            if sure == REGION:
                region = end
            elif sure:
                covered = end
            # Beside another language English is that of the instruction, or the one translated from or into.
            sure = sure / 10 if language == ENGLISH else sure
            found.append(_Candidate(name[:start], name[start:end], name[end:], language, sure))
    return found


@functools.cache
def _language(words: tuple[str, ...], is_last: bool) -> tuple[str, float] | None:
    """The language that one to three words in a row say, and how sure it is."""
    lengths = [len(word) for word in words]
    first, text = words[0], " ".join(words)
    if lengths in ([2, 4], [3, 4]) and first.islower():
        code = language_code("_".join(words))
        return None if code is None else (code, CODE_AND_SCRIPT)
    if lengths == [2, 2] and text.islower():
        code = language_code("_".join(words)) if is_common(first) and not {*words} & {*WORDS.split()} else None
        return None if code in (None, ENGLISH) else (str(code), REGION)
    if not text.replace(" ", "").isalpha():
        return None
    if min(lengths) < 4:
        code = language_code(first) if len(words) == 1 and first.islower() else None  # in capitals it is something else
        if code is None or first in WORDS.split() or not is_common(first):
            return None if code is None else (code, UNSURE)
        return code, CODE if first not in WORDS_UNLESS_LAST.split() else LAST if is_last else UNSURE
    code = language_code(text)
    return None if code is None else (code, NAME if is_common(code) and text not in WORDS.split() else UNSURE)


@functools.lru_cache(MAX_NAMES)
def _of_harness(name: str) -> _Candidate | None:
    return _given(name, HARNESS)


def _given(name: str, patterns: Mapping[str, str]) -> _Candidate | None:
    """The language of the first pattern that fits a name."""
    for pattern, language in patterns.items():
        match = _compiled(pattern).fullmatch(name)
        if match and match.lastindex:
            start, end = match.span(1)
            return _Candidate(name[:start], name[start:end], name[end:], language, REGION)
        if match:
            parts = [one for one in _candidates(name) if one.language == language or one.sure]
            best = max(
                parts, key=lambda one: (one.language == language, one.sure), default=_Candidate(name, "", "", "", 0)
            )
            return best._replace(language=language)
    return None


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """A pattern as a regular expression; what is in braces is its group."""
    signs = {"*": ".*", "?": ".", "{": "(", "}": ")"}
    marked = re.fullmatch(r"[^{}]*(\{[^{}]+\}[^{}]*)?", pattern)
    return re.compile("".join(signs.get(sign, re.escape(sign)) for sign in pattern) if marked else re.escape(pattern))
