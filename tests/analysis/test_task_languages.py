"""The language of a task, told from its name: held to the data sets that the harness's YAML files name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lm_eval_spt.analysis.task_languages import TaskLanguage, read_languages, task_languages
from lm_eval_spt.common.errors import UserError

# Written from lm_eval 0.4.13: tasks whose YAML names a language as `dataset_name`, and that language.
HARNESS_TASKS = Path(__file__).parent / "harness_tasks.txt"


def families() -> Iterator[dict[str, str]]:
    """Name to language, for the tasks of each line: the line ``xnli_{} de=deu_Latn`` says that xnli_de is in German."""
    for line in HARNESS_TASKS.read_text(encoding="utf-8").splitlines():
        template, *languages = line.split()
        pairs = (entry.partition("=") for entry in languages)
        yield {template.format(text): code or text for text, _, code in pairs}


def told(*names: str, given: dict[str, str] | None = None) -> dict[str, str]:
    return {name: found.language for name, found in task_languages(names, given).items()}


@pytest.mark.parametrize("expected", list(families()), ids=lambda expected: next(iter(expected)))
def test_tasks_of_the_harness_that_are_read_together(expected):
    assert told(*expected) == expected
    assert len({found.family for found in task_languages(expected).values()}) == 1


def test_a_task_by_itself_has_the_same_language_or_none():
    expected = {name: language for family in families() for name, language in family.items()}
    alone = {name: language for task in expected for name, language in told(task).items()}
    assert alone == {name: expected[name] for name in alone}
    assert len(alone) > 0.9 * len(expected)


def test_tasks_of_many_kinds_that_are_read_together():
    expected = {name: language for family in families() for name, language in family.items()}
    found = told(*expected, "hellaswag", "mmlu_cot_llama_law", "arc_easy")
    assert found == expected


@pytest.mark.parametrize(
    ("task", "family", "language"),
    [
        ("xnli_de", "xnli", "deu_Latn"),
        ("masakhanews_swa_prompt_1", "masakhanews_prompt_1", "swh_Latn"),
        ("nollysenti_hau_prompt_2", "nollysenti_prompt_2", "hau_Latn"),
        ("nollysenti_pcm_prompt_2", "nollysenti_prompt_2", "pcm_Latn"),
        ("belebele_fra_Latn", "belebele", "fra_Latn"),
        ("global_piqa_parallel_cloze_zho_hant", "global_piqa_parallel_cloze", "zho_Hant"),
        ("global_mmlu_de", "global_mmlu", "deu_Latn"),
        ("mmlu_prox_sw", "mmlu_prox", "swh_Latn"),
        ("mmlu_prox_it_law", "mmlu_prox_law", "ita_Latn"),
        ("xcopa_zh", "xcopa", "zho_Hans"),
        ("afrixnli_en_direct_lin", "afrixnli_en_direct", "lin_Latn"),
        ("mgsm_en_cot_ja", "mgsm_en_cot", "jpn_Jpan"),
        ("mgsm_en_cot_en", "mgsm_en_cot", "eng_Latn"),
        ("paws_ja", "paws", "jpn_Jpan"),
        ("m_mmlu_pt", "m_mmlu", "por_Latn"),
        ("mmmlu_pt_br_law", "mmmlu_law", "por_Latn"),
        ("mmmlu_zh_cn_law", "mmmlu_law", "zho_Hans"),
        ("qa_zh_tw", "qa", "zho_Hant"),
        ("arc_challenge_mt_is", "arc_challenge_mt", "isl_Latn"),
        ("xnli_eu_mt", "xnli_mt", "eus_Latn"),
        ("arabicmmlu", "mmlu", "arb_Arab"),
        ("arabicmmlu_law", "mmlu_law", "arb_Arab"),
        ("include_base_44_dutch_stem", "include_base_44_stem", "nld_Latn"),
        ("x_scottish_gaelic_1", "x_1", "gla_Latn"),
        ("ja_leaderboard_xwinograd", "leaderboard_xwinograd", "jpn_Jpan"),
        ("blimp_nl__binding", "blimp__binding", "nld_Latn"),
        ("blimp_nl__infinitival_argument_clause__om_te", "blimp__infinitival_argument_clause__om_te", "nld_Latn"),
        ("kmmlu_law", "kmmlu_law", "kor_Hang"),
        ("pisa_ch", "pisa", "zho_Hans"),
        ("xwinograd_jp", "xwinograd", "jpn_Jpan"),
        ("AraDiCE_boolq_egy", "AraDiCE_boolq", "arz_Arab"),
        ("crows_pairs_english_age", "crows_pairs_age", "eng_Latn"),
    ],
)
def test_a_task_by_itself(task, family, language):
    assert task_languages([task]) == {task: TaskLanguage(family, language)}


ENGLISH_TASKS = """
    hellaswag arc_easy arc_challenge piqa boolq copa cb wic wsc rte sst2 cola mnli qnli mrpc anli_r1 glue
    super_glue-wic-t5-prompt mmlu mmlu_law mmlu_cot_llama_law mmlu_pro mmlu_pro_law
    bbh_cot_fewshot_penguins_in_a_table bbq_generate_ambig squadv2 drop gsm8k gsm8k_cot_zeroshot
    agieval_aqua_rat agieval_sat_math acp_val_bool wmdp_bio wmdp_cyber winogender_all storycloze_2016
    bigbench_what_is_the_tao_generate_until bigbench_cs_algorithms_generate_until
    bigbench_checkmate_in_one_generate_until blimp_npi_present_1 blimp_wh_vs_that_with_gap
    med_concepts_qa_atc_easy meddialog_raw_dialogues medqa_4options pubmedqa qasper_bool race sciq swag triviaqa
    truthfulqa_gen truthfulqa_mc1 unfair_tos webqs wikitext tinyMMLU infinitebench_kv_retrieval
    infinitebench_code_run mathqa mc_taco logiqa2 lambada_openai lambada_standard hendrycks_math_num_theory
    humaneval_plus ifeval ethics_cm legalbench_proa mmmu_val_art musr nq_open openbookqa
"""


def test_english_tasks_do_not_name_a_language():
    assert told(*ENGLISH_TASKS.split()) == {}
    assert not any(told(task) for task in ENGLISH_TASKS.split())


def test_names_that_differ_in_two_languages_are_told_by_what_differs():
    assert told("t_en-de", "t_en-fr", "t_en-sw") == {
        "t_en-de": "deu_Latn",
        "t_en-fr": "fra_Latn",
        "t_en-sw": "swh_Latn",
    }
    assert told("q_de_in_fr", "q_de_in_sw") == {"q_de_in_fr": "fra_Latn", "q_de_in_sw": "swh_Latn"}
    both = task_languages(["t_en-de", "t_en-fr", "t_de-en", "t_fr-en"])
    assert len(set(both.values())) == 4  # two directions are two families


def test_unknown_codes_need_others_that_differ_there():
    assert told("blimp_aln") == told("blimp_aln", "blimp_aqz") == {}
    assert told("blimp_aln", "blimp_aqz", "blimp_bor") == {
        "blimp_aln": "aln_Latn",
        "blimp_aqz": "aqz_Latn",
        "blimp_bor": "bor_Latn",
    }
    # Codes of another length do not help: gsm is one, too.
    assert "math_gsm" not in told("math_de", "math_fr", "math_sw", "math_gsm")


def test_a_file_says_what_names_do_not(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "hellaswag: en\nmy_{german}_task: Swiss German\n'old_*_{x}': yue_Hant\nxnli_de: nds\n"
    )
    given = read_languages(tmp_path / "a.yaml")
    assert given == {
        "hellaswag": "eng_Latn",
        "my_{german}_task": "gsw_Latn",
        "old_*_{x}": "yue_Hant",
        "xnli_de": "nds_Latn",
    }
    found = task_languages(["hellaswag", "my_german_task", "my_french_task", "old_1_x", "xnli_de", "xnli_fr"], given)
    assert found == {
        "hellaswag": TaskLanguage("hellaswag", "eng_Latn"),
        "my_german_task": TaskLanguage("my_task", "gsw_Latn"),
        "my_french_task": TaskLanguage("my_task", "fra_Latn"),
        "old_1_x": TaskLanguage("old_1", "yue_Hant"),
        "xnli_de": TaskLanguage("xnli", "nds_Latn"),
        "xnli_fr": TaskLanguage("xnli", "fra_Latn"),
    }
    (tmp_path / "b.yaml").write_text("a: no")  # which YAML takes for false
    assert read_languages(tmp_path / "b.yaml") == {"a": "nob_Latn"}
    (tmp_path / "a.csv").write_text('task,language\nhellaswag,en\n"old_*_{x}",yue-Hant\n')
    assert read_languages(tmp_path / "a.csv") == {"hellaswag": "eng_Latn", "old_*_{x}": "yue_Hant"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: klingonese", "'klingonese' of 'a' is no language: expected a code"),
        ("- a\n- b", "expected YAML lines"),
        ("a: [", "expected YAML lines"),
        ("", "expected YAML lines"),
        (None, "can not be read: No such file"),
    ],
)
@pytest.mark.parametrize("name", ["a.yaml"])
def test_a_file_that_says_something_else_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_languages(tmp_path / name)
    assert "\n" not in str(caught.value)
    (tmp_path / "a.csv").write_text("task\n")
    with pytest.raises(UserError, match="such as 'my_task,deu'"):
        read_languages(tmp_path / "a.csv")
