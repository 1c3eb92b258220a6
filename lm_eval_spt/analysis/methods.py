"""What was done, as a LaTeX paragraph for a paper: everything in it comes from the records of the runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval_spt.analysis.arms import Arm, data_set
from lm_eval_spt.analysis.languages import language
from lm_eval_spt.analysis.report import latex
from lm_eval_spt.analysis.transfer import Analysis

BIBTEX = {
    "philippy2024soft": r"""@misc{philippy2024soft,
  title = {Soft Prompt Tuning for Cross-Lingual Transfer: When Less is More},
  author = {Philippy, Fred and Guo, Siwen and Haddadan, Shohreh and Lothritz, Cedric and Klein, Jacques and
    Bissyand{\'e}, Tegawend{\'e} F.},
  year = {2024},
  eprint = {2402.03782},
  archivePrefix = {arXiv}
}""",
    "li2021prefix": """@misc{li2021prefix,
  title = {Prefix-Tuning: Optimizing Continuous Prompts for Generation},
  author = {Li, Xiang Lisa and Liang, Percy},
  year = {2021},
  eprint = {2101.00190},
  archivePrefix = {arXiv}
}""",
    "evalharness": """@misc{evalharness,
  title = {The Language Model Evaluation Harness},
  author = {Gao, Leo and Tow, Jonathan and Abbasi, Baber and Biderman, Stella and Black, Sid and DiPofi, Anthony and
    Foster, Charles and Golding, Laurence and Hsu, Jeffrey and Le Noac'h, Alain and Li, Haonan and McDonell, Kyle and
    Muennighoff, Niklas and Ociepa, Chris and Phang, Jason and Reynolds, Laria and Schoelkopf, Hailey and
    Skowron, Aviya and Sutawika, Lintang and Tang, Eric and Thite, Anish and Wang, Ben and Wang, Kevin and Zou, Andy},
  year = {2024},
  doi = {10.5281/zenodo.12608602}
}""",
    "zhou2024batch": """@inproceedings{zhou2024batch,
  title = {Batch Calibration: Rethinking Calibration for In-Context Learning and Prompt Engineering},
  author = {Zhou, Han and Wan, Xingchen and Proleev, Lev and Mincu, Diana and Chen, Jilin and Heller, Katherine and
    Roy, Subhrajit},
  booktitle = {The Twelfth International Conference on Learning Representations},
  year = {2024},
  url = {https://arxiv.org/abs/2309.17249}
}""",
    "liusie2023mitigating": """@misc{liusie2023mitigating,
  title = {Mitigating Word Bias in Zero-shot Prompt-based Classifiers},
  author = {Liusie, Adian and Manakul, Potsawee and Gales, Mark J. F.},
  year = {2023},
  eprint = {2309.04992},
  archivePrefix = {arXiv}
}""",
    "lmevalspt": r"""@software{lmevalspt,
  title = {lm\_eval\_spt: Soft Prompt Tuning for Cross-Lingual Transfer, as a Plugin for the Evaluation Harness},
  author = {{The lm\_eval\_spt authors}}
}""",
    "adelani2024sib200": """@misc{adelani2024sib200,
  title = {{SIB-200}: A Simple, Inclusive, and Big Evaluation Dataset for Topic Classification in 200+ Languages and
    Dialects},
  author = {Adelani, David Ifeoluwa and Liu, Hannah and Shen, Xiaoyu and Vassilyev, Nikita and Alabi, Jesujoba O. and
    Mao, Yanke and Gao, Haonan and Lee, Annie En-Shiun},
  year = {2024},
  eprint = {2309.07445},
  archivePrefix = {arXiv}
}""",
}
"""Key to entry of what a paragraph may cite."""

DATA_SETS = {"sib200": "adelani2024sib200"}  # data set to key

WHERE = {"prefix": "before the text", "suffix": "between text and answer", "both": "before and after the text"}

NOT_RECORDED = "not recorded"


def methods(analysis: Analysis, arms: Sequence[Arm]) -> str:
    """Return the paragraph, and the BibTeX entries that it cites.

    What the records of an arm lack is written as "not recorded", to be filled in. Runs of one arm are described
    together; where they differ, all values are given.

    Args:
        analysis: the analysis of the arms.
        arms: these arms.
    """
    runs = [run for arm in arms for run in arm.runs]
    tasks = [latex(family) + _cite(DATA_SETS.get(data_set(family))) for family in sorted({run.family for run in runs})]
    documents = {run.documents[code][0] for run in runs for code in analysis.targets if code in run.documents}
    source = f"{language(analysis.source).name} ({analysis.source})"
    sentences = [
        f"We scored {' and '.join(tasks)} (task version {_values(run.task_version for run in runs)}, "
        f"{_values(run.num_fewshot for run in runs)} examples in the context) with the Language Model Evaluation "
        f"Harness{_cite('evalharness')}, version {_values(run.harness_version for run in runs)}, and "
        f"{latex('lm_eval_spt')}{_cite('lmevalspt')}",
        f"The source language is {latex(source)}; means are over the {len(analysis.targets)} target languages that "
        f"all models were scored in, with {_values(sorted(documents))} test documents each; the metric is "
        f"{latex(analysis.metric)}",
        *((_with_prompt(arm) if arm.uses_prompt else _without_prompt(arm)) + _calibrated(arm) for arm in arms),
        *(latex(f"{what.capitalize()}: {how}") for what, how in analysis.method.items()),
        *(latex(note[:1].upper() + note[1:]) for note in analysis.notes),
    ]
    paragraph = "".join(f"{sentence}.\n" for sentence in sentences)
    return "\n".join([paragraph, *(entry for key, entry in BIBTEX.items() if _cite(key) in paragraph)]) + "\n"


def _without_prompt(arm: Arm) -> str:
    return rf"\emph{{{latex(arm.name)}}} is {latex(_base_model(arm))} without a soft prompt ({_runs(arm)})"


def _with_prompt(arm: Arm) -> str:
    records = [record or {} for record in arm.training]
    settings = [record.get("hyperparameters") or {} for record in records]
    validation = [record.get("validation") or {} for record in records]

    def of(entries: Sequence[Mapping[str, Any]], key: str) -> str:
        return latex(_values(entry.get(key) for entry in entries))

    tuned = of(settings, "tune")
    what = (
        rf"\emph{{{latex(arm.name)}}} is {latex(_base_model(arm))}, "
        f"{'kept frozen' if tuned == 'prompt' else f'what was tuned: {tuned}'}, with {_prompt(arm)}"
    )
    if not any(records):
        return f"{what}; its training is {NOT_RECORDED} ({_runs(arm)})"
    averaged = any("averaged_epochs" in entry for entry in validation)
    kept = f"{'the mean of the last epochs or ' if averaged else ''}the vectors of the epoch with the lowest loss"
    tasks = latex(_values(", ".join(record.get("tasks") or ()) or None for record in records))
    shots = [f"{record['shots']} documents per class" if record.get("shots") else "all documents" for record in records]
    return (
        f"{what} ({of(records, 'tuned_parameters')} learned parameters), learned on {tasks} from {_values(shots)} "
        f"({of(records, 'training_documents')} in all) with AdamW, learning rate {of(settings, 'lr')}, "
        f"{of(settings, 'epochs')} epochs, batches of {of(settings, 'batch_size')}, in {of(settings, 'dtype')}; "
        f"initial vectors: {of(settings, 'init')}; reparameterization: {of(settings, 'reparameterization')}; "
        f"loss: {of(settings, 'loss')}; {kept} on {of(validation, 'documents')} "
        f"validation documents were kept ({_runs(arm)}; training seed {of(records, 'seed')})"
    )


def _calibrated(arm: Arm) -> str:
    calibration = arm.runs[0].calibration
    if calibration is None:
        return ""
    taken_off = {"probability": "the logarithm of its mean probability", "log_probability": "the mean of it"}
    if calibration in taken_off:
        return (
            f"; its answers are calibrated{_cite('zhou2024batch')}: each choice's log-probability less "
            f"{taken_off[calibration]} over a task's documents"
        )
    prior = "its share of the documents learned from" if calibration == "label_prior" else f"its share in {calibration}"
    return (
        f"; its answers are calibrated by prior matching{_cite('liusie2023mitigating')}: each choice's log-probability "
        f"plus a constant, with which its mean probability over a task's documents is {prior}"
    )


def _prompt(arm: Arm) -> str:
    """What stands in the place of a prompt: virtual tokens, a deep prefix, or an ensemble of several."""
    record, length = arm.training[0] or {}, _values(run.prompt_length for run in arm.runs)
    ensemble = record.get("ensemble")
    if isinstance(ensemble, dict):
        mean = {"probability": "probabilities", "log_probability": "log-likelihoods"}.get(str(ensemble.get("average")))
        members = len(ensemble.get("members") or ())
        return f"an ensemble of {members} soft prompts{_cite('philippy2024soft')} (the mean of their {mean})"
    if record.get("prompt_kind") == "kv":
        return f"a deep prefix{_cite('li2021prefix')}, keys and values of every layer, of {length} positions"
    where = WHERE.get(str(arm.runs[0].prompt_placement), NOT_RECORDED)
    return f"a soft prompt{_cite('philippy2024soft')} of {length} virtual tokens {where}"


def _base_model(arm: Arm) -> str:
    """The base model with what identifies its weights: a commit, a file's digest, or that of its embeddings."""
    config, record = arm.runs[0].config, arm.training[0]
    for what, value in (
        ("SHA-256", record.get("gguf_sha256")),
        ("commit", config.get("model_sha")),
        ("revision", record.get("base_model_revision")),
        ("fingerprint of the embeddings", config.get("base_model_fingerprint") or record.get("embedding_fingerprint")),
    ):
        if value:
            return f"{arm.base_model} ({what} {value})"
    return f"{arm.base_model or 'a model'} (revision {NOT_RECORDED})"


def _runs(arm: Arm) -> str:
    return "one run" if len(arm.runs) == 1 else f"mean of {len(arm.runs)} runs"


def _values(values: Iterable[Any]) -> str:
    """Every value once, in order."""
    different = list(dict.fromkeys(NOT_RECORDED if value is None else str(value) for value in values))
    return ", ".join(different) or NOT_RECORDED


def _cite(key: str | None) -> str:
    return rf"~\cite{{{key}}}" if key else ""
