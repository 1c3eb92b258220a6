"""The table of languages: that it is what its generator writes, and facts from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm_eval_spt.analysis import languages as module
from lm_eval_spt.analysis.languages import languages, seen_by
from lm_eval_spt.common.paths import tasks_folder


def task_languages(name: str) -> set[str]:
    return set((tasks_folder() / name).read_text().split())


def test_the_table_is_what_the_generator_writes():
    pytest.importorskip("language_data")
    from lm_eval_spt.analysis.generate_languages import generate

    committed = (Path(module.__file__).parent / "languages.csv").read_text(encoding="utf-8")
    assert generate() == committed


def test_it_has_the_languages_of_sib200():
    assert set(languages()) == task_languages("sib200/languages.txt")
    assert len(languages()) == 205
    for code, language in languages().items():
        assert code == f"{language.iso639_3}_{language.script}"
        assert all((language.name, language.script_name, language.family, language.macro_area))


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
