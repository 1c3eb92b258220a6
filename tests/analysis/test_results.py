"""Reading the harness's results files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lm_eval_spt.analysis.results import Score, mean_over_runs, read_all, read_run, read_runs, results_files
from lm_eval_spt.common.errors import UserError
from tests.helpers.results import write_results


def results_file(folder: Path, scores: dict[str, float], name: str = "results_a.json", **extra: Any) -> Path:
    """Write the least that is read of what the harness writes."""
    results = {f"sib200_{code}": {"acc,none": value, "acc_stderr,none": 0.03} for code, value in scores.items()}
    results["sib200"] = {"acc,none": 0.9, "acc_stderr,none": 0.01}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"results": results | extra, "config": {"model": "spt"}}))
    return folder / name


def test_languages_are_read_and_groups_are_not(tmp_path):
    run = read_run(results_file(tmp_path, {"eng_Latn": 0.5, "zho_Hans": 0.25}))
    assert run.scores == {"acc": {"eng_Latn": Score(0.5, 0.03), "zho_Hans": Score(0.25, 0.03)}}
    assert (run.family, run.config) == ("sib200", {"model": "spt"})
    assert run.task_version is run.num_fewshot is run.date is run.base_model is run.partial is None


def test_what_the_harness_recorded_is_read(tmp_path):
    file = write_results(tmp_path, {"eng_Latn": 0.5}, base_model="org/bloom-560m", num_fewshot=2)
    run = read_run(file)
    assert (run.base_model, run.model_name, run.prompt_digest) == ("org/bloom-560m", "org/bloom-560m", None)
    assert (run.task_version, run.num_fewshot, run.harness_version) == ("1.0", 2, "0.4.13")
    assert (run.documents, run.date.year) == ({"eng_Latn": (204, 204)}, 2025)
    assert run.scores["macro_f1"]["eng_Latn"] == Score(pytest.approx(0.45), 0.031)
    assert run.samples_file("eng_Latn").name == "samples_sib200_eng_Latn_2025-06-15T15-06-40.000000.jsonl"


def test_the_base_model_is_told_from_the_name_where_the_prompt_chose_it(tmp_path):
    about = {"prompt_name": "a+b", "prompt_digest": "0123456789"}
    file = write_results(tmp_path, {"eng_Latn": 0.5}, model_args={"prompt": "a+b.safetensors"}, **about)
    content = json.loads(file.read_text())
    for ending in ("", "+calibrated_by_probability"):
        file.write_text(json.dumps(content | {"model_name": f"org/base+a+b@01234567{ending}"}))
        assert read_run(file).base_model == "org/base"
    content["config"]["model_args"] = "pretrained=other,dtype=float32"  # how older versions wrote it
    file.write_text(json.dumps(content))
    assert read_run(file).base_model == "other"


def test_a_missing_standard_error_is_none(tmp_path):
    file = results_file(tmp_path, {}, mini_topics_eng_Latn={"acc,none": 1.0, "acc_stderr,none": "N/A"})
    assert read_run(file).scores == {"acc": {"eng_Latn": Score(1.0, None)}}


def test_families_of_tasks_are_runs_of_their_own(tmp_path):
    file = results_file(tmp_path, {"eng_Latn": 0.5}, sib200_instruct_eng_Latn={"acc,none": 0.75})
    assert [(run.family, run.scores["acc"]["eng_Latn"].value) for run in read_runs(file)] == [
        ("sib200", 0.5),
        ("sib200_instruct", 0.75),
    ]
    with pytest.raises(UserError, match="holds several task families"):
        read_run(file)


def test_partial_data_are_known_as_such(tmp_path):
    assert read_run(write_results(tmp_path / "a", {"eng_Latn": 0.5}, limit=10)).partial == "made with --limit 10"
    assert read_run(write_results(tmp_path / "b", {"eng_Latn": 0.5})).partial is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a results file"),
        ('{"results": {"sib200_eng_Latn": {"acc,no', "not a whole one"),
        ("[]", "is not a results file"),
        ("[" * 100_000, "is not a results file"),
        ('{"results": {}}', "is not a results file"),
        ('{"results": {"a_eng_Latn": 1}, "config": {}}', "is not a results file"),
        ('{"results": {"a_eng_Latn": {"acc,none": 1}}, "config": {}, "date": 1e300}', "is not a results file"),
        ('{"results": {}, "config": {}}', "has no scores of any task"),
        ('{"results": {"a_eng_Latn": {"acc": 1}}, "config": {}}', "a version of lm-eval before 0.4"),
        (
            '{"results": {"a_eng_Latn": {"acc,none": 1}, "a_deu_Latn": {"acc,none": 1}}, "config": {}, '
            '"versions": {"a_eng_Latn": 1, "a_deu_Latn": 2}}',
            "mixes versions 1, 2",
        ),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "results_x.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_runs(tmp_path / "results_x.json")
    assert "\n" not in str(caught.value)


def test_reading_goes_on_without_what_can_not_be_used(tmp_path):
    good = write_results(tmp_path / "good", {"eng_Latn": 0.5})
    (tmp_path / "results_torn.json").write_text("{")
    (tmp_path / "copy").mkdir()
    shutil.copy(good, tmp_path / "copy")
    runs, left_out = read_all([tmp_path, good])
    assert len(runs) == 1
    assert len(left_out) == 2
    assert any("results_torn.json is not a results file" in line for line in left_out)
    assert any("repeats" in line for line in left_out)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no results_"):
        results_files(tmp_path)


def test_the_mean_over_seeds_keeps_the_error_of_one(tmp_path):
    runs = [
        read_run(results_file(tmp_path, {"eng_Latn": 0.5, "deu_Latn": 0.2})),
        read_run(results_file(tmp_path, {"eng_Latn": 0.7})),
    ]
    (score,) = mean_over_runs(runs).values()
    assert (score.value, score.stderr) == (pytest.approx(0.6), pytest.approx(0.03))


def test_any_task_that_says_its_language_is_read(tmp_path):
    scores = {"acc,none": 0.5, "acc_stderr,none": 0.02}
    file = results_file(tmp_path, {}, xnli_de=scores, xnli_sw=scores, xnli_zh=scores, hellaswag=scores)
    run = read_run(file)
    assert run.tasks == {"deu_Latn": "xnli_de", "swh_Latn": "xnli_sw", "zho_Hans": "xnli_zh"}
    assert (run.family, run.languages()) == ("xnli", ["deu_Latn", "swh_Latn", "zho_Hans"])
    assert run.samples_file("swh_Latn").name == "samples_xnli_sw_a.jsonl"
    _, left_out = read_all([file])
    assert left_out == [
        "left out: the language of hellaswag, sib200 can not be told from the name: say it with --languages FILE"
    ]
    with_english = read_runs(file, {"hellaswag": "eng_Latn"})
    assert [(run.family, *run.tasks.values()) for run in with_english] == [
        ("hellaswag", "hellaswag"),
        ("xnli", "xnli_de", "xnli_sw", "xnli_zh"),
    ]


def test_a_group_in_one_language_stands_for_its_tasks(tmp_path):
    groups = {f"mmlu_prox_{code}": [f"mmlu_prox_{code}_{topic}" for topic in ("law", "math")] for code in ("de", "sw")}
    names = [*groups, *(task for tasks in groups.values() for task in tasks), "afrixnli_tt_tasks"]
    content = {
        "results": {name: {"exact_match,none": 0.1 * number} for number, name in enumerate(names, 1)},
        "group_subtasks": groups | {"afrixnli_tt_tasks": ["mmlu_prox_de_law", "mmlu_prox_sw_law"]},
        "n-samples": {name: {"original": 9, "effective": 9} for name in names if name.endswith(("law", "math"))},
        "config": {},
    }
    (tmp_path / "results_x.json").write_text(json.dumps(content))
    run = read_run(tmp_path / "results_x.json")
    assert run.family == "mmlu_prox"
    assert run.tasks == {"deu_Latn": "mmlu_prox_de", "swh_Latn": "mmlu_prox_sw"}
    assert (run.scores, run.left_out) == (
        {"exact_match": {"deu_Latn": Score(0.1, None), "swh_Latn": Score(pytest.approx(0.2), None)}},
        [],
    )


def test_two_tasks_in_one_language_are_refused_in_one_line(tmp_path):
    scores = {"acc,none": 0.5}
    file = results_file(tmp_path, {}, qa_sw=scores, qa_swh=scores)
    with pytest.raises(UserError, match=r"qa_sw\w* and qa_sw\w* seem to be both in swh_Latn") as caught:
        read_runs(file)
    assert "\n" not in str(caught.value)
    assert len(read_runs(file, {"{qa_swh}": "swc_Latn", "qa_sw": "swh_Latn"})) == 2
