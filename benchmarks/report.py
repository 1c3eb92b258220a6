"""RESULTS.md and its figure, from what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import score, train

FOLDER = Path(__file__).parent
FLOORS = [  # what was asked for: (label, file of the measurement, contender, against, times as fast)
    ("score one prompt, category names", "score category names", "this package, suffix", 0, 8.0),
    ("score one prompt, single tokens", "score single tokens", "this package, suffix", 0, 2.5),
    ("score 20 suffix prompts, category names", "score 20 prompts category names", "this package", 0, 18.0),
    ("score 20 suffix prompts, single tokens", "score 20 prompts single tokens", "this package", 0, 9.0),
    ("train a suffix prompt, P = 5, against PEFT", "train P = 5", "this package, suffix", 0, 12.0),
    ("the same against the paper's recipe", "train P = 5", "this package, suffix", 1, 25.0),
    ("train a suffix prompt, P = 10, against PEFT", "train P = 10", "this package, suffix", 0, 7.0),
    ("the same against the paper's recipe", "train P = 10", "this package, suffix", 1, 16.0),
    ("train a prefix prompt, P = 10, against PEFT", "train P = 10", "this package, prefix", 0, 2.2),
]


def read() -> dict[str, Any]:
    """Return what was measured before."""
    found: dict[str, Any] = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    return found


def write(found: dict[str, Any]) -> None:
    """Write the figures as JSON, as Markdown, and as a picture."""
    (FOLDER / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (FOLDER / "RESULTS.md").write_text(markdown(found), encoding="utf-8")
    if "growth" in found:
        draw(found, FOLDER / "results.png")


def markdown(found: dict[str, Any]) -> str:
    """Return all tables with the words that they need."""
    setting = found["setting"]
    lines = [
        "# Speed and memory beside the harness with PEFT, PEFT with the HF Trainer, and the paper's recipe",
        "",
        f"Measured on {setting['machine']}, {setting['dtype']}, {setting['date']}, with `make bench`, which writes "
        f"this page. Models have random weights and the shapes of the originals, with full vocabularies. Texts are "
        f"{setting['texts']}. Ratios within a table are from one run. The seconds belong to this machine. "
        + (
            "Energy is in the tables' data, `results.json`."
            if setting["joules"]
            else "Energy was not measured: this machine has no counter for it."
        ),
        "",
        "![how time grows](results.png)",
        "",
        "## What was asked for",
        "",
        "| work | against the other | asked for | of the arithmetic limit |",
        "|---|---:|---:|---:|",
    ]
    for label, measurement, contender, other, floor in FLOORS:
        of = found["bloom-560m"].get(measurement)
        if of is None:
            continue
        mine, theirs = of[contender], of[[name for name in of if isinstance(of[name], dict)][other]]
        key = "total" if "total" in mine else "seconds"
        share = f"{mine['limit'] / mine[key]:.0%}" if "limit" in mine else ""
        ratio = theirs[key] / mine[key] * mine.get("documents", 1) / theirs.get("documents", 1)
        lines.append(f"| {label} | {ratio:.1f}x | {floor:g}x | {share} |")
    if memory := found["bloom-560m"].get("train P = 10"):
        peft, ours = (memory[name]["memory"] for name in ("PEFT + Trainer (prefix)", "this package, suffix"))
        lines.append(f"| memory in training above the model, of PEFT's | {ours / peft:.0%} | 33% | |")
    outside = found.get("overhead")
    if outside:
        ratio = outside["hf"]["seconds"] / outside["this package"]["seconds"]
        lines.append(f"| time outside the model, against lm-eval's loop | {ratio:.1f}x | 2x | |")
    lines += [
        "",
        "The limit is the work that can not be avoided, divided by the rate of matrix products of these shapes with "
        "512 rows, measured in the same process. That work is every distinct token through the transformer body once, "
        "and the head where something is scored; in training, the forward pass and the input gradient of the prompt's "
        "positions.",
    ]
    for shape in [name for name in found if name not in ("setting", "overhead", "growth")]:
        lines += ["", f"## {shape}"]
        for name, of in found[shape].items():
            if name.startswith("train"):
                lines += ["", f"| {name} | {train.HEADER}", *train.rows(of)]
            else:
                lines += ["", f"| {name} | {score.HEADER}", *score.rows(of)]
    lines += [
        "",
        "hf + peft is lm-eval's `hf` with a PeftModel and batches of 8, its one-token cache on. With several prompts "
        "it is one run for each prompt, and a document counts once for each. This package is given four times as many "
        "documents, to fill its batches; the documents per second of hf + peft do not depend on their number. Training "
        "is 56 examples with one-token answers in batches of 8 for 20 epochs, extrapolated from a few steps. This "
        "package's time includes reading the texts and validating after every epoch. Memory is the peak above what the "
        "process had with the model loaded.",
    ]
    if outside:
        lines += [
            "",
            "## Outside the model",
            "",
            f"{setting['overhead_documents']:,} documents with seven choices and a model that computes next to "
            "nothing. What is left is tokenising, sorting, batching, normalizing logits and putting answers in order.",
            "",
            "| | seconds | within the tiny model |",
            "|---|---:|---:|",
            *(f"| {name} | {of['seconds']:.1f} | {of['inside']:.1f} |" for name, of in outside.items()),
        ]
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw how seconds grow with documents, choices, prompt length and number of prompts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    growth = found["growth"]
    figure, axes = pyplot.subplots(1, len(growth), figsize=(4 * len(growth), 3.4), layout="constrained")
    for axis, (name, points) in zip(axes, growth.items(), strict=True):
        for contender in points[0]["seconds"]:
            axis.plot(
                [point["x"] for point in points], [point["seconds"][contender] for point in points],
                marker="o", label=contender,
            )  # fmt: skip
        axis.set_xlabel(name)
        axis.set_ylabel("seconds")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks([point["x"] for point in points], [str(point["x"]) for point in points], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(f"bloom-560m's shape, {found['setting']['machine']}", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
