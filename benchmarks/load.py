"""Much work with a tiny model: memory, open files, and how well the time left is told.

    python -m benchmarks.load --requests 1000000              # through the scorer, in one call
    python -m benchmarks.load --prompts 50 --limit 20         # SIB-200 in 205 languages, 20 documents each

Requests are ever new texts, as in a long evaluation. Memory is the mean of what the process has over the first and the
last tenth of the way. The time left is what the progress bar says after the first tenth; it is compared with the time
that it took, and, as other programs take their share of a machine, with the processor time that it took.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from lm_eval.api.instance import Instance
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lm_eval_spt.harness.evaluate import evaluate_prompts
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.harness.text_classification import CATEGORIES
from lm_eval_spt.inference.base_model import model_path
from lm_eval_spt.prompt.soft_prompt import SoftPrompt

HIDDEN = 32


class Watch(tqdm):
    """The progress bar, which notes memory, open files and the time at every hundredth of the way."""

    def __init__(self, total: int) -> None:
        super().__init__(total=total, desc="Running loglikelihood requests", mininterval=1)
        self.memory: list[int] = []
        self.files: list[int] = []
        self.told = 0.0
        self.times = [(time.perf_counter(), time.process_time())]

    def update(self, n: float | None = 1) -> bool | None:
        before = 100 * self.n // self.total
        shown = super().update(n)
        if before != 100 * self.n // self.total:
            memory, files = _use()
            self.memory.append(memory)
            self.files.append(files)
            self.times.append((time.perf_counter(), time.process_time()))
            if len(self.times) == 11:
                state = self.format_dict
                self.told = (self.total - self.n) / (state["rate"] or self.n / state["elapsed"])
        return shown

    def report(self) -> None:
        """Print what was noted."""
        _print_use(self.memory, self.files)
        started, tenth, end = self.times[0], self.times[10], self.times[-1]
        took = end[0] - tenth[0]
        processor = 9 * (tenth[1] - started[1]), end[1] - tenth[1]
        print(
            f"time left after the first tenth: told {self.told:.0f} s, took {took:.0f} s ({_more(self.told, took)})\n"
            f"processor time: nine times the first tenth's is {processor[0]:.0f} s, the rest took {processor[1]:.0f} s "
            f"({_more(*processor)})"
        )


def _use() -> tuple[int, int]:
    """Return the bytes and the open files that this process has."""
    process = psutil.Process()
    return process.memory_info().rss, process.num_fds()


def _print_use(memory: list[int], files: list[int]) -> None:
    tenth = max(1, len(memory) // 10)
    first, last = (statistics.fmean(part) / 2**20 for part in (memory[:tenth], memory[-tenth:]))
    print(f"memory: {first:.0f} MiB in the first tenth, {last:.0f} MiB in the last ({_more(last, first)})")
    print(f"open files: {files[0]} at first, {max(files)} at most")


def _more(number: float, than: float) -> str:
    return f"{100 * (number / than - 1):+.1f}%"


def tiny_lm(batch_size: str) -> SPTLM:
    """Return a model of two layers of size 32, whose time goes into everything but the model."""
    config = AutoConfig.for_model(
        "llama", vocab_size=20480, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    tokenizer = AutoTokenizer.from_pretrained(model_path("mini"))
    return SPTLM(AutoModelForCausalLM.from_config(config).eval(), tokenizer=tokenizer, batch_size=batch_size)


def watched(kind: type[SPTLM]) -> list[Watch]:
    """Have a model class show a :class:`Watch`, and return the list that it is put into."""
    watches: list[Watch] = []

    def progress(_: Any, requests: int, disable: bool = False) -> Watch:
        watches.append(Watch(requests))
        return watches[-1]

    kind._progress = progress  # type: ignore[method-assign]
    return watches


def many_requests(number: int, batch_size: str) -> None:
    """Score so many requests in one call, as the harness makes them."""
    lm = tiny_lm(batch_size)
    documents = -(-number // len(CATEGORIES))
    requests = [
        Instance(
            "loglikelihood",
            {},
            (f"On day {number} the river rose by {number % 97} centimetres.", f" {answer}"),
            idx=number,
            task_name="",
            doc_id=number,
        )
        for number in range(documents)
        for answer in CATEGORIES
    ]
    lm.loglikelihood(requests[:70], disable_tqdm=True)
    watches = watched(SPTLM)
    started = time.perf_counter()
    answers = lm.loglikelihood(requests)
    took = time.perf_counter() - started
    assert len(answers) == len(requests)
    print(f"{len(requests):,} requests in {took:.0f} s ({len(requests) / took:,.0f} a second)")
    watches[-1].report()


def many_prompts(number: int, limit: int, batch_size: str) -> None:
    """Score so many suffix prompts on SIB-200 in all languages, and write the results of each."""
    watches = watched(SPTLM)
    memory, files = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(number):
            vectors = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(seed))
            SoftPrompt(vectors, {"placement": "suffix", "base_model": "tiny"}).save(folder / f"{seed}.safetensors")

        def results_written(*_: Any, **__: Any) -> None:
            for noted, value in zip((memory, files), _use(), strict=True):
                noted.append(value)

        import lm_eval_spt.harness.evaluate as evaluation

        evaluation.print = results_written  # type: ignore[attr-defined]
        started = time.perf_counter()
        paths = evaluate_prompts(
            [str(folder / "*.safetensors")], ["sib200"], str(folder / "results"), base=tiny_lm(batch_size),
            model_args="pretrained=tiny", limit=limit, batch_size=batch_size,
        )  # fmt: skip
        took = time.perf_counter() - started
    assert len(paths) == number
    answers = number * int(watches[0].total)
    print(f"{number} prompts, {answers:,} answers in {took:.0f} s; while they were scored:")
    watches[0].report()
    print("while their results were written:")
    _print_use(memory, files)


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description="Much work with a tiny model.")
    parser.add_argument("--requests", type=int, default=200_000, help="to score (default: 200000)")
    parser.add_argument("--prompts", type=int, help="to evaluate on SIB-200 instead")
    parser.add_argument("--limit", type=int, default=20, help="documents of each language (default: 20)")
    parser.add_argument("--batch_size", default="auto")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if arguments.prompts:
        many_prompts(arguments.prompts, arguments.limit, arguments.batch_size)
    else:
        many_requests(arguments.requests, arguments.batch_size)


if __name__ == "__main__":
    main()
