"""From results files to tables: reading, the analysis, and the command that prints and saves it."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from lm_eval_spt.analysis.arms import Arm
from lm_eval_spt.analysis.distances import distances
from lm_eval_spt.analysis.documents import read_answers
from lm_eval_spt.analysis.languages import languages
from lm_eval_spt.analysis.report import as_latex, as_markdown, mean_score, transfer_table
from lm_eval_spt.analysis.results import Score, mean_over_runs, read_all, read_run, read_runs, results_files
from lm_eval_spt.analysis.statistics import resample
from lm_eval_spt.analysis.transfer import Analysis, analyse
from lm_eval_spt.cli import main
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.topics import macro_f1
from tests.helpers.results import some_scores, write_results


def results_file(folder: Path, scores: dict[str, float], name: str = "results_a.json", **extra: Any) -> Path:
    """Write the least that is read of what the harness writes."""
    results = {f"sib200_{code}": {"acc,none": value, "acc_stderr,none": 0.03} for code, value in scores.items()}
    results["sib200"] = {"acc,none": 0.9, "acc_stderr,none": 0.01}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"results": results | extra, "config": {"model": "spt"}}))
    return folder / name


LABELS = np.random.default_rng(0).integers(0, 7, 60)


def write_answers(folder: Path, skill: dict[str, float], seed: int = 0, **options: Any) -> Path:
    """Write a results file and its samples: 60 documents, answered right with a probability for each language."""
    random = np.random.default_rng(seed)
    hardness = random.random(len(LABELS))
    scores, lines = {}, {}
    for code, chance in skill.items():
        predicted = np.where(hardness < chance, LABELS, random.integers(0, 7, len(LABELS)))
        scores[code] = float((predicted == LABELS).mean())
        samples = [
            {"doc_id": i, "target": str(label), "acc": float(label == answer), "macro_f1": [int(label), int(answer)]}
            for i, (label, answer) in enumerate(zip(LABELS, predicted, strict=True))
        ]
        lines[code] = "".join(json.dumps(sample) + "\n" for sample in reversed(samples))
    file = write_results(folder, scores, **options)
    stamp = file.stem.removeprefix("results_")
    for code, text in lines.items():
        (folder / f"samples_{options.get('family', 'sib200')}_{code}_{stamp}.jsonl").write_text(text)
    return file


def analysed(arms: dict[str, list[Path]], **options: Any) -> Analysis:
    made = [Arm(name, [read_run(file) for file in files], [{}] * len(files)) for name, files in arms.items()]
    return analyse(made, distances("eng_Latn", languages()), **options)


def rows(analysis: Analysis, table: str, **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in analysis.tables[table] if all(row[key] == value for key, value in wanted.items())]


# -- reading -----------------------------------------------------------------------------------------------------------


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


def test_tasks_of_a_group_are_read_under_their_own_names(tmp_path):
    """lm-eval 0.5 puts the group's name before them, in the results and in the names of the samples' files."""
    plain = read_run(write_results(tmp_path / "plain", {"eng_Latn": 0.5, "deu_Latn": 0.25}))
    file = write_results(tmp_path / "grouped", {"eng_Latn": 0.5, "deu_Latn": 0.25})
    content = json.loads(file.read_text())
    for key in ("results", "versions", "n-shot", "n-samples"):
        content[key] = {f"sib200::{task}": value for task, value in content[key].items()}
    file.write_text(json.dumps(content))
    grouped = read_run(file)
    assert (grouped.family, grouped.scores, grouped.documents) == (plain.family, plain.scores, plain.documents)
    assert (grouped.task_version, grouped.num_fewshot) == (plain.task_version, plain.num_fewshot)
    assert grouped.samples_file("eng_Latn").name == plain.samples_file("eng_Latn").name
    samples = file.with_name("samples_sib200::sib200_eng_Latn_2025-06-15T15-06-40.000000.jsonl")
    samples.touch()
    assert grouped.samples_file("eng_Latn") == samples


def test_the_base_model_is_told_from_the_name_where_the_prompt_chose_it(tmp_path):
    about = {"prompt_name": "a+b", "prompt_digest": "0123456789"}
    file = write_results(tmp_path, {"eng_Latn": 0.5}, model_args={"prompt": "a+b.safetensors"}, **about)
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"model_name": "org/base+a+b@01234567"}))
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
        ('{"results": {}, "config": {}}', "has no task whose name ends in a language code"),
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


# -- documents ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["acc", "macro_f1"])
def test_resampled_scores_are_those_of_the_drawn_documents(tmp_path, metric):
    codes = ["eng_Latn", "deu_Latn"]
    runs = [read_run(write_answers(tmp_path / str(seed), dict.fromkeys(codes, 0.5), seed)) for seed in range(2)]
    answers = read_answers(runs, codes, metric)
    counts = resample(len(LABELS), 20)
    resampled = answers.resampled(metric, counts)
    for draw in range(20):
        drawn = np.repeat(np.arange(len(LABELS)), counts[draw].astype(int))
        for position, code in enumerate(codes):
            expected = []
            for run in runs:
                samples = map(json.loads, run.samples_file(code).read_text().splitlines())
                pairs = dict(sorted((sample["doc_id"], tuple(sample["macro_f1"])) for sample in samples))
                chosen = [pairs[document] for document in drawn]
                right = np.mean([label == answer for label, answer in chosen])
                expected.append(right if metric == "acc" else macro_f1(chosen))
            assert resampled[draw, position] == pytest.approx(np.mean(expected), abs=1e-6)


def test_samples_that_can_not_be_used_are_refused_in_one_line(tmp_path):
    run = read_run(write_answers(tmp_path, {"eng_Latn": 0.5, "deu_Latn": 0.5}))
    with pytest.raises(UserError, match="there is no samples_sib200_fra_Latn"):
        read_answers([run], ["fra_Latn"], "acc")
    with pytest.raises(UserError, match="'f1' in every line"):
        read_answers([run], ["eng_Latn"], "f1")
    file = run.samples_file("deu_Latn")
    file.write_text(file.read_text().replace('"target": "1"', '"target": "2"'))
    with pytest.raises(UserError, match="does not hold the documents that the other languages have"):
        read_answers([run], ["eng_Latn", "deu_Latn"], "acc")
    file.write_text("{")
    with pytest.raises(UserError, match="is not a samples file"):
        read_answers([run], ["deu_Latn"], "acc")


# -- analysis ----------------------------------------------------------------------------------------------------------


def test_means_gaps_and_groups_by_hand(tmp_path):
    scores = {"eng_Latn": 0.9, "deu_Latn": 0.6, "rus_Cyrl": 0.4, "yor_Latn": 0.2, "fra_Latn": 0.8}
    analysis = analysed({"a": [write_results(tmp_path, scores)]})
    (row,) = rows(analysis, "scores", metric="acc")
    assert (row["source"], row["targets"], row["transfer_gap"]) == pytest.approx((0.9, 0.5, 0.4))
    assert row["target_languages"] == 4
    means = {(of["grouping"], of["group"]): of["mean"] for of in rows(analysis, "groups", metric="acc")}
    assert means["family", "Indo-European"] == pytest.approx(0.6)
    assert means["script", "Cyrillic"] == pytest.approx(0.4)
    assert means["seen", "seen"] == pytest.approx((0.2 + 0.8) / 2)  # the base model is called bloom-560m
    assert means["seen", "unseen"] == pytest.approx((0.6 + 0.4) / 2)
    (german,) = rows(analysis, "languages", language="deu_Latn")
    assert (german["family"], german["seen"], german["acc_gap"]) == ("Indo-European", False, pytest.approx(0.3))
    assert german["genetic_distance"] < 1 == rows(analysis, "languages", language="yor_Latn")[0]["genetic_distance"]


def test_arms_and_their_runs_have_rows(tmp_path):
    files = [write_results(tmp_path / str(seed), some_scores(0.5, 20, seed)) for seed in range(3)]
    analysis = analysed({"a": files})
    assert [row["run"] for row in rows(analysis, "scores", metric="acc")] == ["mean", *map(str, files)]
    whole, *single = rows(analysis, "scores", metric="acc")
    assert whole["targets"] == pytest.approx(np.mean([row["targets"] for row in single]))
    assert whole["spread_over_runs"] == pytest.approx(np.std([row["targets"] for row in single], ddof=1))
    assert len(rows(analysis, "correlations")) == 4 * 6


def test_scores_that_fall_with_distance_are_found_to(tmp_path):
    measured = distances("eng_Latn", languages())
    scores = {code: 0.9 - 0.5 * measured.values["syntactic"][code] for code in languages()}
    analysis = analysed({"a": [write_results(tmp_path, scores)]})
    found = {row["distance"]: row for row in rows(analysis, "correlations")}
    assert found["syntactic"]["pearson"] == pytest.approx(-1)
    assert found["syntactic"]["pearson_p_holm"] < 1e-6
    assert -1 < found["geographic"]["pearson"] < 0
    (halves,) = rows(analysis, "halves", distance="syntactic")
    assert halves["close"] > halves["distant"]
    assert abs(halves["close_languages"] - halves["distant_languages"]) <= 4
    assert halves["gap_low"] < halves["gap"] < halves["gap_high"]


def test_differences_over_documents(tmp_path):
    skill = {code: 0.3 for code in list(languages())[:12]} | {"eng_Latn": 0.6}
    better = {code: chance + 0.35 for code, chance in skill.items()}
    files = {"none": [write_answers(tmp_path / "a", skill)], "prompt": [write_answers(tmp_path / "b", better)]}
    analysis = analysed(files)
    assert "over documents" in analysis.method["means and differences"]
    (targets,) = rows(analysis, "differences", scope="targets")
    a, b = (np.mean([read_run(of[0]).scores["acc"][code].value for code in analysis.targets]) for of in files.values())
    assert targets["difference"] == pytest.approx(b - a)
    assert 0 < targets["low"] < targets["difference"] < targets["high"]
    assert targets["p"] < 0.01
    assert len(rows(analysis, "language_differences", arm="prompt")) == 13
    assert all(row["p"] <= row["p_holm"] for row in rows(analysis, "language_differences"))
    # Documents are hard in all languages alike, so that the mean of many is hardly surer than one language.
    (scores,) = rows(analysis, "scores", arm="none", metric="acc")
    assert scores["targets_high"] - scores["targets_low"] > 2 * 1.96 * np.sqrt(0.25 / 60 / 12)


def test_an_arm_does_not_differ_from_itself(tmp_path):
    file = write_answers(tmp_path, dict.fromkeys(["eng_Latn", "deu_Latn", "fra_Latn"], 0.5))
    for over_documents in (True, False):
        analysis = analysed({"a": [file], "b": [file]}, over_documents=over_documents)
        for row in rows(analysis, "differences"):
            assert row["difference"] == pytest.approx(0)
            assert row["p"] in (None, 1)


def test_without_samples_languages_are_resampled_and_the_report_says_so(tmp_path):
    files = {name: [write_results(tmp_path / name, some_scores(mean, 40))] for name, mean in (("a", 0.4), ("b", 0.6))}
    analysis = analysed(files)
    assert any("resampled over languages, not over documents: there is no samples_" in note for note in analysis.notes)
    (targets,) = rows(analysis, "differences", scope="targets")
    assert targets["low"] > 0.1
    assert all(row["low"] is None for row in rows(analysis, "language_differences"))


def test_what_the_numbers_rest_on_is_noted(tmp_path):
    a = write_results(tmp_path / "a", {"eng_Latn": 0.9, "deu_Latn": 0.5, "fra_Latn": 0.5}, limit=10, base_model="gpt2")
    b = write_results(tmp_path / "b", {"eng_Latn": 0.9, "deu_Latn": 0.6, "qqq_Latn": 0.1}, limit=10, base_model="gpt2")
    analysis = analysed({"a": [a], "b": [b]})
    notes = "\n".join(analysis.notes)
    assert "PARTIAL DATA: a: made with --limit 10" in notes
    assert "over the 1 target languages that all arms have, of 3: a lacks 1; b lacks 1" in notes
    assert "which languages these base models saw is not known: gpt2" in notes
    assert rows(analysis, "languages", language="qqq_Latn")[0]["family"] is None
    alone = analysed({"b": [b]})
    assert any("no genetic distance for 1 target languages (qqq_Latn)" in note for note in alone.notes)
    assert rows(alone, "correlations", distance="genetic")[0]["languages_without_distance"] == 1


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ({"eng_Latn": 0.5, "deu_Latn": 0.5}, {"metric": "f1"}, "has no 'f1'"),
        ({"deu_Latn": 0.5}, {}, "no score in the source language eng_Latn"),
        ({"eng_Latn": 0.5}, {}, "no target language in common"),
        ({"eng_Latn": 0.5, "deu_Latn": 0.5}, {"reference": "x"}, "no arm 'x' to compare with: the arms are 'a'"),
    ],
)
def test_what_can_not_be_analysed_is_refused(tmp_path, scores, options, message):
    with pytest.raises(UserError, match=message):
        analysed({"a": [write_results(tmp_path, scores)]}, **options)


# -- reports -----------------------------------------------------------------------------------------------------------


def test_the_table_by_hand():
    arms = {
        "none": {"eng_Latn": Score(0.5, 0.02), "deu_Latn": Score(0.25, 0.03), "fra_Latn": Score(0.35, 0.04)},
        "prompt": {"eng_Latn": Score(0.6, None), "deu_Latn": Score(0.5, None)},
    }
    assert transfer_table(arms, "eng_Latn", majority=0.25).splitlines() == [
        "| language | majority class | none | prompt |",
        "|---|---:|---:|---:|",
        "| **eng_Latn** (source) | 25.0 | 50.0 ± 2.0 | 60.0 |",
        "| deu_Latn | 25.0 | 25.0 ± 3.0 | 50.0 |",
        "| fra_Latn | 25.0 | 35.0 ± 4.0 | – |",
        "| **mean of 1 target languages** | 25.0 | 25.0 | 50.0 |",
    ]
    assert mean_score([Score(0.2, 0.03), Score(0.4, 0.04)]) == Score(pytest.approx(0.3), None)


def test_names_of_arms_can_not_break_a_table(tmp_path):
    name = "50% | a_b & {c}\\$\n# x"
    analysis = analysed({name: [write_results(tmp_path, some_scores(0.5, 10))]})
    assert "| 50% \\| a_b & {c}\\\\$ # x | 1 |" in as_markdown(analysis)
    assert r"50\% | a\_b \& \{c\}\textbackslash{}\$" in as_latex(analysis)


def test_the_command_prints_markdown_and_saves_every_format(tmp_path, capsys):
    folders = {name: tmp_path / name for name in ("none", "seed0", "seed1")}
    for seed, folder in enumerate(folders.values()):
        write_results(folder, some_scores(0.3 + 0.1 * seed, 30, seed), random_seed=seed)
    arms = [f"no prompt={folders['none']}", f"prompt={folders['seed0']}", f"prompt={folders['seed1']}"]
    out = tmp_path / "out"
    places = [out / "all", out / "one.md", out / "one.csv"]
    assert main(["transfer", *arms, *(f"--output={place}" for place in places)]) == 0
    printed = capsys.readouterr()
    assert printed.out == (out / "one.md").read_text() == (out / "all" / "transfer.md").read_text()
    assert "wrote" in printed.err
    for method in ("2 arccos(cosine) / pi", "lang2vec", "Holm", "bootstrap over languages"):
        assert method in printed.out
        assert method in (out / "all" / "transfer.tex").read_text()
    content = json.loads((out / "all" / "transfer.json").read_text())
    assert content["arms"] == ["no prompt", "prompt"]
    for name, table in content["tables"].items():
        with (out / "all" / f"{name}.csv").open(newline="") as file:
            from_csv = list(csv.DictReader(file))
        from_parquet = parquet.read_table(out / "all" / f"{name}.parquet")
        assert len(table) == len(from_csv) == from_parquet.num_rows > 0
        for row, as_text in zip(table, from_csv, strict=True):
            assert as_text == {key: "" if value is None else str(value) for key, value in row.items()}
    assert b"arccos" in parquet.read_schema(out / "all" / "languages.parquet").metadata[b"lm_eval_spt"]
    assert (out / "one.csv").read_text() == (out / "all" / "languages.csv").read_text()


def test_the_command_prints_latex_and_reading_tables(tmp_path, capsys, monkeypatch):
    write_results(tmp_path / "a", some_scores(0.5, 80))
    assert main(["transfer", f"a={tmp_path / 'a'}", "--latex", "--formula", "cosine"]) == 0
    latex = capsys.readouterr().out
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 5
    assert "1 - cosine" in latex
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["transfer", f"a={tmp_path / 'a'}"]) == 0
    shown = capsys.readouterr().out
    assert "Scores in percent" in shown
    assert "--languages shows them all" in shown
    assert main(["transfer", f"a={tmp_path / 'a'}", "--languages"]) == 0
    assert "(source)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["missing"], "holds no results"), (["a=GOOD", "--output=x.docx"], "a report ends in .md, .tex")],
)
def test_mistakes_are_told_in_one_line(tmp_path, capsys, arguments, message):
    write_results(tmp_path, some_scores(0.5, 10))
    assert main(["transfer", *(argument.replace("GOOD", str(tmp_path)) for argument in arguments)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_200_runs_of_205_languages_take_seconds_and_little_memory(tmp_path):
    template = write_results(tmp_path / "template", some_scores(0.5))
    content = json.loads(template.read_text())
    # The harness records every task's settings, which make up most of a file.
    content["configs"] = {task: {"task": task, "process_results": "x" * 3000} for task in content["results"]}
    for number in range(200):
        content["config"]["random_seed"] = number
        folder = tmp_path / "runs" / str(number // 4)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"results_{number}.json").write_text(json.dumps(content))
    arms = [f"arm {number}={tmp_path / 'runs' / str(number)}" for number in range(50)]
    program = (
        "import json, pathlib, re, sys, time\n"
        "from lm_eval_spt.cli import main\n"
        "main(['transfer', *sys.argv[1:]])\n"
        "status = pathlib.Path('/proc/self/status')\n"  # a child's ru_maxrss begins with its parent's
        "peak = re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1] if status.exists() else 0\n"
        "figures = [time.process_time(), int(peak)]\n"
        "print(json.dumps(figures), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", program, *arms]
    done = subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seconds, memory = json.loads(done.stderr.splitlines()[-1])
    # 8 to 10 s of the processor were measured; twice that is left to machines that are slower or shared.
    assert seconds < 20
    assert memory < 2**20  # 1 GB, in kB
