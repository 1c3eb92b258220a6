"""Exported results: valid by Every Eval Ever's own schemas, and with the numbers of the harness's files.

The schemas in ``every_eval_ever/`` are those of the package ``every-eval-ever`` 0.3.0 (MIT, see ``LICENSE`` there).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lm_eval_spt.analysis.results import read_run
from lm_eval_spt.cli import main
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.hub.every_eval_ever import SCHEMA_VERSION, export
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.results import write_prompt, write_results

SCHEMAS = Path(__file__).parent / "every_eval_ever"
SCORES = {"eng_Latn": 0.8, "deu_Latn": 0.5}
CHOICES = [" science", " travel"]


def valid(content: Any, schema: str) -> Any:
    described = json.loads((SCHEMAS / f"{schema}.schema.json").read_text())
    assert described["version"] == SCHEMA_VERSION
    jsonschema.Draft7Validator(described).validate(content)
    return content


def sample(number: int, label: int, answer: int) -> dict[str, Any]:
    """A line of ``--log_samples``, as lm_eval 0.4.13 writes it."""
    return {
        "doc_id": number, "doc": {"text": f"text {number}"}, "target": str(label),
        "arguments": {f"gen_args_{i}": {"arg_0": f"text {number}", "arg_1": c} for i, c in enumerate(CHOICES)},
        "resps": [[["-1.0", "True"]], [["-2.0", "False"]]],
        "filtered_resps": [[str(-1.5 if i == answer else -2.5), "False"] for i in range(2)],
        "filter": "none", "metrics": ["acc", "macro_f1"], "doc_hash": "ab",
        "acc": float(label == answer), "macro_f1": [label, answer],
    }  # fmt: skip


def write_samples(results: Path, language: str, samples: list[dict[str, Any]]) -> Path:
    path = read_run(results).samples_file(language)
    path.write_text("".join(json.dumps(line) + "\n" for line in samples))
    return path


@pytest.fixture
def prompt(tmp_path: Path) -> SoftPrompt:
    return SoftPrompt.load(write_prompt(tmp_path / "suffix.safetensors"))


@pytest.fixture
def results(tmp_path: Path, prompt: SoftPrompt) -> Path:
    return write_results(tmp_path / "results", SCORES, prompt=tmp_path / "suffix.safetensors")


def test_a_record_is_valid_and_says_which_prompt(tmp_path: Path, results: Path, prompt: SoftPrompt) -> None:
    [path] = export(read_run(results), tmp_path / "out", "my-lab")
    record = valid(json.loads(path.read_text()), "eval")
    model = f"bloom-560m+suffix@{prompt.digest[:8]}"
    assert record["model_info"]["id"] == f"org/{model}"
    details = record["model_info"]["additional_details"]
    assert details["prompt_digest"] == prompt.digest and details["base_model"] == "org/bloom-560m"
    assert json.loads(details["prompt_metadata"])["shots"] == 8
    assert path.parent == tmp_path / "out" / "data" / "sib200" / "org" / model

    raw = json.loads(results.read_text())["results"]
    scores = {entry["evaluation_result_id"]: entry for entry in record["evaluation_results"]}
    assert scores.keys() == {f"sib200_{language}:{metric}" for language in SCORES for metric in ("acc", "macro_f1")}
    for name, entry in scores.items():
        task, _, metric = name.partition(":")
        assert entry["score_details"]["score"] == raw[task][f"{metric},none"]
        assert entry["score_details"]["uncertainty"] == {
            "num_samples": 204,
            "standard_error": {"value": raw[task][f"{metric}_stderr,none"]},
        }
        assert entry["source_data"]["hf_repo"] == "Davlan/sib200" and not entry["metric_config"]["lower_is_better"]


def test_another_prompt_or_none_is_another_model(tmp_path: Path, results: Path) -> None:
    other = write_prompt(tmp_path / "suffix2.safetensors", seed=1)
    files = [
        results,
        write_results(tmp_path / "other", SCORES, prompt=other),
        write_results(tmp_path / "none", SCORES),
        write_results(tmp_path / "local", SCORES, base_model="/models/bloom"),
        write_results(tmp_path / "mini", SCORES, base_model="mini"),
    ]
    records = [json.loads(export(read_run(file), tmp_path / "out", "a/lab")[0].read_text()) for file in files]
    ids = [valid(record, "eval")["model_info"]["id"] for record in records]
    assert len(set(ids)) == 5
    assert ids[2:] == ["org/bloom-560m", "a_lab/bloom", "lm_eval_spt/mini"]


@pytest.mark.parametrize("group", ["", "sib200::"])  # lm_eval 0.4, and a task of a group since 0.5
def test_the_direction_of_a_metric_is_the_harness_s(tmp_path: Path, group: str) -> None:
    file = write_results(tmp_path / "results", {"eng_Latn": 0.5})
    content = json.loads(file.read_text())
    content["results"]["sib200_eng_Latn"]["perplexity,none"] = 12.5
    content["higher_is_better"] = {f"{group}sib200_eng_Latn": {"acc": True, "perplexity": False}}
    file.write_text(json.dumps(content))
    record = valid(json.loads(export(read_run(file), tmp_path, "lab")[0].read_text()), "eval")
    lower = {
        e["metric_config"]["metric_name"]: e["metric_config"]["lower_is_better"] for e in record["evaluation_results"]
    }
    assert lower == {"acc": False, "macro_f1": False, "perplexity": True}


def test_samples_go_beside_the_record(tmp_path: Path, results: Path) -> None:
    write_samples(results, "deu_Latn", [sample(0, 0, 0), sample(1, 0, 1), sample(2, 1, 1)])
    path, samples = export(read_run(results), tmp_path / "out", "my-lab")
    about = valid(json.loads(path.read_text()), "eval")["detailed_evaluation_results"]
    assert tmp_path / "out" / about["file_path"] == samples
    assert about["checksum"] == hashlib.sha256(samples.read_bytes()).hexdigest() and about["total_rows"] == 3
    lines = [valid(json.loads(line), "instance_level_eval") for line in samples.read_text().splitlines()]
    assert [(line["sample_id"], line["evaluation"]["is_correct"]) for line in lines] == [
        ("0", True), ("1", False), ("2", True),
    ]  # fmt: skip
    assert lines[1]["input"] == {"raw": "text 1", "reference": [" science"], "choices": CHOICES}
    assert lines[1]["output"] == {"raw": [" travel"]}
    record = json.loads(path.read_text())
    assert {line["evaluation_id"] for line in lines} == {record["evaluation_id"]}
    assert {line["evaluation_result_id"] for line in lines} == {"sib200_deu_Latn:acc"}


def test_of_several_filters_the_first_counts(tmp_path: Path, results: Path) -> None:
    write_samples(results, "deu_Latn", [sample(0, 0, 0), sample(0, 0, 1) | {"filter": "other"}, sample(1, 0, 1)])
    _, samples = export(read_run(results), tmp_path / "out", "my-lab")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [(line["sample_id"], line["evaluation"]["score"]) for line in lines] == [("0", 1.0), ("1", 0.0)]


def test_a_file_that_the_harness_did_not_write_is_one_line(tmp_path: Path, results: Path) -> None:
    results.write_text(json.dumps(json.loads(results.read_text()) | {"higher_is_better": [1]}))
    with pytest.raises(UserError, match="is not a results file of the harness"):
        export(read_run(results), tmp_path / "out", "lab")
    assert not (tmp_path / "out").exists()


def test_samples_of_generated_answers(tmp_path: Path, results: Path) -> None:
    generated = {
        "doc_id": 4, "target": "42", "arguments": {"gen_args_0": {"arg_0": "6 * 7 =", "arg_1": {"until": ["\n"]}}},
        "resps": [["42"]], "filtered_resps": ["42"], "filter": "none", "acc": 1.0,
    }  # fmt: skip
    write_samples(results, "deu_Latn", [generated])
    _, samples = export(read_run(results), tmp_path / "out", "my-lab")
    line = valid(json.loads(samples.read_text()), "instance_level_eval")
    assert line["input"] == {"raw": "6 * 7 =", "reference": ["42"], "choices": None}
    assert line["output"] == {"raw": ["42"]}


def test_to_export_again_replaces(tmp_path: Path, results: Path) -> None:
    arguments = ["export", str(results.parent), "--output", str(tmp_path / "out"), "--organization", "lab"]
    assert main(arguments) == main(arguments) == 0
    assert len(list((tmp_path / "out").rglob("*.json"))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        json.dumps(sample(0, 0, 0) | {"acc": float("nan")}),
        json.dumps(sample(0, 0, 0) | {"filtered_resps": []}),
    ],
)
def test_what_is_no_samples_file_is_one_line(
    tmp_path: Path, results: Path, line: str, capsys: pytest.CaptureFixture
) -> None:
    read_run(results).samples_file("eng_Latn").write_text(line)
    assert main(["export", str(results), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "is not a samples file of the harness" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_results_the_user_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        export(read_run(tmp_path / "results_x.json"), tmp_path, "lab")
    assert main(["export", str(tmp_path)]) == 1


def test_a_task_without_a_language_is_told_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_results(tmp_path / "results", {"a": 0.5}, family="hellaswag")
    command = ["export", str(tmp_path / "results"), "--output", str(tmp_path / "out")]
    assert main(command) == 1
    assert "can not be told" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "languages.yaml").write_text("hellaswag_a: deu_Latn")
    assert main([*command, "--languages", str(tmp_path / "languages.yaml")]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()


@pytest.mark.parametrize(
    ("base_model", "developer"), [("models/base.gguf", "my-lab"), ("here/base", "my-lab"), ("org/base", "org")]
)
def test_a_local_model_has_no_owner(
    tmp_path: Path, base_model: str, developer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here/base").mkdir(parents=True)
    record, *_ = export(
        read_run(write_results(Path("r"), {"eng_Latn": 0.5}, base_model=base_model)), Path("o"), "my-lab"
    )
    info = json.loads(record.read_text())["model_info"]
    availability = "open_weights" if developer == "org" else "unknown"
    assert (info["developer"], info["additional_details"]["model_availability"]) == (developer, availability)
