"""Accuracies of calibrated answers and of ensembles, from answers that were given: python -m results.findings.combine

    python -m results.findings.combine sweeps/s/results/frozen-seed0 --calibration log_probability --output calibrated/0
    python -m results.findings.combine sweeps/s/results/frozen-seed* --calibration label_prior --output ensemble

They are what ``calibration=`` and ``ensemble=`` of the model class give, and no text is read again: the samples beside
a results file hold the log-likelihoods of every document's choices, which have to be the same in all documents.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lm_eval_spt.analysis.results import results_files
from lm_eval_spt.common.errors import UserError, show_user_errors_in_one_line
from lm_eval_spt.common.files import written_together
from lm_eval_spt.harness.calibration import as_calibration, calibrate, label_counts, label_shares, match_prior
from lm_eval_spt.harness.samples import as_parquet, samples_path
from lm_eval_spt.prompt.ensemble import Average, combine, digest_of, name_of, record_of
from results.archive import compact_samples

PAIRS = ("macro_f1", "f1")
"""Metrics of which samples hold (label, prediction)."""


def combined(
    task: str,
    values: NDArray[np.float64],
    calibration: str | None,
    average: Average,
    records: Sequence[dict[str, Any]],
) -> NDArray[np.float64]:
    """Return the answers to a task's documents of one run, or of an ensemble.

    Args:
        task: its name.
        values: `[runs, documents, choices]`, log-likelihoods.
        calibration: of each run's, if wanted.
        average: of several runs.
        records: of each run's prompt, tuned model or adapter; empty where there is none.

    Returns:
        `[documents, choices]`

    Raises:
        UserError: they can not be calibrated like this.
    """
    runs, number, choices = values.shape
    documents, positions = np.repeat(np.arange(number), choices), np.tile(np.arange(choices), number)
    rows = values.reshape(runs, -1).copy()
    for run, record in enumerate(records if calibration else ()):
        if (counts := label_counts(calibration, record)) is not None:
            rows[run] = match_prior(rows[run], documents, positions, label_shares(counts, task, choices)[positions])
        else:
            rows[run] = calibrate(rows[run], documents, positions, cast(Average, calibration))
    return (rows[0] if runs == 1 else combine(rows, documents, average)).reshape(number, choices)


def read_answers(results: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the samples of each task: rows with ``doc_id``, ``target``, ``gold`` (a number) and ``loglikelihoods``."""
    table = compact_samples(results)
    if table is None or not {*PAIRS} & {*table.column_names}:
        raise UserError(f"{results} has no samples with {' or '.join(PAIRS)} beside it: score it with --log_samples")
    pairs = next(name for name in PAIRS if name in table.column_names)
    answers: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        answers.setdefault(row["task"], []).append(row | {"gold": row[pairs][0]})
    return answers


def as_ensemble(contents: Sequence[dict[str, Any]], average: Average) -> dict[str, Any]:
    """Return the results file of the first member with what the model class records of the ensemble.

    Raises:
        UserError: a member was scored without a prompt.
    """
    configs = [content["config"] for content in contents]
    if not all("prompt_name" in config for config in configs):
        raise UserError("a run to be combined has no prompt: expected runs that were each scored with one")
    members = [(config["prompt_name"], config["prompt_digest"], config["prompt_metadata"]) for config in configs]
    name, digest = name_of([name for name, _, _ in members]), digest_of([digest for _, digest, _ in members], average)
    base = contents[0]["model_name"].removesuffix(f"+{members[0][0]}@{members[0][1][:8]}")
    prompts = "+".join(config["model_args"]["prompt"] for config in configs)
    about_prompt = {
        "model_args": configs[0]["model_args"] | {"prompt": prompts, "ensemble": average},
        "prompt_name": name,
        "prompt_digest": digest,
        "prompt_length": sum(config["prompt_length"] for config in configs),
        "prompt_metadata": record_of(members, average),
    }
    return contents[0] | {"model_name": f"{base}+{name}@{digest[:8]}", "config": configs[0] | about_prompt}


def write(runs: list[Path], output: Path, calibration: str | None, average: Average) -> None:
    """Write results of one run, or of several as an ensemble, with the accuracies that follow from their samples."""
    files = [results_files(run)[0] for run in runs]
    read = [read_answers(file) for file in files]  # refuses what is no results file
    contents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    configs = [content["config"] for content in contents]
    records = [config.get("prompt_metadata") or config.get("model_metadata") or {} for config in configs]
    content = as_ensemble(contents, average) if len(contents) > 1 else contents[0]
    samples = {}
    for task, documents in read[0].items():
        ids = [row["doc_id"] for row in documents]
        if any([row["doc_id"] for row in answers.get(task, [])] != ids for answers in read):
            raise UserError(f"the runs to be combined answer other documents of {task}: expected the same in each")
        values = np.array([[row["loglikelihoods"] for row in answers[task]] for answers in read])
        answers_of_all = combined(task, values, calibration, average, records)
        right = answers_of_all.argmax(axis=1) == [row["gold"] for row in documents]
        deviation = right.std(ddof=1) / len(right) ** 0.5
        content["results"][task] = {"alias": task, "acc,none": right.mean(), "acc_stderr,none": deviation}
        samples[task] = [
            {"doc_id": row["doc_id"], "target": row["target"], "metrics": ["acc"], "acc": float(is_right)}
            | {"filtered_resps": [(value, False) for value in of_document]}
            for row, is_right, of_document in zip(documents, right, answers_of_all.tolist(), strict=True)
        ]
    content["results"] = {task: content["results"][task] for task in samples}
    if calibration:
        content["config"]["model_args"]["calibration"] = calibration
        content["model_name"] += f"+calibrated_by_{calibration}"
    with written_together(output, last="results_") as folder:
        file = folder / files[0].name
        file.write_text(json.dumps(content), encoding="utf-8")
        samples_path(file).write_bytes(as_parquet(samples))


def main() -> None:
    show_user_errors_in_one_line()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="results files, or folders with one; several: an ensemble")
    parser.add_argument("--calibration", help="as the model class's; default: none")
    parser.add_argument("--ensemble", choices=["probability", "log_probability"], default="probability")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    options = parser.parse_args()
    write(options.runs, options.output, as_calibration(options.calibration), options.ensemble)


if __name__ == "__main__":
    main()
