"""The measured results: the tables are made of their archives, and an archive holds all that the commands read."""

from __future__ import annotations

import json
import lzma
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from lm_eval_spt.analysis.arms import training_record
from lm_eval_spt.analysis.documents import read_influence
from lm_eval_spt.analysis.results import EvaluationRun, read_all, read_run
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.evaluate import evaluate_prompts
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.harness.samples import samples_path
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train.examples import load_tasks
from results.archive import pack, unpack
from results.findings import combine, few_shot
from results.findings import tables as findings
from results.sib200 import tables as sib200
from tests.helpers.models import random_prompt_files
from tests.helpers.paths import ROOT
from tests.helpers.results import some_scores, write_answers, write_prompt, write_results
from tests.helpers.scoring import requests, values


@pytest.mark.parametrize("module", [findings, sib200])
def test_the_tables_are_those_of_the_archives(tmp_path: Path, module) -> None:
    committed = Path(module.__file__).parent
    module.write_tables(tmp_path)
    names = {file.relative_to(tmp_path) for file in tmp_path.rglob("*.md")}
    folders = {name.parent for name in names}
    assert names == {file.relative_to(committed) for folder in folders for file in (committed / folder).glob("*.md")}
    for name in names:
        assert (tmp_path / name).read_bytes() == (committed / name).read_bytes(), name


def test_a_table_takes_its_place_on_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "HERE", tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "summary.md").write_text("## a\n\n| new |\n| a |\n\n## a-8\n\n| of eight |\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text("So:\n\n<!-- a-8 -->\n\n<!-- a -->\n| old |\n| o |\n| o |\n\nIt | says.\n", encoding="utf-8")
    findings.show_tables("m", page)
    shown = "So:\n\n<!-- a-8 -->\n| of eight |\n\n<!-- a -->\n| new |\n| a |\n\nIt | says.\n"
    assert page.read_text(encoding="utf-8") == shown
    findings.show_tables("m", page)
    assert page.read_text(encoding="utf-8") == shown
    page.write_text("<!-- a -->\n", encoding="utf-8")
    with pytest.raises(UserError, match="where the table a-8 belongs"):
        findings.show_tables("m", page)
    assert page.read_text(encoding="utf-8") == "<!-- a -->\n"


def test_the_documentation_shows_the_tables() -> None:
    for model, name in findings.PAGES.items():
        page = (findings.DOCS / name).read_text(encoding="utf-8")
        summary = (ROOT / f"results/findings/{model}/summary.md").read_text(encoding="utf-8")
        assert summary.count("\n## ") + 1 == len(findings.MODELS[model])
        for comparison in summary.removeprefix("## ").split("\n## "):
            title, _, table = comparison.partition("\n\n")
            assert f"<!-- {title} -->\n{table}\n" in page
    report = (ROOT / "results/findings/gemma-3-270m/languages-8.md").read_text(encoding="utf-8")
    (scores,) = re.findall(r"## Scores in percent\n\n(.*?)\n\n", report, re.DOTALL)
    assert scores in (ROOT / "docs/sib200.md").read_text(encoding="utf-8")
    # The means over groups of languages, restated from the table of all of them.
    lines = (ROOT / "results/sib200/205_languages_acc.md").read_text(encoding="utf-8").splitlines()
    rows = {row[0]: [float(re.match(r"[\d.]+", cell)[0]) for cell in row[1:]] for row in map(_cells, lines[2:])}
    english = rows.pop("**eng_Latn** (source)")
    page = (ROOT / "docs/findings-mini.md").read_text(encoding="utf-8")
    shown = {row[0]: row[1:] for row in map(_cells, page.splitlines()) if len(row) == 5}
    assert shown["English (source)"] == [f"{value:.1f}" for value in english]
    del rows["**mean of 204 target languages**"]
    everything = [*rows.values(), english]
    means = [sum(column) / len(everything) for column in zip(*everything, strict=True)]
    assert [float(cell) for cell in shown["all 205"]] == pytest.approx(means, abs=0.06)


def test_an_archive_holds_all_that_is_read(tmp_path: Path) -> None:
    prompt = write_prompt(tmp_path / "p.safetensors")
    raw = tmp_path / "raw"
    write_results(raw / "none", some_scores(0.5))
    file = write_results(raw / "prompt" / "seed0", some_scores(0.6), prompt=prompt, num_fewshot=2, limit=100)
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | {"configs": {"sib200_eng_Latn": "x" * 100_000}}), encoding="utf-8")
    pack(raw, tmp_path / "raw.tar.xz")
    again = unpack(tmp_path / "raw.tar.xz", tmp_path / "again")
    assert _runs(again) == _runs(raw)
    assert len(_runs(again)) == 2
    assert "x" * 100 not in "".join(path.read_text(encoding="utf-8") for path in again.rglob("*.json"))

    pack(again, tmp_path / "again.tar.xz")
    assert (tmp_path / "again.tar.xz").read_bytes() == (tmp_path / "raw.tar.xz").read_bytes()


@pytest.mark.parametrize("compact", [True, False])
def test_an_archive_keeps_samples(tmp_path: Path, compact: bool) -> None:
    raw = tmp_path / "raw"
    file = write_answers(raw / "a", {"eng_Latn": 0.4, "deu_Latn": 0.7}, compact=compact)
    pack(raw, tmp_path / "raw.tar.xz")
    again = unpack(tmp_path / "raw.tar.xz", tmp_path / "again")
    for metric in ("acc", "macro_f1"):
        before, after = (
            read_influence([read_run(path)], ["eng_Latn", "deu_Latn"], metric)
            for path in (file, again / file.relative_to(raw))
        )
        assert np.array_equal(before, after)
    pack(again, tmp_path / "again.tar.xz")
    assert (tmp_path / "again.tar.xz").read_bytes() == (tmp_path / "raw.tar.xz").read_bytes()
    samples_path(file).write_bytes(b"no Parquet")
    with pytest.raises(UserError, match="samples of .* can not be read .*expected what the harness wrote"):
        pack(raw, tmp_path / "raw.tar.xz")


def test_answers_without_samples_are_not_combined(tmp_path: Path) -> None:
    file = write_results(tmp_path / "a", some_scores(0.5, count=3))
    with pytest.raises(UserError, match="no samples with macro_f1 or f1 beside it: score it with --log_samples"):
        combine.write([file], tmp_path / "out", None, "probability")
    file.write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match="is not a results file"):
        combine.write([file], tmp_path / "out", None, "probability")
    assert not (tmp_path / "out").exists()


def test_answers_that_do_not_fit_are_not_combined(tmp_path: Path) -> None:
    prompt = write_prompt(tmp_path / "p.safetensors")
    both = write_answers(tmp_path / "both", {"eng_Latn": 0.4, "deu_Latn": 0.7}, compact=True, prompt=prompt)
    one = write_answers(tmp_path / "one", {"eng_Latn": 0.4}, compact=True, prompt=prompt)
    none = write_answers(tmp_path / "none", {"eng_Latn": 0.4}, compact=True)
    with pytest.raises(UserError, match="has no prompt: expected runs that were each scored with one"):
        combine.write([one, none], tmp_path / "out", None, "probability")
    with pytest.raises(UserError, match="answer other documents of sib200_deu_Latn: expected the same in each"):
        combine.write([both, one], tmp_path / "out", None, "probability")
    with pytest.raises(UserError, match=r"label counts 3\+4\+0.5, of 3 labels, the task 'sib200_\w+' has 7 choices"):
        combine.write([both], tmp_path / "out", "3+4+0.5", "probability")
    assert not (tmp_path / "out").exists()


def test_what_is_no_archive_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.tar.xz").write_text("no archive", encoding="utf-8")
    (tmp_path / "lines.tar.xz").write_bytes(lzma.compress(b"no tar\n" * 100))
    _write_tar(tmp_path / "whole.tar.xz", "a/results_1.json")
    whole = (tmp_path / "whole.tar.xz").read_bytes()
    (tmp_path / "cut.tar.xz").write_bytes(whole[:-40])
    for name in ("text", "lines", "cut", "missing"):
        with pytest.raises(UserError, match=f"{name}.tar.xz can not be read .*expected what"):
            unpack(tmp_path / f"{name}.tar.xz", tmp_path / "out")
    _write_tar(tmp_path / "outside.tar.xz", "../results_1.json")
    with pytest.raises(UserError, match="outside of"):
        unpack(tmp_path / "outside.tar.xz", tmp_path / "out")
    assert not (tmp_path / "results_1.json").exists()


def test_the_command_packs_a_folder_and_gives_it_back(tmp_path: Path) -> None:
    write_results(tmp_path / "mine" / "none", some_scores(0.5, count=3))
    expected = _runs(tmp_path / "mine")
    _archive(tmp_path / "mine")
    (tmp_path / "mine").rename(tmp_path / "theirs")
    _archive(tmp_path / "mine", "--unpack")
    assert _runs(tmp_path / "mine") == expected
    assert "holds no results_*.json" in _archive(tmp_path / "nothing", status=1)


def _archive(*arguments: str | Path, status: int = 0) -> str:
    command = [sys.executable, "-m", "results.archive", *arguments]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == status, done.stderr
    assert len(done.stderr.splitlines()) == (1 if status else 0)
    return done.stderr


def _write_tar(path: Path, member: str) -> None:
    with tarfile.open(path, "w:xz") as tar:
        tar.addfile(tarfile.TarInfo(member))


def _runs(folder: Path) -> list[EvaluationRun]:
    """The runs in a folder, wherever it is."""
    runs, left_out = read_all([folder])
    assert not left_out
    return [replace(run, path=run.path.relative_to(folder)) for run in runs]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_examples_in_context_are_what_the_harness_writes(tmp_path: Path) -> None:
    """As a prefix prompt they give the log-likelihoods that they give as text."""
    lm = SPTLM(pretrained="mini", device="cpu")
    text = few_shot.shots("mini_topics_instruct_eng_Latn", number=2, seed=1)
    (task,) = load_tasks(["mini_topics_instruct_eng_Latn"])
    document, *rest = task.test_docs()
    chosen = few_shot.drawn(task, number=2, seed=1)
    task.sampler.sample = lambda *_, **__: chosen  # what the harness would draw
    assert task.fewshot_context(document, num_fewshot=2) == text + task.doc_to_text(document)

    prompt = few_shot.prompt_of(lm, text, "mini")
    prompted = SPTLM.from_loaded(lm, prompt=prompt, add_bos_token=False)
    asked = requests("loglikelihood", [(task.doc_to_text(document), f" {choice}") for choice in ("sports", "travel")])
    shots = [lm.tokenizer.bos_token_id, *lm.tokenizer(text, add_special_tokens=False)["input_ids"]]
    pairs = prompted.encode_pairs([request.args for request in asked], "prefix")
    expected = lm._loglikelihood_tokens([(None, shots + context, choice) for context, choice in pairs])
    assert values(prompted.loglikelihood(asked)) == pytest.approx(values(expected), abs=1e-4)


@pytest.mark.parametrize("calibration", [None, "probability", "log_probability", "label_prior", "7+6+5+4+3+2+1"])
def test_answers_are_combined_as_the_model_class_does(tmp_path: Path, calibration: str | None) -> None:
    lm = SPTLM(pretrained="mini", device="cpu", batch_size="auto")
    tasks = ["mini_topics_eng_Latn", "mini_topics_swh_Latn"]
    names = random_prompt_files(lm.model, tmp_path, ("suffix", 3), ("suffix", 3))
    for number, name in enumerate(names):
        prompt = SoftPrompt.load(name)
        record = prompt.metadata | {"label_counts": [30, 20, 10, 10, 10, 5, 5 + number]}
        SoftPrompt(prompt.vectors, record).save(name)
    plain = evaluate_prompts(names, tasks, str(tmp_path / "plain"), base=lm, limit=8, model_args="pretrained=mini")
    for number, (name, runs) in enumerate([(names[0], plain[:1]), ("+".join(names), plain)]):
        arguments = "pretrained=mini" + (f",calibration={calibration}" if calibration else "")
        (scored,) = evaluate_prompts([name], tasks, str(tmp_path / "scored"), base=lm, limit=8, model_args=arguments)
        combine.write(runs, tmp_path / f"combined{number}", calibration, "probability")
        (found,) = (tmp_path / f"combined{number}").glob("results_*.json")
        tables = [parquet.read_table(samples_path(file)).to_pydict() for file in (found, scored)]
        assert tables[0]["acc"] == tables[1]["acc"] and tables[0]["doc_id"] == tables[1]["doc_id"]
        ours, its_own = read_run(found), read_run(scored)
        assert ours.scores["acc"] == its_own.scores["acc"]
        assert (ours.identity, ours.model_name) == (its_own.identity, its_own.model_name)
        assert training_record(ours) == training_record(its_own)
