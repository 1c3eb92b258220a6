"""Measure everything and write ``benchmarks/RESULTS.md``: `make bench`.

python -m benchmarks                    # about half an hour on two cores
python -m benchmarks --quick            # a look at whether it runs: the embedded model, few documents
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import machine, models, overhead, report, score, train
from benchmarks.alone import run

LENGTHS = [1, 2, 5, 10, 20]  # of the twenty suffix prompts, with four seeds each


def scoring(shape: str, documents: int, many: bool, where: dict[str, str]) -> dict[str, Any]:
    """Measure one prompt and, if wanted, twenty, with both kinds of answers."""
    found = {}
    common: dict[str, Any] = {"shape": shape, "documents": documents, **where}
    for kind, choices in models.CHOICES.items():
        say(f"{shape}: score {kind}")
        found[f"score {kind}"] = score.compare(choices=choices, length=10, **common)
        if many:
            say(f"{shape}: score 20 prompts, {kind}")
            common["documents"] = max(2, documents // 2)
            found[f"score 20 prompts {kind}"] = score.compare_many(choices=choices, lengths=LENGTHS, seeds=4, **common)
            common["documents"] = documents
    return found


def training(shape: str, lengths: list[int], steps: int, where: dict[str, str]) -> dict[str, Any]:
    """Measure training with prompts of these lengths."""
    found = {}
    for length in lengths:
        say(f"{shape}: train, P = {length}")
        found[f"train P = {length}"] = train.compare(shape, length, steps, **where)
    return found


def growth(shape: str, documents: int, where: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Measure how scoring's time grows with each of four things, all others being fixed."""
    words = [f" {word}" for word in models.texts(1)[0].split()]
    base: dict[str, Any] = {"shape": shape, "documents": documents, "choices": models.CATEGORIES, "length": 10, **where}
    contenders = score.CONTENDERS[0], score.CONTENDERS[-1]

    def seconds(**change: Any) -> dict[str, float]:
        say(f"{shape}: growth, {', '.join(change) or 'base'}")
        return {name: run(score.one_prompt, contender=name, **base | change)["seconds"] for name in contenders}

    middle = seconds()
    found = {
        "documents": [(documents, middle), (4 * documents, seconds(documents=4 * documents))],
        "choices": [
            (2, seconds(choices=models.CATEGORIES[:2])),
            (7, middle),
            (20, seconds(choices=(models.CATEGORIES + words)[:20])),
        ],
        "prompt length": [(10, middle), (50, seconds(length=50))],
    }
    together = []
    for seeds in (1, 4, 16):
        say(f"{shape}: growth, {seeds} prompts")
        given = {name: value for name, value in base.items() if name != "length"}
        ours = run(score.many_prompts, lengths=[10], seeds=seeds, **given)["seconds"]
        together.append((seeds, {contenders[0]: seeds * middle[contenders[0]], contenders[1]: ours}))
    found["suffix prompts"] = together
    return {axis: [{"x": x, "seconds": of} for x, of in points] for axis, points in found.items()}


def say(what: str) -> None:
    """Tell how far it is."""
    print(f"{datetime.datetime.now():%H:%M:%S} {what}", file=sys.stderr, flush=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--overhead-documents", type=int, default=1000, help="205 languages have 41,820")
    parser.add_argument("--steps", type=int, default=2, help="measured training steps of each contender")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--only", nargs="+", default=[], help="sections to measure anew, the rest as it was")
    parser.add_argument("--quick", action="store_true", help="only see whether it runs; prints, and writes nothing")
    options = parser.parse_args()
    where = {"device": options.device, "dtype": options.dtype}
    shapes = ["mini"] if options.quick else ["bloom-560m", "xglm-564m", "llama-1b", "gemma-3-270m"]
    documents = 4 if options.quick else options.documents
    overhead_documents = 500 if options.quick else options.overhead_documents
    where_and_when = f"{machine.name(options.device)}, torch {torch.__version__}, {datetime.date.today()}"
    found: dict[str, Any] = {
        "setting": {
            "dtype": options.dtype, "overhead_documents": overhead_documents, "joules": machine.joules() is not None,
            "texts": "English sentences of SIB-200" if os.environ.get("SIB200_DIR") else "made, as long as SIB-200's",
        },
        "measured": {},
    }  # fmt: skip
    main_shape, *others = shapes
    half = where | {"dtype": "bfloat16"}
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        f"{main_shape}: score": lambda: scoring(main_shape, documents, many=True, where=where),
        f"{main_shape}: train": lambda: training(main_shape, [5, 10], options.steps, where),
        "overhead": lambda: overhead.compare(overhead_documents),
        "growth": lambda: growth(main_shape, max(2, documents // 2), where),
        **{f"{shape}: score": partial(scoring, shape, documents, many=False, where=where) for shape in others},
        # PEFT's training of the largest does not fit into 16 GB.
        **{f"{shape}: train": partial(training, shape, [5], options.steps, where) for shape in others[:1]},
        **{
            f"{shape} in bfloat16: score": partial(scoring, shape, documents, many=False, where=half)
            for shape in shapes
            if shape != "xglm-564m"
        },
        f"{shapes[-1]} in bfloat16: train": partial(training, shapes[-1], [16], options.steps, half),
    }
    if unknown := set(options.only) - {*sections}:
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(sections)}")
    if options.only:
        found = report.read()
    for name, section in sections.items():
        if options.only and name not in options.only:
            continue
        found.setdefault(name.partition(":")[0], {}).update(section())
        found["measured"][name] = where_and_when
        if not options.quick:  # what is measured is not lost if the rest is interrupted
            report.write(found)
    if options.quick:
        print(report.markdown(found | {"bloom-560m": found["mini"]}))


if __name__ == "__main__":
    main()
