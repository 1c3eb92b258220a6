"""A prompt's scores as the Hub reads them from ``.eval_results/*.yaml``: https://huggingface.co/docs/hub/eval-results.

The Hub shows them on the prompt's page, and on the leaderboard of a data set that is registered as a benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from lm_eval_spt.analysis.arms import Arm, data_set
from lm_eval_spt.hub.model_card import DATASETS

FOLDER = ".eval_results"


def eval_results(own: Sequence[Arm], repository: str) -> dict[str, str]:
    """Return the files that hold a prompt's accuracies, one file for each task family, one entry for each language.

    Args:
        own: the prompt's runs, from :func:`lm_eval_spt.hub.model_card.runs_of`.
        repository: where the results files are uploaded, below ``results/``.

    Returns:
        Path in the repository to content. Tasks whose data set is not on the Hub have none, and so have
        runs on a part of the documents.
    """
    files: dict[str, list[dict[str, Any]]] = {}
    for arm in own:
        run = arm.runs[0]
        dataset = DATASETS.get(data_set(run.family))
        if dataset is None or run.partial:
            continue
        entries = [
            {
                "dataset": {"id": dataset, "task_id": language},
                "value": score.value,
                **({} if run.date is None else {"date": run.date.isoformat(timespec="seconds")}),
                "source": {
                    "url": f"https://huggingface.co/{repository}/tree/main/results",
                    "name": "lm-evaluation-harness",
                },
                "notes": f"{run.tasks[language]}, accuracy, {run.num_fewshot or 0} examples in the context, soft "
                f"prompt {arm.name}@{str(run.prompt_digest)[:8]} on {run.base_model}",
            }
            for language, score in sorted(arm.scores("acc").items())
        ]
        if entries:
            files.setdefault(f"{FOLDER}/{run.family}.yaml", []).extend(entries)
    return {path: yaml.safe_dump(entries, sort_keys=False, allow_unicode=True) for path, entries in files.items()}
