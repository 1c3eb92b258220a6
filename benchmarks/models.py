"""What the benchmarks run on: base models of real shapes with random weights, and texts of real lengths."""

from __future__ import annotations

import csv
import os
import random
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.inference.base_model import model_path

SHAPES = {
    "bloom-560m": ("bloom", {"vocab_size": 250880, "hidden_size": 1024, "n_layer": 24, "n_head": 16}),
    "xglm-564m": (
        "xglm",
        {"vocab_size": 256008, "d_model": 1024, "ffn_dim": 4096, "num_layers": 24, "attention_heads": 16},
    ),
    "llama-1b": (
        "llama",
        {
            "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
        },
    ),
    "gemma-3-270m": (
        "gemma3_text",
        {
            "vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
            "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512,
        },
    ),
    "mini": ("mini", {}),
    "tiny": ("bloom", {"vocab_size": 20480, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
}  # fmt: skip
"""Name -> family and the settings that make its size; the vocabularies are the originals' in full."""

CATEGORIES = ["science/technology", "travel", "politics", "sports", "health", "entertainment", "geography"]
VERBALIZERS = [" science", " travel", " politics", " sports", " health", " entertainment", " geography"]
CHOICES = {"category names": CATEGORIES, "single tokens": VERBALIZERS}
"""SIB-200's seven answers: without a space the names have 1 to 7 tokens of the embedded model's tokenizer, the words
with a space are tokens of it."""

LENGTHS = (14, 21, 25, 29, 31, 34, 37, 40, 45, 52, 110)
"""Of English SIB-200 texts in that tokenizer's tokens: the shortest, the nine deciles, the longest."""


def build(shape: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> PreTrainedModel:
    """Return a model of this shape, its weights random (but for `mini`), frozen and in evaluation mode."""
    family, settings = SHAPES[shape]
    if family == "mini":
        model = AutoModelForCausalLM.from_pretrained(model_path("mini"), dtype=dtype)
    else:
        config = AutoConfig.for_model(family, **settings)
        with torch.device(device), no_init_weights():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        torch.manual_seed(0)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() > 1:
                    weight.uniform_(-0.035, 0.035)  # the usual spread of 0.02, in a fifth of a normal one's time
                else:
                    weight.fill_(0.0 if name.endswith("bias") else 1.0)
    return model.to(device).eval().requires_grad_(False)


def tokenizer() -> PreTrainedTokenizerBase:
    """Return the embedded model's tokenizer: its ids exist in every vocabulary above."""
    return AutoTokenizer.from_pretrained(model_path("mini"))


def texts(number: int, language: str = "eng_Latn", split: str = "test") -> list[str]:
    """Return texts of SIB-200 where ``SIB200_DIR`` names a copy, over again if need be.

    Elsewhere they are made of the words of mini_topics, with as many tokens as texts of SIB-200 have.
    """
    folder = os.environ.get("SIB200_DIR")
    path = (Path(folder) if folder else tasks_folder() / "mini_topics" / "data") / language / f"{split}.tsv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row["text"] for row in csv.DictReader(file, delimiter="\t")]
    if folder:
        return [rows[index % len(rows)] for index in range(number)]
    order, tokens = random.Random(0), tokenizer()
    words = " ".join(rows).split()
    made = []
    for index in range(number):
        # Even steps through the distribution, in no order.
        place = (index * 0.618034) % 1 * (len(LENGTHS) - 1)
        low = LENGTHS[int(place)]
        length = round(low + (place - int(place)) * (LENGTHS[int(place) + 1] - low))
        ids = tokens.encode(" ".join(order.choices(words, k=length)))[:length]
        made.append(tokens.decode(ids))
    return made
