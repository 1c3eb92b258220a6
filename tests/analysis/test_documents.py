"""Reading logged samples, and scores of resampled documents."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lm_eval_spt.analysis.documents import read_answers
from lm_eval_spt.analysis.results import read_run
from lm_eval_spt.analysis.statistics import resample
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.text_classification import macro_f1
from tests.helpers.results import LABELS, write_answers


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
