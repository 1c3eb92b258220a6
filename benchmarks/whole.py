"""Where the time of a whole command goes: ``lm_eval --tasks sib200`` with a model that computes next to nothing.

    SIB200_DIR=... python -m benchmarks.whole                           # this package, 205 languages
    SIB200_DIR=... python -m benchmarks.whole --languages 10 --hf       # beside lm-eval's hf, on fewer
    SIB200_DIR=... python -m benchmarks.whole --languages 10 --prompts 50   # `evaluate` with 50 prompts beside one

From the start of the process to its end, part by part: what is not the model. A tiny Llama stands for the real one, and
the time within it is a part of its own. Processor time is given, too: other programs do not count in it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import psutil

PARTS = (
    "start-up", "task index", "model", "tasks and their data", "requests", "within the tiny model",
    "tokenising, batching, answers", "metrics of documents", "aggregates and standard errors", "environment",
    "saving", "the rest",
)  # fmt: skip


class Stopwatch:
    """The time of each part. A part that begins within another one is taken off that one."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}
        started = psutil.Process().create_time()
        self._running = ["start-up"]
        self._since = (started, 0.0)

    def enter(self, part: str) -> None:
        """Begin a part; what was running waits."""
        self._note()
        self._running.append(part)

    def leave(self) -> None:
        """End the part that was begun last."""
        self._note()
        self._running.pop()

    def switch(self, part: str) -> None:
        """End the outermost part and begin another."""
        self._note()
        self._running[0] = part

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Have a function's time count as a part."""
        function = getattr(owner, name)
        bound = isinstance(vars(owner).get(name), classmethod)
        inner: Callable[..., Any] = function.__func__ if bound else function

        @wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(part)
            try:
                return inner(*args, **kwargs)
            finally:
                self.leave()

        setattr(owner, name, classmethod(timed) if bound else timed)

    def _note(self) -> None:
        now = (time.time(), time.process_time())
        spent = self.times.setdefault(self._running[-1], [0.0, 0.0])
        for index in range(2):
            spent[index] += now[index] - self._since[index]
        self._since = now


def measure(contender: str, tasks: str, prompts: int, samples: bool) -> dict[str, Any]:
    """Run the command once, in this process.

    Args:
        contender: the harness's name of the model class, ``hf`` or ``spt``; or ``evaluate``, this package's command.
        tasks: what ``--tasks`` gets.
        prompts: how many soft prompts are scored; more than one only by ``evaluate``.
        samples: log samples.

    Returns:
        ``times``: part to seconds by the clock and of the processor. ``memory``: the most, in GB. ``results``: scores.
    """
    watch = Stopwatch()
    import lm_eval.evaluator as evaluator
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from lm_eval_spt.cli.__main__ import main as our_command
    from lm_eval_spt.harness.lm import SPTLM
    from lm_eval_spt.harness.many_prompts import ManyPromptsLM

    lm = {"hf": HFLM, "spt": SPTLM, "evaluate": ManyPromptsLM}[contender]
    for owner, name, part in (
        (TaskManager, "__init__", "task index"),
        (lm, "__init__" if contender == "evaluate" else "create_from_arg_obj", "model"),
        (TaskManager, "load", "tasks and their data"),
        (ConfigurableTask, "build_all_requests", "requests"),
        (lm, "loglikelihood", "tokenising, batching, answers"),
        (ConfigurableTask, "apply_filters", "metrics of documents"),
        (ConfigurableTask, "process_results", "metrics of documents"),
        (evaluator, "_process_results", "aggregates and standard errors"),
        (evaluator, "add_env_info", "environment"),
        (EvaluationTracker, "save_results_aggregated", "saving"),
        (EvaluationTracker, "save_results_samples", "saving"),
    ):
        watch.wrap(owner, name, part)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given, files = f"pretrained={_tiny_model(folder, watch)}", _prompts(folder, prompts)
        common = ["--tasks", tasks, "--device", "cpu", "--batch-size", "64", *(["--log-samples"] if samples else [])]
        with contextlib.redirect_stdout(sys.stderr):
            watch.switch("the rest")
            if contender == "evaluate":
                our_command(
                    ["evaluate", "--prompts", *files, "--model-args", given, "--output", f"{folder}/results", *common]
                )
            else:
                given += f",prompt={files[0]}" if files else ""
                harness = [flag.replace("-size", "_size").replace("-samples", "_samples") for flag in common]
                sys.argv = ["lm_eval", "--model", contender, "--model_args", given, *harness]
                sys.argv += ["--output_path", f"{folder}/results"]
                cli_evaluate()
        watch.switch("end")
        written = min((folder / "results").rglob("results_*.json"))
        results = json.loads(written.read_text(encoding="utf-8"))["results"]
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    watch.times.pop("end", None)
    return {"times": watch.times, "memory": int(peak.split()[1]) / 1e6, "results": results}


def _tiny_model(folder: Path, watch: Stopwatch) -> Path:
    """Write a model of one layer of size 8, whose classes are timed."""
    import torch
    from lm_eval.models import huggingface
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaModel

    from benchmarks import models
    from lm_eval_spt.inference import scoring

    tokenizer = models.tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for owner, name in (
        (LlamaModel, "forward"),
        (LlamaForCausalLM, "forward"),
        (scoring, "loglikelihoods"),  # the head and its softmax, here and in lm-eval's class
        (huggingface.F, "log_softmax"),
    ):
        watch.wrap(owner, name, "within the tiny model")
    return folder / "model"


def _prompts(folder: Path, number: int) -> list[str]:
    """Write so many suffix prompts of four vectors."""
    import torch

    from lm_eval_spt.prompt.soft_prompt import SoftPrompt

    files = [f"{folder}/prompt{seed:03}.safetensors" for seed in range(number)]
    for seed, file in enumerate(files):
        vectors = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
        SoftPrompt(vectors, {"placement": "suffix"}).save(file)
    return files


def languages(number: int | None) -> str:
    """Return what ``--tasks`` gets: the whole group, or so many of its tasks."""
    if number is None:
        return "sib200"
    names = sorted(path.name for path in Path(os.environ["SIB200_DIR"]).iterdir() if path.is_dir())
    return ",".join(f"sib200_{name}" for name in names[:number])


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table: a row for each part, for each contender seconds by the clock and of the processor."""
    lines = [
        "| part | " + " | ".join(f"{name}, s | of the processor" for name in found) + " |",
        "|---|" + "---:|---:|" * len(found),
    ]
    for part in PARTS:
        cells = [f"{seconds:.1f}" for of in found.values() for seconds in of["times"].get(part, (0.0, 0.0))]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    model = "within the tiny model"
    sums = [
        f"{sum(of[index] for part, of in run['times'].items() if part != model):.1f}"
        for run in found.values()
        for index in range(2)
    ]
    lines.append(f"| **outside the model** | {' | '.join(sums)} |")
    lines.append("| memory, GB | " + " | ".join(f"{of['memory']:.2f} | " for of in found.values()) + "|")
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--languages", type=int, help="so many of the 205; default: all")
    parser.add_argument("--hf", action="store_true", help="lm-eval's hf, too: minutes for each 10 languages")
    parser.add_argument("--no-prompt", action="store_true", help="without a soft prompt, as hf always is")
    parser.add_argument("--prompts", type=int, help="measure `evaluate` with one prompt and with so many instead")
    parser.add_argument("--log_samples", action="store_true", help="log samples")
    options = parser.parse_args()
    if "SIB200_DIR" not in os.environ:
        parser.error("SIB200_DIR must name a copy of SIB-200's data/annotated")
    from benchmarks import alone

    given = {"tasks": languages(options.languages), "samples": options.log_samples}
    if options.prompts:
        numbers = (1, options.prompts)
        several = [alone.run(measure, contender="evaluate", prompts=number, **given) for number in numbers]
        print(table({f"{number} prompts": run for number, run in zip(numbers, several, strict=True)}))
        return
    found = {"spt": alone.run(measure, contender="spt", prompts=int(not options.no_prompt), **given)}
    if options.hf:
        found = {"hf": alone.run(measure, contender="hf", prompts=0, **given)} | found
    print(table(found))
    if options.hf and options.no_prompt:
        theirs, ours = found["hf"]["results"], found["spt"]["results"]
        print("the same scores" if theirs == ours else "the scores differ")


if __name__ == "__main__":
    main()
