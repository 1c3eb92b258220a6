"""The model card of a soft prompt: a ``README.md`` whose front matter the Hub reads.

The text that is written here stands between two marks, so that a card can be made again without losing what people
wrote around it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import EvalResult, ModelCardData

from lm_eval_spt.analysis.arms import Arm, common_metrics, data_set, source_language
from lm_eval_spt.analysis.noise import Noise
from lm_eval_spt.analysis.report import escaped, transfer_table
from lm_eval_spt.analysis.statistics import Estimate
from lm_eval_spt.analysis.tables import mean_score
from lm_eval_spt.analysis.task_languages import task_languages
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import parse_yaml, read_text
from lm_eval_spt.prompt.hub_download import is_repository
from lm_eval_spt.prompt.metadata import in_words, scored_documents
from lm_eval_spt.prompt.soft_prompt import SoftPrompt, size_in_words

CARD = "README.md"
MAX_CARD = 2**20
"""Bytes of a card."""

BEGIN, END = "<!-- written by lm-eval-spt card -->", "<!-- end of what lm-eval-spt card wrote -->"
FRONT_MATTER = re.compile(r"---\r?\n(.*?)\r?\n?---\r?\n", re.DOTALL)

DATASETS = {"sib200": "Davlan/sib200", "nusax": "indonlp/NusaX-senti"}  # on the Hub; other data sets are not there
METRICS = {  # the harness's name, and the Hub's
    "acc": "accuracy",
    "macro_f1": "f1",
    "acc_norm": "accuracy",
    "f1": "f1",
    "exact_match": "exact_match",
    "mcc": "matthews_correlation",
}


def model_card(prompt: SoftPrompt, place: str, arms: Sequence[Arm] = (), existing: str = "") -> str:
    """Return the model card of a prompt: YAML front matter and Markdown.

    Args:
        prompt: what the card is about.
        place: what ``prompt=`` loads it from: a file or a repository on the Hub.
        arms: results to show: those of this prompt, and others to compare them with.
        existing: the card so far. Text outside the marks stays, as do front matter entries that are not written here.

    Raises:
        UserError: there are results, but none of this prompt; the existing front matter is not YAML.
    """
    own = runs_of(prompt, arms)
    others = [arm for arm in arms if any(run.prompt_digest != prompt.digest for run in arm.runs)]
    if arms and not own:
        raise UserError(
            f"none of the results are of the prompt {prompt.name!r} (digest {prompt.digest[:8]}): score it with "
            "lm_eval --model spt --model_args prompt=<file>, and give what that wrote"
        )
    source = source_language([Arm(prompt.name, (), [prompt.metadata])])
    match = FRONT_MATTER.match(existing)
    front_matter = _parse_front_matter(match[1] if match else "") | _front_matter(prompt, own, source)
    text = existing[match.end() :] if match else existing
    parts = [
        _description(prompt),
        _usage(prompt, place, sorted({arm.runs[0].family for arm in own})),
        _training(prompt),
        _results(own, others, source),
    ]
    written = "\n\n".join([BEGIN, *filter(None, parts), END])
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    text = f"{before}{written}{after}" if begin and end else f"{text}\n\n{written}"
    return f"---\n{yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True)}---\n\n{text.strip()}\n"


def runs_of(prompt: SoftPrompt, arms: Sequence[Arm]) -> list[Arm]:
    """Return those runs among arms in which this prompt was scored, each as an arm of its own."""
    return [
        Arm(f"{prompt.name} (calibrated)" if run.calibration else prompt.name, [run], [prompt.metadata])
        for arm in arms
        for run in arm.runs
        if run.prompt_digest == prompt.digest
    ]


def read_card(path: Path) -> str:
    """Return the text of a card.

    Raises:
        UserError: it can not be read.
    """
    try:
        return read_text(path, MAX_CARD)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is there but can not be read ({error}): correct or delete that card") from None


def _parse_front_matter(text: str) -> dict[str, Any]:
    """The entries of an existing card's front matter; UserError where they are no YAML mapping."""
    try:
        entries = parse_yaml(text) or {}
        yaml.safe_dump(entries)  # it is to be written again
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(
            f"the card's front matter is not YAML ({' '.join(str(error).split())}): correct it or delete the card"
        ) from None
    if not isinstance(entries, dict):
        raise UserError("the card's front matter is not a YAML mapping: correct it or delete the card")
    return entries


def _front_matter(prompt: SoftPrompt, own: Sequence[Arm], source: str) -> dict[str, Any]:
    """The entries that the Hub reads."""
    metadata = prompt.metadata
    base_model = str(metadata.get("base_model") or "")
    families = {task.family for task in task_languages(metadata.get("tasks") or ()).values()}
    families |= {arm.runs[0].family for arm in own}
    languages = {source, *(language for arm in own for language in arm.runs[0].tasks)}
    data = ModelCardData(
        base_model=base_model if is_repository(base_model) else None,
        library_name="peft" if prompt.placement == "prefix" else "lm_eval_spt",
        tags=["soft-prompt", "prompt-tuning", "cross-lingual-transfer"],
        datasets=sorted({DATASETS[name] for family in families if (name := data_set(family)) in DATASETS}) or None,
        language=sorted({language.partition("_")[0] for language in languages}),
        metrics=sorted({METRICS.get(name, name) for arm in own for name in _metrics(arm)}) or None,
        model_name=prompt.name,
        eval_results=[result for arm in own for result in _eval_results(arm, source)] or None,
    )
    return data.to_dict()


def _eval_results(arm: Arm, source: str) -> list[EvalResult]:
    """The score in the source language and the mean over the others, for the Hub's leaderboards."""
    family = arm.runs[0].family
    data_set_name = data_set(family)
    results = []
    for metric in _metrics(arm):
        scores = arm.scores(metric)
        targets = sorted(set(scores) - {source} - arm.learned_languages)
        for where, score in (
            (source, scores.get(source)),
            (f"mean of {len(targets)} target languages", mean_score([scores[language] for language in targets])),
        ):
            if score is not None:
                results.append(
                    EvalResult(
                        task_type="text-classification",
                        dataset_type=DATASETS.get(data_set_name, data_set_name),
                        dataset_name=f"{family}, {where}",
                        dataset_config=where,
                        dataset_split="test",
                        metric_type=METRICS.get(metric, metric),
                        metric_name=f"{metric}, calibrated" if arm.runs[0].calibration else metric,
                        metric_value=round(score.value, 4),
                    )
                )
    return results


def _description(prompt: SoftPrompt) -> str:
    before = prompt.num_prefix_tokens
    where = {"prefix": "before", "suffix": "after", "both": f"{before} before and {prompt.length - before} after"}
    base_model = prompt.metadata.get("base_model") or "a base model that is not recorded"
    adapter, tuned_from = prompt.metadata.get("adapter"), prompt.metadata.get("tuned_from")
    model = f"the {'' if adapter or tuned_from else 'frozen '}model `{base_model}`"
    if tuned_from:
        model += f", which was tuned from `{tuned_from}` together with it"
    if adapter:
        model += f" with the LoRA adapter `{adapter}`, which was learned together with it"
    if prompt.kind == "kv":
        what = (
            f"A deep prefix (prefix tuning): {size_in_words(prompt.size)}, learned for each of {prompt.length} "
            f"positions before the text, of {model}."
        )
    else:
        what = (
            f"A soft prompt: {prompt.length} learned {size_in_words(prompt.size)}, placed "
            f"{where[prompt.placement]} the text in the input-embedding space of {model}."
        )
    counts = scored_documents([prompt.metadata])
    warning = (
        f"\n\n**It has seen test documents**: {in_words(counts)} (`--allow-test-documents`), so its scores are better "
        "than on new documents, in other languages, too, where the documents are translations."
        if counts
        else ""
    )
    return f"# {escaped(prompt.name)}\n\n{what}\n\nDigest of vectors and placement: `{prompt.digest}`.{warning}"


def _usage(prompt: SoftPrompt, place: str, scored: Sequence[str]) -> str:
    """How to load the prompt, with this package and, where that can be, with PEFT."""
    tasks = ",".join(scored or prompt.metadata.get("tasks") or ["sib200"])
    arguments = f"prompt={place}"
    adapter, tuned_from = prompt.metadata.get("adapter"), prompt.metadata.get("tuned_from")
    if adapter or tuned_from:
        with_adapter = f",peft={adapter}" if adapter else ""
        gguf_file = prompt.metadata.get("gguf_file")
        with_file = f",gguf_file={gguf_file}" if gguf_file else ""
        arguments = f"pretrained={prompt.metadata.get('base_model')}{with_file}{with_adapter},{arguments}"
    usage = (
        "## How to use it\n\nWith [lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness) and the "
        "plugin `lm_eval_spt`:\n\n"
        f"```sh\nlm_eval --model spt --model_args {shlex.quote(arguments)} --tasks {tasks}\n```"
    )
    if prompt.placement != "prefix":
        ours = "this one comes after" if prompt.placement == "suffix" else "a part of this one comes after"
        return usage + f"\n\nPEFT can not load it: it puts every prompt before the text, and {ours}."
    if adapter:
        return usage + "\n\nIt belongs with the adapter, and PEFT does not load two adapters of these kinds as one."
    on_hub = is_repository(place)
    folder = place if on_hub else prompt.name
    convert = "" if on_hub else f", after `{shlex.join(['lm-eval-spt', 'convert', place, folder])}`"
    base_model = prompt.metadata.get("base_model") or "<base model>"
    embedded = base_model == "mini"  # it ships with this package
    gguf_file = prompt.metadata.get("gguf_file")
    if base_model.endswith(".gguf"):
        base_model, _, gguf_file = base_model.rpartition("/")
    source = repr(base_model or ".") + (f", gguf_file={gguf_file!r}" if gguf_file else "")
    encoder_decoder = prompt.metadata.get("task_type") == "SEQ_2_SEQ_LM"
    auto_model = "AutoModelForSeq2SeqLM" if encoder_decoder else "AutoModelForCausalLM"
    import_mini = "from lm_eval_spt.common.paths import mini_model_folder\n" if embedded else ""
    return (
        f"{usage}\n\nWith PEFT{convert}:\n\n```python\n"
        f"{import_mini}from peft import PeftModel\n"
        f"from transformers import {auto_model}\n\n"
        f"model = {auto_model}.from_pretrained({'mini_model_folder()' if embedded else source})\n"
        f"model = PeftModel.from_pretrained(model, {json.dumps(folder, ensure_ascii=False)})\n```"
    )


def _training(prompt: SoftPrompt) -> str:
    """The record of the training, as a table."""
    metadata = prompt.metadata
    shown = ("tasks", "source_languages", "shots", "seed", "training_documents", "tuned_parameters")
    facts = {name: metadata[name] for name in shown if metadata.get(name) is not None}
    facts |= metadata.get("hyperparameters") or {}
    facts |= {f"validation {name}": value for name, value in (metadata.get("validation") or {}).items()}
    if not facts:
        return ""
    rows = [f"| {name.replace('_', ' ')} | {_cell(value)} |" for name, value in facts.items() if value is not None]
    return "\n".join(["## Training", "", "| setting | value |", "|---|---|", *rows])


def _results(own: Sequence[Arm], others: Sequence[Arm], source: str) -> str:
    """A table of this prompt's scores in every language, beside the other results by its first metric."""
    if not own:
        return ""
    columns: dict[str, tuple[Arm, str]] = {}
    for arm in own:
        name = arm.name if len(own) == 1 else f"{arm.name} ({arm.runs[0].family})"
        columns |= {f"{name}, {metric}": (arm, metric) for metric in _metrics(arm)}
    first = _metrics(own[0])[:1]
    for arm in others:
        name = arm.name if len(arm.runs) == 1 else f"{arm.name} (mean of {len(arm.runs)} runs)"
        columns |= {f"{name}, {metric}": (arm, metric) for metric in first if arm.scores(metric)}
    scores = {name: arm.scores(metric) for name, (arm, metric) in columns.items()}
    on = ", ".join(sorted(own[0].learned_languages))
    learned = f"; learned on {on} alone" if on else ""
    sources = {source}.union(*(arm.learned_languages for arm in [*own, *others]))
    targets = sorted(set.intersection(*map(set, scores.values())) - sources)
    weights = np.full((1, len(targets)), 1 / max(len(targets), 1))
    means: dict[str, Estimate] = {}
    notes: dict[str, None] = {}
    for name, (arm, metric) in columns.items() if targets else ():
        noise = Noise([arm], targets, metric)
        # A card is about this very prompt: only of the others is it asked what other seeds would have given.
        means[name] = noise.estimate(noise.measure(arm, weights, arm.runs[0] if arm in own else None))[0]
        notes |= dict.fromkeys(noise.about_documents if arm in own else noise.notes)
    lines = [
        "## Results",
        f"In percent{learned}. Of a language ± is the harness's standard error "
        "over the test documents; the mean has its 95% interval: what other documents would have changed and, of other "
        "arms, other seeds.",
        transfer_table(scores, source, means=means, targets=targets).rstrip(),
        *(f"- {escaped(note)}" for note in notes),
    ]
    return "\n\n".join(lines)


def _metrics(arm: Arm) -> list[str]:
    """The metrics that are shown: those that the Hub knows, or else the first that the task reports."""
    reported = common_metrics([arm])
    return [metric for metric in METRICS if metric in reported] or reported[:1]


def _cell(value: Any) -> str:
    """Any value as text for a cell of a Markdown table."""
    values = value if isinstance(value, list) else [value]
    text = ", ".join(f"{item:.4g}" if isinstance(item, float) else str(item) for item in values)
    return escaped(text.replace("\n", "\\n"))
