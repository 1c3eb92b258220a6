"""Write RESULTS.md and its figure from the measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import score, train

FOLDER = Path(__file__).parent
FLOORS = [  # the aims: (label, measurement, contender, position of the other contender, times as fast)
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
    """Return the measurements that were written before."""
    results: dict[str, Any] = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    return results


def write(results: dict[str, Any]) -> None:
    """Write the measurements as JSON, as Markdown, and as a picture."""
    (FOLDER / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (FOLDER / "RESULTS.md").write_text(markdown(results), encoding="utf-8")
    if "growth" in results:
        draw(results, FOLDER / "results.png")


def markdown(results: dict[str, Any]) -> str:
    """Return all tables in Markdown, with their explanations."""
    setting = results["setting"]
    lines = [
        "# Speed and memory beside the harness with PEFT, PEFT with the HF Trainer, and the paper's recipe",
        "",
        f"Measured in {setting['dtype']} where nothing else is said, with `make bench`, which writes this page; below "
        "each heading stands where and when. Models have random weights and the shapes of the originals, with full "
        f"vocabularies. Texts are {setting['texts']}. Ratios within a table are from one run. The seconds belong to "
        "the machine. "
        + (
            "Energy is in the tables' data, `results.json`."
            if setting["joules"]
            else "Energy was not measured: the machine has no counter for it."
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
        contenders = results["bloom-560m"].get(measurement)
        if contenders is None:
            continue
        package = contenders[contender]
        rival = [figures for figures in contenders.values() if isinstance(figures, dict)][other]
        key = "total" if "total" in package else "seconds"
        share = f"{package['limit'] / package[key]:.0%}" if "limit" in package else ""
        ratio = rival[key] / package[key] * package.get("documents", 1) / rival.get("documents", 1)
        lines.append(f"| {label} | {ratio:.1f}x | {floor:g}x | {share} |")
    if memory := results["bloom-560m"].get("train P = 10"):
        peft, package = (memory[name]["memory"] for name in ("PEFT + Trainer (prefix)", "this package, suffix"))
        lines.append(f"| memory in training above the model, of PEFT's | {package / peft:.0%} | 33% | |")
    overhead = results.get("overhead")
    if overhead:
        ratio = overhead["hf"]["seconds"] / overhead["this package"]["seconds"]
        lines.append(f"| time outside the model, against lm-eval's loop | {ratio:.1f}x | 2x | |")
    lines += [
        "",
        "The limit is the work that can not be avoided, divided by the rate of matrix products of these shapes with "
        "512 rows, measured in the same process. That work is every distinct token through the transformer body once, "
        "and the head where something is scored; in training, the forward pass and the input gradient of the prompt's "
        "positions.",
    ]
    for shape in [name for name in results if name not in ("setting", "measured", "overhead", "growth")]:
        lines += ["", f"## {shape}", "", *_measured(results, shape)]
        for name, contenders in results[shape].items():
            if name.startswith("train"):
                lines += ["", f"| {name} | {train.HEADER}", *train.rows(contenders)]
            else:
                lines += ["", f"| {name} | {score.HEADER}", *score.rows(contenders)]
    lines += [
        "",
        "hf + peft is lm-eval's `hf` with a PeftModel and batches of 8, its one-token cache on. With several prompts "
        "it is one run for each prompt, and a document counts once for each. This package is given four times as many "
        "documents, to fill its batches; the documents per second of hf + peft do not depend on their number. Training "
        "is 56 examples with one-token answers in batches of 8 for 20 epochs, extrapolated from a few steps. This "
        "package's time includes reading the texts and validating after every epoch. Memory is the peak above what the "
        "process had with the model loaded.",
    ]
    if overhead:
        lines += [
            "",
            "## Outside the model",
            "",
            *_measured(results, "overhead"),
            "",
            f"{setting['overhead_documents']:,} documents with seven choices and a model that computes next to "
            "nothing. What is left is tokenising, sorting, batching, normalizing logits and putting answers in order.",
            "",
            "| | seconds | within the tiny model |",
            "|---|---:|---:|",
            *(f"| {name} | {times['seconds']:.1f} | {times['inside']:.1f} |" for name, times in overhead.items()),
        ]
    return "\n".join(lines) + "\n"


def _measured(results: dict[str, Any], heading: str) -> list[str]:
    """Return where and when the sections under a heading were measured, in a line for each answer."""
    sections = {name: said for name, said in results["measured"].items() if name.partition(":")[0] == heading}
    if len(set(sections.values())) == 1:
        return [f"{next(iter(sections.values()))}."]
    return [f"- {name.partition(': ')[2]}: {said}" for name, said in sections.items()]


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw how seconds grow with documents, choices, prompt length and number of prompts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    growth = results["growth"]
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
    figure.suptitle(f"bloom-560m's shape, {results['measured']['growth']}", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
