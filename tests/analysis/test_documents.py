"""Reading samples, and how much each document moves a score."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from lm_eval_spt.analysis.documents import influence_of, read_influence
from lm_eval_spt.analysis.results import read_run
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.samples import samples_path
from lm_eval_spt.harness.text_classification import macro_f1
from tests.helpers.results import LABELS, write_answers

CODES = ["eng_Latn", "deu_Latn"]
HALF = dict.fromkeys(CODES, 0.5)


@pytest.mark.parametrize("metric", ["acc", "macro_f1"])
def test_both_forms_of_samples_say_the_same(tmp_path, metric):
    runs = [read_run(write_answers(tmp_path / form, HALF, compact=form == "compact")) for form in ("compact", "full")]
    assert samples_path(runs[0].path).is_file() and not samples_path(runs[1].path).exists()
    compact, full = (read_influence([run], CODES, metric) for run in runs)
    assert compact.shape == (1, 2, 60)
    assert np.array_equal(compact, full)


def test_the_squares_of_influences_are_the_variance_of_a_mean(tmp_path):
    run = read_run(write_answers(tmp_path, HALF))
    influence = read_influence([run], CODES, "acc")[0]
    right = np.array(
        [
            [
                sample["acc"]
                for sample in sorted(
                    map(json.loads, run.samples_file(code).read_text().splitlines()), key=lambda s: s["doc_id"]
                )
            ]
            for code in CODES
        ]
    )
    covariance = np.cov(right) / 60  # documents of the same id are the same in both languages
    assert influence @ influence.T == pytest.approx(covariance, rel=1e-5)
    assert covariance[0, 1] > 0


def test_that_of_macro_f1_is_what_resampled_documents_give():
    random = np.random.default_rng(0)
    predicted = np.where(random.random(60) < 0.6, LABELS, random.integers(0, 7, 60))
    pairs = np.stack([LABELS, predicted], axis=1)[None].astype(float)
    (score,), influence = influence_of(pairs, np.ones((1, 60), dtype=bool), "macro_f1")
    as_pairs = [(int(label), int(answer)) for label, answer in pairs[0]]
    assert score == pytest.approx(macro_f1(as_pairs))
    assert influence.sum() == pytest.approx(0, abs=1e-9)
    left_out = np.array([macro_f1(as_pairs[:d] + as_pairs[d + 1 :]) for d in range(60)])
    jackknife = 59 / 60 * ((left_out - left_out.mean()) ** 2).sum()
    assert (influence**2).sum() == pytest.approx(jackknife)
    draws = [macro_f1([as_pairs[d] for d in random.integers(0, 60, 60)]) for _ in range(4000)]
    assert np.sqrt((influence**2).sum()) == pytest.approx(np.std(draws), rel=0.1)


def test_documents_of_other_ids_have_nothing_in_common(tmp_path):
    run = read_run(write_answers(tmp_path, HALF))
    joint = read_influence([run], CODES, "acc")[0]
    file = run.samples_file("deu_Latn")
    file.write_text(file.read_text().replace('"index_id": 1', '"index_id": 2'))
    apart = read_influence([run], CODES, "acc")[0]
    assert apart.shape == (2, 120)
    assert (apart @ apart.T)[0, 1] == 0
    assert (apart**2).sum(axis=1) == pytest.approx((joint**2).sum(axis=1))


def test_without_ids_of_their_own_documents_are_told_by_their_position(tmp_path):
    run = read_run(write_answers(tmp_path, HALF))
    expected = read_influence([run], CODES, "acc")
    for code in CODES:
        file = run.samples_file(code)
        file.write_text(file.read_text().replace('"index_id"', '"other"'))
    found = read_influence([run], CODES, "acc")
    assert np.sort(found[0, 0]) == pytest.approx(np.sort(expected[0, 0]))
    assert found[0] @ found[0].T == pytest.approx(expected[0] @ expected[0].T)


def test_samples_that_can_not_be_used_are_refused_in_one_line(tmp_path):
    run = read_run(write_answers(tmp_path / "a", HALF))
    file = run.samples_file("deu_Latn")
    text = file.read_text()

    def refused(match: str, *others, languages=CODES, metric="acc") -> None:
        with pytest.raises(UserError, match=match) as error:
            read_influence([run, *others], languages, metric)
        assert "\n" not in str(error.value)

    refused("no samples beside .*results_.*score again with lm-eval-spt evaluate", languages=["fra_Latn"])
    refused("not samples with 'f1'", metric="f1")
    other = read_run(write_answers(tmp_path / "b", HALF, seed=1))
    theirs = other.samples_file("deu_Latn")
    theirs.write_text(theirs.read_text().replace('"target": "1"', '"target": "2"'))
    refused("b/.* and .*a/.* were not scored on the same documents", other)
    file.write_text(other.samples_file("eng_Latn").read_text().replace('"acc": 1.0', '"acc": 0.0'))
    refused("give acc 0.0000 in deu_Latn, its results 0.[0-9]+: they are not of that run")
    file.write_text("\n".join(text.splitlines()[:59]))
    refused("they are not of that run")
    file.write_text(text.replace('"index_id": 1001}', '"index_id": 1002}'))
    assert read_influence([run], CODES, "acc").shape == (1, 2, 120)  # ids that are no ids: positions, in German alone
    file.write_text("{")
    refused("are not samples with 'acc'")
    file.write_text("")
    refused("0 to 60 documents, expected 1")
    alone = read_run(write_answers(tmp_path / "c", {"eng_Latn": 0.5}))
    one = alone.samples_file("eng_Latn")
    one.write_text(next(line for line in one.read_text().splitlines(keepends=True) if '"acc": 1.0' in line))
    with pytest.raises(UserError, match="has one document in a language"):
        read_influence([alone], ["eng_Latn"], "acc")


def test_compact_samples_that_can_not_be_used_are_refused_in_one_line(tmp_path):
    run = read_run(write_answers(tmp_path, HALF, compact=True))
    path = samples_path(run.path)
    table = parquet.read_table(path)

    def refused(match: str, changed: pa.Table | None, metric: str = "acc", languages=CODES) -> None:
        if changed is not None:
            parquet.write_table(changed, path)
        with pytest.raises(UserError, match=match) as error:
            read_influence([run], languages, metric)
        assert "\n" not in str(error.value)

    refused("has no 'bleu'", None, "bleu")
    refused("has no samples of sib200_fra_Latn", None, languages=["fra_Latn"])
    refused("two documents of one task have the same id", pa.concat_tables([table, table]))
    refused("not samples with 'macro_f1'", table.set_column(4, "macro_f1", table["acc"]), "macro_f1")
    refused("acc is not a number", table.set_column(3, "acc", pa.array([float("nan")] * 120)))
    refused("a task, an id or a target is missing", table.set_column(1, "doc_id", pa.nulls(120, pa.string())))
    path.write_bytes(b"PAR1 is not all of it")
    refused("are not samples", None)
