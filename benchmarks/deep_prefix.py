"""A deep prefix (prefix tuning): this package beside PEFT, scored and trained, in one run.

    python -m benchmarks.deep_prefix --shape bloom-560m --documents 24

Every contender has a process of its own and the same random keys and values. Log-likelihoods, and the gradient of the
first training step, must agree before a time counts.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from transformers import PreTrainedModel

from benchmarks import alone, machine, models
from benchmarks.score import AT_ONCE, requests
from benchmarks.train import BATCH, TRAINING, collate, examples, seconds_per
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference.deep_prefix import deep_prefix_size
from lm_eval_spt.prompt.file_format import by_position
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train.objective import LossRequest, evaluate

CONTENDERS = ("hf + peft", "this package")


def prompt(model: PreTrainedModel, length: int) -> SoftPrompt:
    """Return random keys and values that fit a model."""
    *size, width = deep_prefix_size(model)
    return SoftPrompt(torch.randn(*size, length, width, generator=torch.Generator().manual_seed(0)))


def with_peft(model: PreTrainedModel, deep: SoftPrompt) -> PeftModel:
    """Return the model as PEFT loads it with the same prefix."""
    with tempfile.TemporaryDirectory() as folder:
        deep.to_peft(folder, "CAUSAL_LM")
        return PeftModel.from_pretrained(model, folder).eval()


def score(contender: str, shape: str, documents: int, kind: str, length: int, dtype: str) -> dict[str, Any]:
    """Measure the scoring of documents."""
    model = models.build(shape, getattr(torch, dtype))
    deep = prompt(model, length)
    if contender == CONTENDERS[0]:
        lm = HFLM(with_peft(model, deep), tokenizer=models.tokenizer(), batch_size=8)
    else:
        lm = SPTLM(model, deep, tokenizer=models.tokenizer(), batch_size="auto")
        documents *= AT_ONCE
    lm.loglikelihood(requests(models.texts(2), models.CHOICES[kind]), disable_tqdm=True)
    asked = requests(models.texts(documents), models.CHOICES[kind])
    answers, cost = machine.measure(lambda: lm.loglikelihood(asked, disable_tqdm=True), "cpu")
    return {"speed": documents / cost.seconds, "answers": [value for value, _ in answers]}


def train(contender: str, shape: str, length: int, steps: int, dtype: str) -> dict[str, Any]:
    """Measure training steps: cross-entropy of the answer's token over the vocabulary, as PEFT has it."""
    model = models.build(shape, getattr(torch, dtype))
    model.tie_weights()  # as the harness's class does with a model that it is given
    deep, training = prompt(model, length), examples(TRAINING)[:BATCH]
    if contender == CONTENDERS[0]:
        peft_model = with_peft(model, deep)
        peft_model.peft_config["default"].inference_mode = False
        learned = peft_model.prompt_encoder["default"].embedding.weight.requires_grad_()
        rows = [[*example.pairs[0][0], *example.pairs[example.gold][1]] for example in training]
        batch = collate(rows)

        def loss() -> torch.Tensor:
            return peft_model(**batch).loss  # type: ignore[no-any-return]
    else:
        learned = torch.nn.Parameter(deep.vectors.clone())
        SPTLM(model, deep, tokenizer=models.tokenizer()).try_out(
            [(list(context), list(answer)) for example in training for context, answer in example.pairs],
            learned, gradient=True,
        )  # fmt: skip

        def loss() -> torch.Tensor:
            (outcome,) = evaluate(model, [LossRequest(training, learned, 0, "target")])
            return outcome.loss / outcome.weight

    loss().backward()
    assert learned.grad is not None
    gradient = by_position(learned.grad)
    optimizer = torch.optim.AdamW([learned], lr=5e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return {"speed": 1 / seconds_per(step, steps), "answers": gradient.norm(dim=1).tolist()}


def compare(work: Any, **given: Any) -> str:
    """Return a row: both speeds and their ratio.

    Raises:
        SystemExit: what both computed differs.
    """
    theirs, ours = (alone.run(work, contender=name, **given) for name in CONTENDERS)
    size = max(abs(value) for value in theirs["answers"])
    worst = max(abs(a - b) for a, b in zip(ours["answers"], theirs["answers"], strict=False)) / size
    if given["dtype"] == "float32" and worst > 1e-4:
        raise SystemExit(f"the two disagree by {worst:.1%}: no time counts")
    return f"| {theirs['speed']:.2f} | {ours['speed']:.2f} | {ours['speed'] / theirs['speed']:.1f}x |"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(models.SHAPES), default="bloom-560m")
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--prompt-length", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="measured training steps of each contender")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    common = {"shape": options.shape, "length": options.prompt_length, "dtype": options.dtype}
    print(f"{options.shape}, {options.dtype}, {machine.name('cpu')}\n")
    print("| a deep prefix | hf + peft | this package | |\n|---|---:|---:|---:|")
    for kind in models.CHOICES:
        print(f"| {kind}, documents/s {compare(score, documents=options.documents, kind=kind, **common)}", flush=True)
    print(f"| training, steps/s {compare(train, steps=options.steps, **common)}", flush=True)


if __name__ == "__main__":
    main()
