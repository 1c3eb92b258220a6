"""The compact form of samples."""

from __future__ import annotations

import io

import numpy as np
import pytest
from pyarrow import parquet

from lm_eval_spt.harness.samples import as_parquet, document_ids


def read(samples: dict) -> list[dict]:
    return parquet.read_table(io.BytesIO(as_parquet(samples))).to_pylist()


def test_what_is_kept_of_each_kind_of_answer():
    chosen = {
        "doc_id": 0, "doc": {"id": "a"}, "target": 1, "metrics": ["acc", "pair", "text"], "acc": np.float64(1),
        "pair": (1, 0), "text": "no number", "filtered_resps": [(-0.5, True), (-2.25, False)],
    }  # fmt: skip
    second = {**chosen, "doc_id": 1, "doc": {"id": "b"}, "acc": 0.0, "pair": (0, 0)}
    again = {**second, "acc": 1.0}  # another filter's
    written = {
        "doc_id": 0, "doc": {"text": "x"}, "target": "words", "metrics": ["exact_match"], "exact_match": True,
        "filtered_resps": ["some text"],
    }  # fmt: skip
    rows = read({"choose": [chosen, second, again], "write": [written]})
    assert [row["doc_id"] for row in rows] == ["a", "b", "0"]
    assert [row["task"] for row in rows] == ["choose", "choose", "write"]
    assert [row["target"] for row in rows] == ["1", "1", "words"]
    assert [row["acc"] for row in rows] == [1, 0, None] and [row["exact_match"] for row in rows] == [None, None, 1]
    assert [row["pair"] for row in rows] == [[1, 0], [0, 0], None]
    assert [row["loglikelihoods"] for row in rows] == [[-0.5, -2.25], [-0.5, -2.25], []]
    assert "text" not in rows[0]


@pytest.mark.parametrize(
    ("documents", "ids"),
    [
        ([{"index_id": 7}, {"index_id": 5}], ["7", "5"]),
        ([{"index_id": 7}, {"index_id": 7}], ["0", "1"]),  # not an id
        ([{"index_id": 7}, {}], ["0", "1"]),
        (["text", "text"], ["0", "1"]),
    ],
)
def test_ids_are_the_data_set_s_own_where_they_tell_documents_apart(documents, ids):
    assert document_ids([{"doc_id": number, "doc": doc} for number, doc in enumerate(documents)]) == ids


def test_205_languages_of_204_documents_and_seven_choices_take_less_than_three_megabytes():
    random = np.random.default_rng(0)
    samples = {
        f"sib200_{language}": [
            {
                "doc_id": number, "doc": {"index_id": number}, "target": str(number % 7),
                "metrics": ["acc", "macro_f1"],
                "acc": float(random.random() < 0.5), "macro_f1": (number % 7, int(random.integers(7))),
                "filtered_resps": [(value, False) for value in random.normal(-10, 3, 7)],
            }
            for number in range(204)
        ]
        for language in range(205)
    }  # fmt: skip
    assert len(as_parquet(samples)) < 3_000_000
