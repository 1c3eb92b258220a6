"""The readers that are fuzzed. One more is one more entry in :data:`READERS`.

A reader is given as a function that takes a file's path and does all that the tools do with such a file before a model
is needed, so that what is wrong with it can not come up later.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import os
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from lm_eval_spt.analysis.arms import read_arms
from lm_eval_spt.analysis.documents import influence_of, read_answers
from lm_eval_spt.analysis.html import page
from lm_eval_spt.analysis.html.page import as_json, contents
from lm_eval_spt.analysis.languages import language
from lm_eval_spt.analysis.leaderboard import rank, ranking_lines
from lm_eval_spt.analysis.results import EvaluationRun, read_runs
from lm_eval_spt.analysis.task_languages import read_languages, task_languages
from lm_eval_spt.cli.sweep import _print_runs
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.tables import read_rows
from lm_eval_spt.harness.evaluate import _finished
from lm_eval_spt.harness.samples import as_parquet
from lm_eval_spt.harness.text_classification import read_file
from lm_eval_spt.hub.every_eval_ever import export
from lm_eval_spt.hub.model_card import model_card, read_card
from lm_eval_spt.prompt.inspection import as_text, report
from lm_eval_spt.prompt.metadata import MODEL_RECORD
from lm_eval_spt.prompt.peft import PEFT_CONFIG, PEFT_WEIGHTS
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.sweep import records
from lm_eval_spt.sweep.plan import Plan, read_plan
from lm_eval_spt.train import checkpoint
from lm_eval_spt.train import results as training_results
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.examples import Example
from lm_eval_spt.train.loop import training_loop
from lm_eval_spt.train.objective import Outcome
from lm_eval_spt.train.processes import Processes
from lm_eval_spt.train.run import TrainingRun
from lm_eval_spt.train.state import resume, state_of
from tests.helpers.paths import ROOT


@dataclass(frozen=True)
class Reader:
    """Something that reads a file.

    Attributes:
        name: of the reader, and of its folder under ``failures``.
        kind: how its files can be damaged, see :func:`tests.fuzz.mutations.mutate`.
        file: the name that its files have.
        seeds: contents of valid files.
        read: reads the file at a path.
        errors: what it may raise.
    """

    name: str
    kind: str
    file: str
    seeds: Sequence[bytes]
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...] = (UserError,)


METADATA = {
    "format_version": 1, "hidden_size": 4, "num_virtual_tokens": 3, "placement": "suffix", "base_model": "mini",
    "base_model_revision": "main", "task_type": "CAUSAL_LM", "embedding_fingerprint": "0123456789abcdef",
    "tasks": ["mini_topics_eng_Latn"],
    "source_languages": ["eng_Latn"], "shots": 8, "seed": 0, "training_documents": 56, "tuned_parameters": 12,
    "tuned_share": 0.001, "validation": {"epoch": 3, "loss": 1.5, "accuracy": 0.5}, "versions": {"python": "3.11"},
    "hyperparameters": {"lr": 0.005, "epochs": 20, "add_bos_token": None, "init_text": "\nTopic:"},
}  # fmt: skip


def _prompt_file(metadata: dict[str, str] | None, dtype: str = "F32", width: int = 4, deep: bool = False) -> bytes:
    name, shape = ("key_values", [1, 2, 1, 3, 2]) if deep else ("prompt_embeddings", [3, 4])
    header: dict[str, object] = {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 12 * width]}}
    if metadata is not None:
        header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + np.linspace(-1, 1, 12).astype("<f4").tobytes()[: 12 * width]


def _use_prompt(prompt: SoftPrompt) -> None:
    list(as_text(json.loads(json.dumps(report(prompt)))))
    model_card(prompt, "owner/name").encode()
    assert math.isfinite(prompt.vectors.sum(dtype=torch.float64)) and prompt.digest
    here, named = os.getcwd(), prompt.base_model or "mini"
    assert os.path.commonpath([here, os.path.normpath(os.path.join(here, named))]) == here


def read_prompt(path: Path) -> None:
    _use_prompt(SoftPrompt.from_pretrained(path))


def read_adapter(path: Path) -> None:
    """Read an adapter's configuration, with good weights beside it."""
    weights = path.with_name(PEFT_WEIGHTS)
    if not weights.exists():
        weights.write_bytes(_prompt_file(None))
    _use_prompt(SoftPrompt.from_pretrained(path.parent))


RESULTS = {
    "results": {
        f"sib200_{language}": {
            "alias": "x", "sample_len": 3, "acc,none": score, "acc_stderr,none": 0.03, "macro_f1,none": score,
            "macro_f1_stderr,none": "N/A",
        }
        for language, score in (("eng_Latn", 0.75), ("deu_Latn", 0.5), ("swh_Latn", 0.25))
    },
    "versions": {f"sib200_{language}": 1.0 for language in ("eng_Latn", "deu_Latn", "swh_Latn")},
    "n-shot": {f"sib200_{language}": 0 for language in ("eng_Latn", "deu_Latn", "swh_Latn")},
    "n-samples": {
        f"sib200_{language}": {"original": 204, "effective": 204} for language in ("eng_Latn", "deu_Latn", "swh_Latn")
    },
    "config": {
        "model": "spt", "model_args": {"prompt": "p.safetensors"}, "limit": None, "random_seed": 0,
        "prompt_name": "p", "prompt_digest": "0123456789", "prompt_length": 3, "prompt_placement": "suffix",
        "prompt_metadata": METADATA,
    },
    "date": 1_750_000_000.0,
    "lm_eval_version": "0.4.13",
    "model_name": "mini+p@01234567",
}  # fmt: skip


# Distances depend on the languages alone.
_distances = functools.cache(lambda source, languages, measure=page.distances: measure(source, languages))
page.distances = lambda source, languages: _distances(source, tuple(languages))


def read_results(path: Path) -> None:
    """Read a results file, rank it beside itself, and make what the leaderboard's page shows."""
    _finished(path.parent, {"sib200_eng_Latn": 0}, None)
    arms, _ = read_arms([("a", path), (None, path)])
    board = rank(arms, "eng_Latn")
    "\n".join(ranking_lines(board)).encode()
    as_json(contents(board)).encode()
    for run in read_runs(path):
        assert run.samples_file("eng_Latn").parent == path.parent


SAMPLES = b"".join(
    json.dumps({"doc_id": number, "target": str(number % 3), "acc": number % 2, "macro_f1": [number % 3, 1]}).encode()
    + b"\n"
    for number in range(6)
)


COMPACT_SAMPLES = as_parquet(
    {
        "sib200_eng_Latn": [
            {"metrics": ["acc", "macro_f1"], "filtered_resps": [(-1.0, True), (-2.0, False)]} | json.loads(line)
            for line in SAMPLES.splitlines()
        ]
    }
)


def read_samples(path: Path) -> None:
    """Read the answers to single documents, as the harness writes them, and what they make of both kinds of metric."""
    path.replace(path.with_name("samples_sib200_eng_Latn_x.jsonl"))
    _use_samples(path)


def read_compact_samples(path: Path) -> None:
    path.replace(path.with_name("samples_x.parquet"))
    _use_samples(path)


def _use_samples(path: Path) -> None:
    results = path.with_name("results_x.json")
    run = EvaluationRun(results, "sib200", {}, {}, {}, None, None, None, None, None, None, None, None, {}, [])
    for metric in ("acc", "macro_f1"):
        answers = read_answers(run, ["eng_Latn"], metric)
        if len(answers.documents) > 1:
            scores, influence = influence_of(answers.values, answers.known, metric)
            assert np.isfinite(scores).all() and np.isfinite(influence).all()


LOGGED = b"".join(
    json.dumps(
        {
            "doc_id": number, "target": "1", "filtered_resps": [["-1.5", "False"], ["-2.5", "True"]], "acc": number % 2,
            "arguments": {f"gen_args_{i}": {"arg_0": "A text.", "arg_1": f" {i}"} for i in range(2)},
        }
    ).encode() + b"\n"
    for number in range(4)
)  # fmt: skip


def export_samples(path: Path) -> None:
    """Export the answers to single documents, with their texts."""
    results = path.with_name("results_x.json")
    results.write_text(json.dumps(RESULTS))
    run = read_runs(results)[0]
    path.replace(run.samples_file("eng_Latn"))
    for file in export(run, path.parent, "lab"):
        file.read_text(encoding="utf-8")


def read_task_languages(path: Path) -> None:
    """Read what a user says of the languages of tasks, and tell some by it."""
    given = read_languages(path)
    for task in task_languages(["xnli_de", "my_task", "hellaswag", *given], given).values():
        assert language(task.language).name and task.family


TASK_LANGUAGES = [
    b"hellaswag: en\n'my_*_{german}': deu_Latn\nnorwegian: no\n\"pisa_{ch}?\": zh-TW\nx: Nigerian Pidgin\n",
]


def read_settings(path: Path) -> None:
    config = TrainingConfig.from_settings({"config": str(path)})
    torch.manual_seed(config.seed)
    json.dumps(config.hyperparameters(), allow_nan=False)


SETTINGS = [
    b"model: mini\ntask: mini_topics_eng_Latn\noutput: p.safetensors\nprompt-length: 3\nlr: 5e-3\nseed: 1\n",
    b"model: mini\ntask: a, b\noutput: p.safetensors\npreset: paper\nshots: null\ncontext-cache: off\n"
    b"init_text: \"\\nTopic:\"\nadd_bos_token: true\nwarmup_ratio: 0.1\nclip: 1\nplacement: prefix\nrevision: abc\n",
]  # fmt: skip


def read_sweep(path: Path) -> None:
    """Plan a sweep, and look for its records: there are none."""
    plan = read_plan(path)
    for run in plan.runs:
        assert os.path.basename(run.name) == run.name and run.name[0] != "."
        assert -(2**63) <= run.config.seed < 2**63
        records.record_of(plan, run)
    json.dumps([[run.name, run.settings(), run.targets] for run in plan.runs] + [plan.evaluate], allow_nan=False)


SWEEPS = [
    b"output: out\ntargets: [mini_topics]\nsettings:\n  model: mini\n  task: mini_topics_eng_Latn\n  lr: 5e-3\n"
    b"axes:\n  prompt_length: [5, 10]\n  seed: [0, 1]\n",
    b"targets: a, b\nsettings:\n  task: a\n  context-cache: off\naxes:\n  model: [mini, owner/name]\n"
    b"  shots: [null, 8]\narms:\n  suffix: {}\n  8: {placement: prefix, lr: [1e-3, 5e-3], preset: paper}\n"
    b"baselines:\n  none: [mini_topics]\nevaluate: {limit: 100, log_samples: true, batch_size: auto}\nshard_size: 3\n",
]  # fmt: skip


@functools.cache
def _sweep(folder: Path) -> Plan:
    """A sweep of one run whose prompt and results are there."""
    (folder / "sweep.yaml").write_bytes(
        b"output: out\ntargets: a\nsettings: {model: mini, task: a}\naxes: {seed: [0]}\n"
    )
    plan = read_plan(folder / "sweep.yaml")
    for place in ("out/prompts/seed0.safetensors", "out/results/seed0/results_x.json"):
        (folder / place).parent.mkdir(parents=True)
        (folder / place).write_bytes(b"")
    return plan


def _record() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        plan = _sweep.__wrapped__(Path(folder))
    record = records.Record(plan.runs[0].settings(), {"targets": ["a"]}, 1.5, 0.5, "results/seed0/results_x.json")
    return json.dumps(asdict(record)).encode()


def read_record(path: Path) -> None:
    """Read what is known of a run of a sweep, print it, and write it anew."""
    plan = _sweep(path.parent)
    (run,) = plan.runs
    place = records._path(plan, run)
    place.parent.mkdir(exist_ok=True)
    path.replace(place)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        _print_runs([run], {run.name: records.record_of(plan, run)})
    assert printed.getvalue().removesuffix("\n").isprintable()
    records.forget_failures(plan, [run])
    assert records.record_of(plan, run).error is None


class _Model(torch.nn.Module):
    """Enough of a model for a prompt of vectors of size 2."""

    config = SimpleNamespace(is_encoder_decoder=False)

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(8, 2)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding


LM: Any = SimpleNamespace(model=_Model(), gguf=None, device=torch.device("cpu"), fingerprint="0123456789abcdef")
BASE: Any = SimpleNamespace(lm=LM, processes=Processes(), context_cache=lambda config, examples: None)
EXAMPLES: Any = SimpleNamespace(
    num_fewshot={},
    scored={},
    label_counts=None,
    training=[Example((((4,), (5,)), ((4,), (6,))), 0)] * 2,
    validation=[Example((((4,), (5,)),), 0)],
    sizes=[2],
)


training_results._versions = functools.cache(training_results._versions)  # the same in every prompt


def _training_run(folder: Path) -> TrainingRun:
    config = TrainingConfig(
        model="mini", task="mini_topics_eng_Latn", output=str(folder / "p.safetensors"), prompt_length=2, epochs=2,
        batch_size=1, init="uniform", reparameterization="xpe", reparameterization_hidden_size=2,
    )  # fmt: skip
    run = TrainingRun(config, BASE, EXAMPLES)
    run.say = lambda line, file=None: None  # type: ignore[method-assign]
    return run


def _go_on(run: TrainingRun, batches: int = 100) -> None:
    """Have a run do so many batches; each has the loss 1."""
    program = training_loop(run)
    next(program)
    with contextlib.suppress(StopIteration):
        for _ in range(batches):
            program.send(Outcome(torch.tensor(1.0), 1, 1))


def _checkpoints() -> list[bytes]:
    """Files of a run after its first epoch, and in the middle of the second."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for batches in (4, 5):
            run = _training_run(Path(folder))
            _go_on(run, batches)
            checkpoint.save(checkpoint.path_of(run.output), state_of(run))
            found.append(checkpoint.path_of(run.output).read_bytes())
    return found


def read_checkpoint(path: Path) -> None:
    """Go on with a run, and write its prompt."""
    state = checkpoint.load(path)
    run = _training_run(path.parent)
    resume(run, state)
    _go_on(run)
    if run.diverged is not None:
        return
    prompt = training_results.save_results(run)
    assert prompt is not None
    _use_prompt(prompt)


def _tuned(folder: Path) -> TrainingConfig:
    return TrainingConfig("mini", "a", f"{folder}.safetensors", tune="model", resume=True)


def read_tuned(path: Path) -> None:
    """Find out whether a tuned model needs more training."""
    training_results.has_ended(_tuned(path.parent))


def read_model_card(path: Path) -> None:
    """Write a prompt's card around what is in an older one."""
    card = model_card(SoftPrompt(torch.ones(3, 4), METADATA), "owner/name", existing=read_card(path))
    assert card.encode().count(b"written by lm-eval-spt card") >= 1


CARD = model_card(SoftPrompt(torch.ones(3, 4), METADATA), "owner/name").encode()

READERS = {
    reader.name: reader
    for reader in (
        Reader(
            "prompt", "safetensors", "p.safetensors",
            [
                _prompt_file({"format": "pt", "lm_eval_spt": json.dumps(METADATA)}),
                _prompt_file({"lm_eval_spt": json.dumps({"placement": "prefix"})}, "BF16", 2),
                _prompt_file({"lm_eval_spt": json.dumps({"placement": "both", "num_prefix_tokens": 1})}),
                _prompt_file(None, "F16", 2),
                _prompt_file({"lm_eval_spt": json.dumps({"prompt_kind": "kv", "num_layers": 1})}, deep=True),
            ],
            read_prompt,
        ),
        Reader(
            "adapter", "json", PEFT_CONFIG,
            [
                json.dumps(
                    {
                        "peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "base_model_name_or_path": "owner/base",
                        "revision": "main", "num_virtual_tokens": 3, "token_dim": 4, "inference_mode": True,
                        "auto_mapping": None, "prompt_tuning_init": "RANDOM",
                    }
                ).encode(),
                json.dumps(
                    {
                        "peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3, "num_layers": 1, "token_dim": 2,
                        "num_attention_heads": 2, "num_transformer_submodules": 1,
                    }
                ).encode(),
            ],
            read_adapter,
        ),
        Reader("results", "json", "results_x.json", [json.dumps(RESULTS).encode()], read_results),
        Reader("samples", "jsonl", "given.jsonl", [SAMPLES], read_samples),
        Reader("exported samples", "jsonl", "given.jsonl", [LOGGED], export_samples),
        Reader("task languages", "yaml", "languages.yaml", TASK_LANGUAGES, read_task_languages),
        Reader("compact samples", "parquet", "given.parquet", [COMPACT_SAMPLES], read_compact_samples),
        Reader("settings", "yaml", "run.yaml", SETTINGS, read_settings),
        Reader(
            "topics", "text", "test.tsv",
            [
                b"index_id\tcategory\ttext\n1\tsports\tA cup final.\n2\thealth\t\"A \"\"quoted\"\" text\"\n",
                (ROOT / "tasks/mini_topics/data/arb_Arab/dev.tsv").read_bytes()[:600].rpartition(b"\n")[0] + b"\n",
            ],
            read_file,
        ),
        Reader(
            "documents in CSV", "text", "rows.csv", [b'text,label\nA final.,1\n"A ""quoted"", text",2\n'], read_rows,
        ),
        Reader(
            "documents in JSON lines", "jsonl", "rows.jsonl",
            [b'{"text": "A cup final.", "label": 1}\n{"text": "Rain", "label": 2, "choices": ["a", "b"]}\n'], read_rows,
        ),
        Reader("checkpoint", "safetensors", "p.checkpoint", _checkpoints(), read_checkpoint),
        Reader(
            "tuned model", "json", MODEL_RECORD,
            [json.dumps({"base_model": "mini", "hyperparameters": _tuned(Path("x")).hyperparameters()}).encode()],
            read_tuned,
        ),
        Reader("sweep", "yaml", "sweep.yaml", SWEEPS, read_sweep),
        Reader("record", "json", "record.json", [_record()], read_record),
        Reader(
            "card", "yaml", "README.md",
            [CARD, b"---\nlicense: mit\ntags: [a]\n---\n\nMine.\n\n" + CARD.partition(b"---\n\n")[2] + b"\nMore.\n"],
            read_model_card,
        ),
    )
}  # fmt: skip
