"""What is known of languages: the facts of SIB-200's 205, and facts from elsewhere."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path

import pytest

from lm_eval_spt.analysis.languages import language, language_code, languages, seen_by, source_code
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.paths import tasks_folder


def task_languages(name: str) -> set[str]:
    return set((tasks_folder() / name).read_text().split())


def test_the_facts_of_sib200_are_those_of_the_first_results():
    with (Path(__file__).parent / "languages.csv").open(encoding="utf-8", newline="") as file:  # a table of version 0.1
        table = {row["code"]: row for row in csv.DictReader(file)}
    for code, facts in languages().items():
        shares = {name: str(getattr(facts, name) or "") for name in ("xglm_share", "bloom_share")}
        assert asdict(facts) | shares | {"seen_by": " ".join(facts.seen_by)} == table[code]


def test_it_has_the_languages_of_sib200():
    assert set(languages()) == task_languages("sib200/languages.txt")
    assert len(languages()) == 205
    for code, facts in languages().items():
        assert code == f"{facts.iso639_3}_{facts.script}"
        assert all((facts.name, facts.script_name, facts.family, facts.macro_area))


@pytest.mark.parametrize(
    ("code", "name", "script", "family", "branch", "area"),
    [
        ("deu_Latn", "German", "Latin", "Indo-European", "Germanic", "Eurasia"),
        ("swh_Latn", "Swahili", "Latin", "Atlantic-Congo", "Volta-Congo", "Africa"),
        ("zho_Hant", "Chinese", "Han (traditional)", "Sino-Tibetan", "Sinitic", "Eurasia"),
        ("tgl_Latn", "Tagalog", "Latin", "Austronesian", "Greater Central Philippine", "Papunesia"),
        ("prs_Arab", "Dari", "Arabic", "Indo-European", "Indo-Iranian", "Eurasia"),
        ("eus_Latn", "Basque", "Latin", "Basque", "", "Eurasia"),
        ("lvs_Latn", "Standard Latvian", "Latin", "Indo-European", "Balto-Slavic", "Eurasia"),
        ("quy_Latn", "Ayacucho Quechua", "Latin", "Quechuan", "Quechua II", "South America"),
        ("fij_Latn", "Fijian", "Latin", "Austronesian", "Central-Eastern Malayo-Polynesian", "Papunesia"),
    ],
)
def test_well_known_facts(code, name, script, family, branch, area):
    language = languages()[code]
    assert (language.name, language.script_name, language.family) == (name, script, family)
    assert (language.branch, language.macro_area) == (branch, area)


def test_shares_are_the_published_ones():
    with_share = {code for code, language in languages().items() if language.xglm_share or language.bloom_share}
    assert with_share - {"zho_Hant"} == task_languages("sib200/languages_paper.txt")
    assert (languages()["eng_Latn"].xglm_share, languages()["eng_Latn"].bloom_share) == (0.489906, 0.303)
    assert languages()["deu_Latn"].bloom_share is None
    assert languages()["arb_Latn"].seen_by == ()


def test_which_languages_a_base_model_saw():
    xglm, bloom, mini = (seen_by(name) for name in ("facebook/xglm-564M", "bigscience/bloom-560m", "mini"))
    assert len(xglm) == 30 + 1  # 30 languages, Chinese in two scripts
    assert len(bloom) == 45 + 1  # 46 with code's English, which is no other; Chinese in two scripts
    assert mini == task_languages("mini_topics/languages.txt")
    assert {"lug_Latn", "pan_Guru"} < bloom
    assert seen_by("/models/bloomz-7b1/") == bloom
    assert seen_by("openbmb/MiniCPM-2B") is seen_by("gpt2") is seen_by(None) is None


@pytest.mark.parametrize(
    ("code", "texts"),
    [
        ("eng_Latn", "eng_Latn en eng EN English en-US en_GB eng_latn"),
        ("swh_Latn", "sw swa swh Swahili swa_Latn"),
        ("arb_Arab", "ar ara arb Arabic"),
        ("zho_Hans", "zh zho cmn zh_CN zh-Hans chi Chinese"),
        ("zho_Hant", "zh-TW zh_tw zh-Hant zho_Hant"),
        ("por_Latn", "pt por pt_br Portuguese"),
        ("pes_Arab", "fa fas pes Persian Farsi"),
        ("prs_Arab", "prs Dari"),
        ("nob_Latn", "no nor nb nob Norwegian"),
        ("tgl_Latn", "tl tgl fil Tagalog Filipino"),
        ("kor_Hang", "ko kor ko_KR Korean"),
        ("heb_Hebr", "he heb iw Hebrew"),  # iw and the next three are retired codes
        ("ind_Latn", "id ind in Indonesian"),
        ("jav_Latn", "jv jav jw Javanese"),
        ("ron_Latn", "ro ron mo mol Romanian"),
        ("est_Latn", "et est ekk Estonian"),
        ("kmr_Latn", "ku kur kmr ku_TR"),
        ("ckb_Arab", "ckb kur_Arab"),
        ("quy_Latn", "qu que quy"),
        ("gaz_Latn", "om orm gaz Oromo"),
        ("twi_Latn", "tw twi Twi"),
        ("ory_Orya", "or ori ory Odia"),
        ("pcm_Latn", "pcm"),
        ("vai_Vaii", "vai Vai"),
        ("brx_Deva", "brx Bodo"),
        ("abk_Cyrl", "ab abk Abkhazian"),
        ("yue_Hant", "yue Cantonese"),
    ],
)
def test_a_language_has_one_code(code, texts):
    assert {text: language_code(text) for text in texts.split()} == dict.fromkeys(texts.split(), code)


@pytest.mark.parametrize(
    "text", ["", "x", "xx", "qqq", "qaa", "mul", "und", "eng_Abcd", "prompt", "general", "Darija", "12", "a b c"]
)
def test_what_is_no_language(text):
    assert language_code(text) is None
    with pytest.raises(UserError, match="is no language: expected a code such as eng_Latn, eng or en") as caught:
        source_code(text)
    assert "\n" not in str(caught.value)


def test_codes_of_sib200_stand_for_themselves():
    assert all(language_code(code) == code for code in languages())
    # Where the language has one script there, its ISO 639-3 code says it, too.
    codes = {code[:3]: code for code in languages()}
    once = [iso for iso in codes if sum(code.startswith(iso) for code in languages()) == 1]
    assert len(once) == 189
    assert all(language_code(iso) == codes[iso] for iso in once)


def test_languages_beyond_sib200():
    brahui, vai, klingon = (language(str(language_code(iso))) for iso in ("brh", "vai", "tlh"))
    assert (brahui.name, brahui.family, brahui.branch) == ("Brahui", "Dravidian", "North Dravidian")
    assert (vai.code, vai.script_name, vai.family, vai.macro_area, vai.seen_by) == ("vai_Vaii", "Vai", "Mande", "", ())
    assert (klingon.name, klingon.family) == ("Klingon", "")
