"""What a run leaves: the prompt file, the tuned model or adapter, and the record of how they were made."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval_spt.analysis.task_languages import task_languages
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import check_writable
from lm_eval_spt.prompt import file_format
from lm_eval_spt.prompt.metadata import record_in, scored_documents
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train import checkpoint, log, tuning
from lm_eval_spt.train.config import SOURCES, TrainingConfig, differences
from lm_eval_spt.train.run import TrainingRun


def save_results(run: TrainingRun, *, interrupted: bool = False) -> SoftPrompt | None:
    """Write the best prompt so far, and the model or adapter that belongs to it, with their provenance.

    Args:
        run: the run.
        interrupted: whether it was stopped before its end, so that it can not be taken for a finished one.

    Returns:
        The prompt; None where the settings have none.
    """
    config = run.config
    run.parameters.model.load(run.snapshot.model)
    metadata = _metadata(run, interrupted)
    folder = config.model_folder
    if folder is not None:
        if run.processes.is_main:
            run.parameters.model.save(folder, metadata)
        if config.tune == "lora":
            metadata["adapter"] = str(folder)
        else:
            metadata |= {"base_model": str(folder), "base_model_revision": None, "tuned_from": config.model}
            metadata.pop("gguf_file", None)  # what was tuned is a folder
            metadata.pop("gguf_sha256", None)
    if run.snapshot.vectors is None:
        return None
    prompt = SoftPrompt(run.snapshot.vectors, metadata, name=run.output.stem)
    if run.processes.is_main:
        prompt.save(run.output)
    return prompt


def _metadata(run: TrainingRun, interrupted: bool) -> dict[str, Any]:
    config = run.config
    tuned = run.parameters.count()
    tasks = [name.rpartition("::")[2] for name in run.examples.num_fewshot]  # since 0.5 a group's name may come first
    metadata: dict[str, Any] = {
        "placement": config.placement,
        "base_model": config.model,
        "base_model_revision": config.revision,
        "embedding_fingerprint": run.lm.fingerprint,
        "task_type": "SEQ_2_SEQ_LM" if run.lm.model.config.is_encoder_decoder else "CAUSAL_LM",
        "tasks": tasks,
        "source_languages": list(dict.fromkeys(told.language for told in task_languages(tasks).values())),
        "shots": config.shots,
        "num_fewshot": run.examples.num_fewshot,
        "seed": config.seed,
        "hyperparameters": config.hyperparameters(),
        "sources": {name: getattr(config, name) for name in SOURCES},
        "training_documents": len(run.examples.training),
        "label_counts": run.examples.label_counts,
        "validation": run.best,
        "tuned_parameters": tuned,
        "tuned_share": tuned / run.parameters.model.size(),
        "versions": _versions(),
    }
    if run.lm.gguf is not None:
        metadata |= {"gguf_file": config.gguf_file, "gguf_sha256": run.lm.gguf.sha256}
    if config.placement == "both":
        metadata["num_prefix_tokens"] = config.vectors_before
    if counts := scored_documents([{"scored_documents": run.examples.scored}, run.parameters.started_from or {}]):
        metadata["scored_documents"] = counts
    if run.diverged is not None:
        metadata["diverged"] = run.diverged
    if interrupted:
        metadata["interrupted"] = True
    if run.parameters.started_from is not None:
        metadata["started_from"] = run.parameters.started_from
    return metadata


def _versions() -> dict[str, str]:
    libraries = ("lm_eval_spt", "torch", "transformers", "lm_eval", "datasets")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}


def check_outputs(config: TrainingConfig) -> None:
    """Find out before a run whether it can write what it has to, and whether it would replace what no run has written.

    Raises:
        UserError: it can not be written; or there is another file, the base model, or a file with documents.
    """
    output, folder = Path(config.output), config.model_folder
    check_writable(output)
    log.check_replaceable(log.log_path(output))
    if config.prompt_length and output.exists():
        try:
            file_format.read(output)
        except UserError as error:
            raise UserError(f"{output} is there and is no prompt file ({error}): choose another --output") from None
    if folder is not None:
        tuning.check_replaceable(folder)
        if folder.exists() and Path(config.model).exists() and folder.samefile(config.model):
            raise UserError(f"--output {output} would replace the base model {config.model}: choose another name")


def has_ended(config: TrainingConfig) -> bool:
    """Tell whether a run that is to be resumed has nothing left to do.

    Raises:
        UserError: what is there was trained with other settings.
    """
    output, folder = Path(config.output), config.model_folder
    if not config.resume or checkpoint.path_of(output).is_file():
        return False
    if folder is not None and not folder.exists():
        return False
    if config.prompt_length:
        if not output.is_file():
            return False
        record = SoftPrompt.load(output).metadata
    else:
        record = record_in(folder) if folder is not None else {}
    if not record or "diverged" in record or "interrupted" in record:
        return False
    recorded, now = record.get("hyperparameters"), config.hyperparameters()
    if isinstance(recorded, dict) and isinstance(sources := record.get("sources"), dict):
        recorded, now = recorded | sources, config.identity()
    if differing := differences(recorded, now) if isinstance(recorded, dict) else "they are not recorded":
        raise UserError(f"--resume: {output} was trained with other settings ({differing}): choose another --output")
    return True
