"""The recipe of arXiv 2402.03782 in plain torch, beside the trainer: the same losses step by step, the same answers.

The restatement shares no code with the package. It reads the data file by itself, takes one text at a time without
padding, masks or caches, spells out AdamW, the schedule and the clipping, and multiplies by XGLM's embedding scale by
hand.
"""

from __future__ import annotations

import copy
import csv
import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.loop import train
from tests.helpers.models import build_model
from tests.helpers.paths import ROOT
from tests.helpers.requests import loglikelihoods

VERBALIZERS = ["science", "travel", "politics", "sports", "health", "entertainment", "earth"]
CATEGORIES = ["science/technology", "travel", "politics", "sports", "health", "entertainment", "geography"]
SCALES = {"bloom": 1.0, "xglm": math.sqrt(32)}
LENGTH, MAX_TOKENS, BATCH, EPOCHS = 5, 24, 8, 5  # 84 documents: 11 steps an epoch, 55 in all
LR, MODEL_LR, WARMUP, CLIP = 5e-3, 1e-4, 0.1, 1.0

Text = tuple[list[int], int]
"""The token ids of a text, and its category."""


def read_texts(split: str, tokenizer) -> list[Text]:
    """Texts without BOS token; those that are trained on have their right ends cut so that the prompt fits."""
    with (ROOT / "tasks" / "mini_topics" / "data" / "eng_Latn" / f"{split}.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    end = None if split == "test" else MAX_TOKENS - LENGTH
    texts = [tokenizer.encode(row["text"], add_special_tokens=False)[:end] for row in rows]
    return list(zip(texts, [CATEGORIES.index(row["category"]) for row in rows], strict=True))


@dataclass
class Recipe:
    """Prompt tuning as the paper does it: [text][prompt], the label's token read at the last prompt position."""

    model: PreTrainedModel
    scale: float
    labels: list[int]
    raw: Tensor
    network: nn.Module | None
    tuned: list[list[Tensor]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def prompt(self) -> Tensor:
        return (self.raw if self.network is None else self.network(self.raw)) * self.scale

    def logits(self, text: list[int], prompt: Tensor) -> Tensor:
        words = self.model.get_input_embeddings()(torch.tensor(text))
        return self.model(inputs_embeds=torch.cat([words, prompt])[None]).logits[0, -1]

    def loss(self, texts: list[Text], prompt: Tensor) -> Tensor:
        logprobs = [self.logits(text, prompt).log_softmax(0)[self.labels[category]] for text, category in texts]
        return -torch.stack(logprobs).mean()

    def predictions(self, texts: list[Text], prompt: Tensor) -> list[int]:
        return [int(self.logits(text, prompt)[self.labels].argmax()) for text, _ in texts]

    def train(self, training: list[Text], validation: list[Text], seed: int) -> tuple[Tensor, PreTrainedModel]:
        """Return the prompt, and the model, of the epoch with the lowest validation loss."""
        groups = [([self.raw], LR)]
        if self.network is not None:
            groups.append((list(self.network.parameters()), LR))
        if any(weight.requires_grad for weight in self.model.parameters()):
            groups.append((list(self.model.parameters()), MODEL_LR))
        moments = [
            [(torch.zeros_like(weight), torch.zeros_like(weight)) for weight in weights] for weights, _ in groups
        ]
        everything = [weight for weights, _ in groups for weight in weights]
        steps = math.ceil(len(training) / BATCH) * EPOCHS
        warmup = round(WARMUP * steps)
        shuffling = random.Random(seed)
        step = 0
        best = (math.inf, self.prompt().detach(), self.model)
        for epoch in range(EPOCHS + 1):
            with torch.no_grad():
                loss = float(self.loss(validation, self.prompt()))
            if loss < best[0]:
                frozen = len(groups) == 1 + (self.network is not None)
                best = (loss, self.prompt().detach().clone(), self.model if frozen else copy.deepcopy(self.model))
            if epoch == EPOCHS:
                break
            order = list(range(len(training)))
            shuffling.shuffle(order)
            for start in range(0, len(order), BATCH):
                batch = [training[number] for number in order[start : start + BATCH]]
                loss = self.loss(batch, self.prompt())
                self.losses.append(float(loss.detach()))
                gradients = torch.autograd.grad(loss, everything, allow_unused=True)
                gradients = [
                    g if g is not None else torch.zeros_like(w) for g, w in zip(gradients, everything, strict=True)
                ]
                norm = math.sqrt(sum(float(gradient.double().pow(2).sum()) for gradient in gradients))
                shrink = min(1.0, CLIP / (norm + 1e-6))
                factor = step / warmup if step < warmup else (steps - step) / (steps - warmup)
                step += 1
                remaining = iter(gradients)
                with torch.no_grad():
                    for (weights, lr), of_group in zip(groups, moments, strict=True):
                        for weight, (first, second) in zip(weights, of_group, strict=True):
                            gradient = next(remaining) * shrink
                            first.mul_(0.9).add_(0.1 * gradient)
                            second.mul_(0.999).add_(0.001 * gradient.pow(2))
                            mean, variance = first / (1 - 0.9**step), second / (1 - 0.999**step)
                            weight -= lr * factor * mean / (variance.sqrt() + 1e-8)
        return best[1], best[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer) -> dict[str, Path]:
    """Tiny models with the embedded model's tokenizer, and the task with one-token verbalizers."""
    folder = tmp_path_factory.mktemp("faithful")
    for family in SCALES:
        model = build_model(family)
        model.config.dropout = model.config.attention_dropout = 0.0
        model.save_pretrained(folder / family)
        tokenizer.save_pretrained(folder / family)
    (folder / "tasks").mkdir()
    (folder / "tasks" / "paper.yaml").write_text(
        f"include: {ROOT / 'tasks' / 'mini_topics' / '_mini_topics'}\n"
        "task: paper_eng_Latn\ndataset_name: eng_Latn\n"
        f"doc_to_choice: [{', '.join(VERBALIZERS)}]\n"
    )
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["prompt", "all"])
@pytest.mark.parametrize("reparameterization", ["none", "mlp"])
@pytest.mark.parametrize("family", list(SCALES))
def test_fifty_steps_of_the_recipe(folders, tmp_path, family, reparameterization, tune):
    seed = 3
    output = tmp_path / "prompt.safetensors"
    train(
        TrainingConfig.from_settings(
            {
                "preset": "paper",
                "model": str(folders[family]),
                "task": "paper_eng_Latn",
                "include_path": str(folders["tasks"]),
                "output": str(output),
                "prompt_length": LENGTH,
                "reparameterization": reparameterization,
                "tune": tune,
                "max_length": MAX_TOKENS,
                "epochs": EPOCHS,
                "seed": seed,
                "device": "cpu",
                "model_lr": MODEL_LR if tune == "all" else None,
                "shots": 12,
                "validation_shots": 3,  # all there are, of each category
            }
        )  # fmt: skip
    )
    rows = [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()[1:]]
    found = [loss for row in rows for loss in row["training"].get("steps", [])]

    tokenizer = AutoTokenizer.from_pretrained(folders[family])
    model = AutoModelForCausalLM.from_pretrained(folders[family], dtype=torch.float32).eval()
    model.requires_grad_(tune == "all")
    raw = (torch.rand(LENGTH, 32, generator=torch.Generator().manual_seed(seed)) - 0.5).requires_grad_()
    network = None
    if reparameterization == "mlp":
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(32, 200), nn.ReLU(), nn.Linear(200, 32), nn.LayerNorm(32))
    labels = [tokenizer.encode(" " + word, add_special_tokens=False) for word in VERBALIZERS]
    assert {len(label) for label in labels} == {1}
    recipe = Recipe(model, SCALES[family], [label[0] for label in labels], raw, network)
    training, validation, test = (read_texts(split, tokenizer) for split in ("train", "dev", "test"))
    # Few shots are drawn class by class; here that draw is all documents, in an order of its own.
    by_class: dict[str, list[Text]] = {word: [] for word in VERBALIZERS}
    for text in training:
        by_class[VERBALIZERS[text[1]]].append(text)
    training = [
        text for word in sorted(by_class) for text in random.Random(f"{seed} {word}").sample(by_class[word], 12)
    ]
    prompt, model = recipe.train(training, validation, seed)

    assert len(found) == len(recipe.losses) == 55
    assert found == pytest.approx(recipe.losses, abs=1e-5)
    recipe.model = model.eval()
    with torch.no_grad():
        expected = recipe.predictions(test, prompt)
    pretrained = str(output.with_suffix("")) if tune == "all" else str(folders[family])
    lm = SPTLM(pretrained=pretrained, prompt=str(output), device="cpu", dtype="float32")
    assert torch.allclose(lm.prompt.vectors, prompt, atol=1e-4 * SCALES[family])
    manager = TaskManager(include_path=str(folders["tasks"]), include_defaults=False)
    results = simple_evaluate(
        model=lm, tasks=["paper_eng_Latn"], task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    samples = sorted(results["samples"]["paper_eng_Latn"], key=lambda sample: sample["doc_id"])
    answers = [loglikelihoods(sample) for sample in samples]
    assert [max(range(7), key=answer.__getitem__) for answer in answers] == expected
