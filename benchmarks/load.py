"""Many requests through the scorer with a tiny model: memory, open files, and how well the time left is told.

    python -m benchmarks.load --requests 1000000

Every text is new, as in a long evaluation. The requests come in one call, as the harness makes them. Memory is the
mean of what the process has over the first and the last tenth of the requests. The time left is estimated after the
first tenth, as the progress bar does, and compared with what it took.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import psutil
from lm_eval.api.instance import Instance
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lm_eval_spt.base_model import resolve
from lm_eval_spt.lm import SPTLM
from lm_eval_spt.topics import CATEGORIES


class Watch:
    """Notes memory, open files and the time at every hundredth of the way, where the progress bar is updated."""

    def __init__(self, total: int) -> None:
        self._process, self._total, self._done = psutil.Process(), total, 0
        self.memory: list[int] = []
        self.files: list[int] = []
        self.times = [time.perf_counter()]

    def update(self, number: int = 1) -> None:
        before, self._done = self._done, self._done + number
        if 100 * before // self._total != 100 * self._done // self._total:
            self.memory.append(self._process.memory_info().rss)
            self.files.append(self._process.num_fds())
            self.times.append(time.perf_counter())


def tiny_lm(batch_size: str) -> SPTLM:
    """Return a model of two layers of size 32, whose time goes into everything but the model."""
    config = AutoConfig.for_model(
        "llama", vocab_size=20480, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    tokenizer = AutoTokenizer.from_pretrained(resolve("mini"))
    return SPTLM(AutoModelForCausalLM.from_config(config).eval(), tokenizer=tokenizer, batch_size=batch_size)


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description="Many requests through the scorer.")
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--batch_size", default="auto")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    lm = tiny_lm(arguments.batch_size)
    documents = -(-arguments.requests // len(CATEGORIES))
    requests = [
        Instance(
            "loglikelihood", {}, (f"On day {number} the river rose by {number % 97} centimetres.", f" {answer}"), number
        )
        for number in range(documents)
        for answer in CATEGORIES
    ]
    lm.loglikelihood(requests[:70], disable_tqdm=True)
    watch = Watch(len(requests))
    lm._progress = lambda *_, **__: _Bar(watch)  # type: ignore[method-assign]
    started = time.perf_counter()
    answers = lm.loglikelihood(requests)
    took = time.perf_counter() - started
    assert len(answers) == len(requests)
    first, last = (statistics.fmean(part) / 2**20 for part in (watch.memory[:10], watch.memory[-10:]))
    tenth = watch.times[10] - started
    left = tenth * 9
    print(f"{len(requests):,} requests in {took:.0f} s ({len(requests) / took:,.0f} a second)")
    print(f"memory: {first:.0f} MiB in the first tenth, {last:.0f} MiB in the last ({100 * (last / first - 1):+.1f}%)")
    print(f"open files: {watch.files[0]} at first, {max(watch.files)} at most")
    print(
        f"time left after the first tenth: told {left:.0f} s, took {took - tenth:.0f} s "
        f"({100 * (left / (took - tenth) - 1):+.0f}%)"
    )


class _Bar:
    """Stands in for the progress bar."""

    def __init__(self, watch: Watch) -> None:
        self.update = watch.update

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    main()
