"""Results in the format of Every Eval Ever, a public collection of evaluations of language models.

A run becomes one record: who scored what with which model, and one entry for each language and metric. What
``--log_samples`` wrote becomes a second file beside it, one line for each document. Their JSON schemas, version
:data:`SCHEMA_VERSION`, are at https://github.com/evaleval/every_eval_ever.

The model of a record is base model *and* prompt, ``owner/base+prompt@digest``: another prompt is another model.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm_eval_spt.analysis.arms import data_set
from lm_eval_spt.analysis.results import EvaluationRun
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import MAX_RESULTS_FILE, parse_json, read_text, write
from lm_eval_spt.common.paths import MINI
from lm_eval_spt.harness.samples import first_filter
from lm_eval_spt.hub.model_card import DATASETS
from lm_eval_spt.prompt.hub_download import is_repository

SCHEMA_VERSION = "0.3.0"

METRICS = {"acc": "accuracy", "macro_f1": "f1_macro"}  # the harness's name, and the collection's
SHARES = ("acc", "acc_norm", "exact_match", "macro_f1")
"""Metrics that lie between 0 and 1."""

_UNSAFE = re.compile(r"[^\w.+@-]")


def export(run: EvaluationRun, folder: Path, organization: str, relationship: str = "third_party") -> list[Path]:
    """Write a run's record, and its samples where they were logged.

    The files lie as in the collection, ``data/<tasks>/<developer>/<model>/<uuid>.json``. The UUID is made of the
    results file: to export it again replaces the record.

    Args:
        run: from :func:`lm_eval_spt.analysis.results.read_runs`.
        folder: where ``data/`` is.
        organization: who ran the evaluation.
        relationship: what it is to the model's developer: ``first_party``, ``third_party``,
            ``collaborative`` or ``other``.

    Returns:
        The files written.

    Raises:
        UserError: a file can not be read or written, or a samples file is none.
    """
    text = read_text(run.path, MAX_RESULTS_FILE)
    content = parse_json(text)
    developer, model = _developer(run, organization), _model(run)
    digest = hashlib.sha256(f"{run.family}\n{text}".encode()).digest()
    name = str(uuid.UUID(bytes=digest[:16], version=4))
    place = Path("data", *(_UNSAFE.sub("_", part) for part in (run.family, developer, model)), f"{name}.json")
    record = _record(run, content, f"{developer}/{model}", organization, relationship)
    written = []
    if lines := list(_sample_lines(run, record)):
        samples = place.with_name(f"{name}_samples.jsonl")
        data = "".join(f"{line}\n" for line in lines).encode()
        record["detailed_evaluation_results"] = {
            "format": "jsonl",
            "file_path": samples.as_posix(),
            "hash_algorithm": "sha256",
            "checksum": hashlib.sha256(data).hexdigest(),
            "total_rows": len(lines),
        }
        write(folder / samples, data)
        written.append(folder / samples)
    write(folder / place, (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode())
    return [folder / place, *written]


def _record(
    run: EvaluationRun, content: Mapping[str, Any], model: str, organization: str, relationship: str
) -> dict[str, Any]:
    """The record of a run.

    Args:
        run: the run.
        content: its parsed results file.
        model: the model's id.
        organization: as for :func:`export`.
        relationship: as for :func:`export`.
    """
    now = f"{time.time():.0f}"
    scored = {} if run.date is None else {"evaluation_timestamp": f"{run.date.timestamp():.0f}"}
    engine = {"name": "transformers", "version": content.get("transformers_version")}
    return scored | {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": f"{run.family}/{model}/{now}",
        "retrieved_timestamp": now,
        "source_metadata": {
            "source_name": "lm-evaluation-harness",
            "source_type": "evaluation_run",
            "source_organization_name": organization,
            "evaluator_relationship": relationship,
        },
        "eval_library": {"name": "lm_eval", "version": run.harness_version or "unknown"},
        "model_info": {
            "name": model.partition("/")[2],
            "id": model,
            "developer": model.partition("/")[0],
            "inference_engine": {key: value for key, value in engine.items() if isinstance(value, str)},
            "additional_details": _model_details(run),
        },
        "evaluation_results": [
            _result(run, metric, language)
            for metric, scores in sorted(run.scores.items())
            for language in sorted(scores)
        ],
    }


def _result(run: EvaluationRun, metric: str, language: str) -> dict[str, Any]:
    """The score of one metric in one language."""
    task, score = run.tasks[language], run.scores[metric][language]
    documents, available = run.documents.get(language, (None, None))
    uncertainty: dict[str, Any] = {} if documents is None else {"num_samples": documents}
    if score.stderr is not None:
        uncertainty["standard_error"] = {"value": score.stderr}
    data: dict[str, Any] = {"dataset_name": task, "source_type": "other"}
    if repository := DATASETS.get(data_set(run.family)):
        data |= {"source_type": "hf_dataset", "hf_repo": repository, "hf_split": "test"}
        data |= {} if available is None else {"samples_number": available}
    settings = {"language": language, "task_version": run.task_version, "num_fewshot": run.num_fewshot}
    return {
        "evaluation_result_id": f"{task}:{metric}",
        "evaluation_name": task,
        "source_data": data,
        "metric_config": {
            "metric_id": METRICS.get(metric, metric),
            "metric_name": metric,
            "lower_is_better": metric in run.lower_is_better,
            "score_type": "continuous",
            "min_score": 0 if metric in SHARES else None,
            "max_score": 1 if metric in SHARES else None,
        },
        "score_details": {"score": score.value, "uncertainty": uncertainty},
        "generation_config": {"additional_details": _as_texts(settings)},
    }


def _sample_lines(run: EvaluationRun, record: Mapping[str, Any]) -> Iterator[str]:
    """The logged documents of all languages, a line of JSON for each metric that has a number for a document."""
    for language in sorted({language for scores in run.scores.values() for language in scores}):
        path = run.samples_file(language)
        if not path.is_file():
            continue
        try:
            with path.open(encoding="utf-8") as file:
                for logged in first_filter(map(parse_json, filter(str.strip, file))):
                    for sample in _samples(run, record, language, logged):
                        yield json.dumps(sample, ensure_ascii=False, allow_nan=False)
        except OSError as error:
            raise UserError(f"{path} can not be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"{path} is not a samples file of the harness ({reason}): score it again") from error


def _samples(
    run: EvaluationRun, record: Mapping[str, Any], language: str, sample: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """What the collection says of one document, for each metric."""
    arguments = [sample["arguments"][key] for key in sorted(sample["arguments"], key=_number)]
    context, target = str(arguments[0]["arg_0"]), str(sample["target"])
    details = {"language": language, "doc_hash": sample.get("doc_hash")}
    choices = None
    if len(arguments) > 1:  # multiple choice: the answer is the likeliest continuation
        choices = [str(argument["arg_1"]) for argument in arguments]
        likelihoods = [float(answer[0]) for answer in sample["filtered_resps"]]
        answer = choices[likelihoods.index(max(likelihoods))]
        target = choices[int(target)] if target.isdecimal() and int(target) < len(choices) else target
        details["log_likelihoods"] = json.dumps(likelihoods)
    else:
        answer = str(sample["filtered_resps"][0])
    for metric in run.scores:
        value = sample.get(metric)
        if isinstance(value, int | float):
            yield {
                "schema_version": SCHEMA_VERSION,
                "evaluation_id": record["evaluation_id"],
                "model_id": record["model_info"]["id"],
                "evaluation_name": run.tasks[language],
                "evaluation_result_id": f"{run.tasks[language]}:{metric}",
                "sample_id": str(sample["doc_id"]),
                "sample_hash": hashlib.sha256(f"{context}{target}".encode()).hexdigest(),
                "interaction_type": "single_turn",
                "input": {"raw": context, "reference": [target], "choices": choices},
                "output": {"raw": [answer]},
                "answer_attribution": [
                    {
                        "turn_idx": 0,
                        "source": "output.raw",
                        "extracted_value": answer,
                        "extraction_method": "highest log-likelihood" if choices else str(sample.get("filter")),
                        "is_terminal": True,
                    }
                ],
                "evaluation": {"score": value, "is_correct": value == 1},
                "metadata": _as_texts(details),
            }


def _model(run: EvaluationRun) -> str:
    """The model's name without its developer: the base model's, with the prompt's name and digest."""
    base = str(run.base_model or run.model_name or run.model).rstrip("/").rpartition("/")[2]
    return base if run.prompt_digest is None else f"{base}+{run.prompt_name}@{run.prompt_digest[:8]}"


def _developer(run: EvaluationRun, organization: str) -> str:
    """The base model's owner on the Hub; of a model that is not there, the evaluator."""
    base = str(run.base_model)
    if base == MINI:
        return "lm_eval_spt"
    return base.partition("/")[0] if is_repository(base) else organization.replace("/", "_")


def _model_details(run: EvaluationRun) -> dict[str, str]:
    config = run.config
    details = {
        "base_model": run.base_model,
        "base_model_revision": config.get("model_revision"),
        "base_model_commit": config.get("model_sha") or None,
        "base_model_fingerprint": config.get("base_model_fingerprint"),
        "dtype": config.get("model_dtype"),
        "num_parameters": config.get("model_num_parameters"),
        "prompt_name": run.prompt_name,
        "prompt_digest": run.prompt_digest,
        "prompt_length": run.prompt_length,
        "prompt_placement": run.prompt_placement,
        "prompt_metadata": config.get("prompt_metadata"),
    }
    availability = "open_weights" if is_repository(str(run.base_model)) else "unknown"
    return {"deployment_type": "self_deployed", "model_availability": availability} | _as_texts(details)


def _as_texts(details: Mapping[str, Any]) -> dict[str, str]:
    """Details as the schema wants them: texts; what is not known is left out."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in details.items()
        if value is not None
    }


def _number(key: str) -> int:
    """The number at the end of ``gen_args_3``."""
    return int(key.rpartition("_")[2])
