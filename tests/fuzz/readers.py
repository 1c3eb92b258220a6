"""The readers that are fuzzed. One more is one more entry in :data:`READERS`.

A reader is given as a function that takes a file's path and does all that the tools do with such a file before a model
is needed, so that what is wrong with it can not come up later.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lm_eval_spt.errors import UserError
from lm_eval_spt.inspection import as_text, report
from lm_eval_spt.prompt import PEFT_CONFIG, PEFT_WEIGHTS, SoftPrompt
from lm_eval_spt.sharing import model_card
from lm_eval_spt.topics import read_file
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.transfer.arms import read_arms
from lm_eval_spt.transfer.documents import read_answers
from lm_eval_spt.transfer.leaderboard import rank, ranking_lines
from lm_eval_spt.transfer.page import page
from lm_eval_spt.transfer.results import Run, read_runs
from lm_eval_spt.transfer.statistics import resample

ROOT = Path(__file__).resolve().parents[2]


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
    "base_model_revision": "main", "embedding_fingerprint": "0123456789abcdef", "tasks": ["mini_topics_eng_Latn"],
    "source_languages": ["eng_Latn"], "shots": 8, "seed": 0, "training_documents": 56, "tuned_parameters": 12,
    "tuned_share": 0.001, "validation": {"epoch": 3, "loss": 1.5, "accuracy": 0.5}, "versions": {"python": "3.11"},
    "hyperparameters": {"lr": 0.005, "epochs": 20, "add_bos_token": None, "init_text": "\nTopic:"},
}  # fmt: skip


def _prompt_file(metadata: dict[str, str] | None, dtype: str = "F32", width: int = 4) -> bytes:
    tensor = {"dtype": dtype, "shape": [3, 4], "data_offsets": [0, 12 * width]}
    header: dict[str, object] = {"prompt_embeddings": tensor}
    if metadata is not None:
        header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + np.linspace(-1, 1, 12).astype("<f4").tobytes()[: 12 * width]


def _use_prompt(prompt: SoftPrompt) -> None:
    list(as_text(json.loads(json.dumps(report(prompt, None, 5)))))
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


def read_results(path: Path) -> None:
    """Read a results file, rank it beside itself, and write the leaderboard's page."""
    arms, _ = read_arms([("a", path), (None, path)])
    board = rank(arms, "eng_Latn")
    "\n".join(ranking_lines(board)).encode()
    page(board).encode()
    for run in read_runs(path):
        assert run.samples_file("eng_Latn").parent == path.parent


SAMPLES = b"".join(
    json.dumps({"doc_id": number, "target": str(number % 3), "acc": number % 2, "macro_f1": [number % 3, 1]}).encode()
    + b"\n"
    for number in range(6)
)


def read_samples(path: Path) -> None:
    """Read the answers to single documents, and resample both kinds of metric."""
    run = Run(path, "sib200", {}, {}, None, None, None, None, None, None, None, None, {})
    beside = path.with_name("samples_sib200_eng_Latn_x.jsonl")
    path.replace(beside)
    run = Run(path.with_name("results_x.json"), *(getattr(run, name) for name in list(run.__dataclass_fields__)[1:]))
    for metric in ("acc", "macro_f1"):
        answers = read_answers([run], ["eng_Latn"], metric)
        assert np.isfinite(answers.resampled(metric, resample(len(answers.labels), 20))).all()


def read_settings(path: Path) -> None:
    config = TrainingConfig.from_command_line(["--config", str(path)])
    torch.manual_seed(config.seed)
    json.dumps(config.hyperparameters(), allow_nan=False)


SETTINGS = [
    b"model: mini\ntask: mini_topics_eng_Latn\noutput: p.safetensors\nprompt-length: 3\nlr: 5e-3\nseed: 1\n",
    b"model: mini\ntask: a, b\noutput: p.safetensors\npreset: paper\nshots: null\ncontext-cache: off\n"
    b"init_text: \"\\nTopic:\"\nadd_bos_token: true\nwarmup_ratio: 0.1\nclip: 1\nplacement: prefix\nrevision: abc\n",
]  # fmt: skip

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
                ).encode()
            ],
            read_adapter,
        ),
        Reader("results", "json", "results_x.json", [json.dumps(RESULTS).encode()], read_results),
        Reader("samples", "jsonl", "given.jsonl", [SAMPLES], read_samples),
        Reader("settings", "yaml", "run.yaml", SETTINGS, read_settings),
        Reader(
            "topics", "text", "test.tsv",
            [
                b"index_id\tcategory\ttext\n1\tsports\tA cup final.\n2\thealth\t\"A \"\"quoted\"\" text\"\n",
                (ROOT / "tasks/mini_topics/data/arb_Arab/dev.tsv").read_bytes()[:600].rpartition(b"\n")[0] + b"\n",
            ],
            read_file,
        ),
    )
}  # fmt: skip
