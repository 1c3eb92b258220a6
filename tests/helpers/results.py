"""Results files in the harness's schema, made up: no model is needed to test what is done with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lm_eval_spt.analysis.arms import Arm
from lm_eval_spt.analysis.distances import distances
from lm_eval_spt.analysis.languages import languages
from lm_eval_spt.analysis.results import read_run
from lm_eval_spt.analysis.transfer import Analysis, analyse
from lm_eval_spt.harness.samples import as_parquet, samples_path
from lm_eval_spt.harness.text_classification import macro_f1 as topics_macro_f1
from lm_eval_spt.prompt.soft_prompt import SoftPrompt


def write_results(
    folder: Path,
    scores: Mapping[str, float],
    family: str = "sib200",
    prompt: Path | None = None,
    version: float = 1.0,
    num_fewshot: int = 0,
    limit: float | None = None,
    base_model: str = "org/bloom-560m",
    macro_f1: Mapping[str, float] | None = None,
    beside: Mapping[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Write a results file as ``lm_eval --model spt`` does, with accuracy and macro-F1 in every language.

    Args:
        folder: what ``--output_path`` would be.
        scores: language to accuracy.
        family: the tasks' name without the language.
        prompt: the prompt file that was scored.
        version: of the tasks.
        num_fewshot: documents shown before each scored one.
        limit: as ``--limit``.
        base_model: the frozen model.
        macro_f1: language to macro-F1; by default it is 0.05 less than the accuracy.
        beside: further entries of the file, beside its `config`.
        config: further entries of the file's `config`.
    """
    tasks = {f"{family}_{language}": value for language, value in scores.items()}
    model_args: dict[str, Any] = {"pretrained": base_model}
    name = base_model
    about_prompt: dict[str, Any] = {}
    if prompt is not None:
        loaded = SoftPrompt.load(prompt)
        name += f"+{loaded.name}@{loaded.digest[:8]}"
        model_args["prompt"] = str(prompt)
        about_prompt = {
            "prompt_name": loaded.name,
            "prompt_digest": loaded.digest,
            "prompt_length": loaded.length,
            "prompt_placement": loaded.placement,
            "prompt_metadata": loaded.metadata,
        }
    content = {
        "results": {
            task: {
                "name": task,
                "alias": task,
                "sample_len": 204,
                "acc,none": value,
                "acc_stderr,none": 0.03,
                "macro_f1,none": value - 0.05 if macro_f1 is None else macro_f1[task.removeprefix(f"{family}_")],
                "macro_f1_stderr,none": 0.031,
            }
            for task, value in tasks.items()
        },
        "versions": dict.fromkeys(tasks, version),
        "n-shot": dict.fromkeys(tasks, num_fewshot),
        "n-samples": {task: {"original": 204, "effective": int(limit or 204)} for task in tasks},
        "config": {"model": "spt", "model_args": model_args, "limit": limit, **about_prompt, **config},
        "date": 1_750_000_000.0 + len(list(folder.glob("**/results_*.json"))),
        "lm_eval_version": "0.4.13",
        "model_name": name,
        **(beside or {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results_2025-06-15T15-06-40.000000.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def write_prompt(
    file: Path,
    length: int = 4,
    seed: int = 0,
    placement: str = "suffix",
    sources: Sequence[str] = ("eng_Latn",),
    **hyperparameters: Any,
) -> Path:
    """Write a prompt of random vectors `[length, 8]` with a record of its training."""
    vectors = torch.randn(length, 8, generator=torch.Generator().manual_seed(1000 * length + seed))
    metadata = {
        "base_model": "org/bloom-560m",
        "placement": placement,
        "tasks": [f"sib200_{source}" for source in sources],
        "source_languages": list(sources),
        "shots": 8,
        "seed": seed,
        "training_documents": 56,
        "tuned_parameters": length * 8,
        "hyperparameters": {"prompt_length": length, "seed": seed, "epochs": 20, "lr": 0.005, **hyperparameters},
    }
    SoftPrompt(vectors, metadata).save(file)
    return file


def some_scores(mean: float, count: int = 205, seed: int = 0) -> dict[str, float]:
    """Return made-up accuracies in SIB-200's first `count` languages and English, the same noise for the same seed."""
    codes = dict.fromkeys(["eng_Latn", *list(languages())[:count]])
    noise = np.random.default_rng(seed).normal(0, 0.08, len(codes))
    return {code: round(float(np.clip(mean + extra, 0, 1)), 6) for code, extra in zip(codes, noise, strict=True)}


LABELS = np.random.default_rng(0).integers(0, 7, 60)
"""The right answers of the 60 documents of :func:`write_answers`."""


def write_answers(
    folder: Path, skill: dict[str, float], seed: int = 0, compact: bool = False, luck: float = 0.0, **options: Any
) -> Path:
    """Write a results file and its samples: 60 documents, answered right with a probability for each language.

    Args:
        folder: what ``--output_path`` would be.
        skill: language to the probability.
        seed: of what is guessed; which documents are hard is the same for all.
        compact: write the samples as ``lm-eval-spt evaluate`` does, not as the harness does.
        luck: what the seed adds to the probability in all languages.
        options: of :func:`write_results`.
    """
    random = np.random.default_rng([seed, 7])
    hardness = np.random.default_rng(99).random(len(LABELS))
    scores, f1, samples = {}, {}, {}
    for code, chance in skill.items():
        predicted = np.where(hardness < chance + luck, LABELS, random.integers(0, 7, len(LABELS)))
        scores[code] = float((predicted == LABELS).mean())
        pairs = [(int(label), int(answer)) for label, answer in zip(LABELS, predicted, strict=True)]
        f1[code] = topics_macro_f1(pairs)
        samples[f"{options.get('family', 'sib200')}_{code}"] = [
            {
                "doc_id": i,
                "doc": {"index_id": 1000 + i},
                "target": str(pair[0]),
                "metrics": ["acc", "macro_f1"],
                "acc": float(pair[0] == pair[1]),
                "macro_f1": list(pair),
                "filtered_resps": [[-1.0 * (choice != pair[1]), choice == pair[1]] for choice in range(7)],
            }
            for i, pair in reversed(list(enumerate(pairs)))
        ]
    file = write_results(folder, scores, macro_f1=f1, **options)
    if compact:
        samples_path(file).write_bytes(as_parquet(samples))
    else:
        for task, of_task in samples.items():
            lines = "".join(json.dumps(sample) + "\n" for sample in of_task)
            (folder / f"samples_{task}_{file.stem.removeprefix('results_')}.jsonl").write_text(lines)
    return file


def arm_of(name: str, files: Sequence[Path], seeds: Sequence[int] | None = None, **training: Any) -> Arm:
    """Return an arm: results files, and what the training documents of each were drawn with if it was trained."""
    records = [{}] * len(files) if seeds is None else [{"seed": seed, "tasks": ["x"], **training} for seed in seeds]
    return Arm(name, [read_run(file) for file in files], records)


def analysed(arms: dict[str, list[Path]], **options: Any) -> Analysis:
    """Analyse arms, given as name and results files, without a record of their training; English is the source."""
    made = [arm_of(name, files) for name, files in arms.items()]
    return analyse(made, distances("eng_Latn", languages()), **options)
