"""Write the tables that the docs read out: python -m results.findings.tables

The results of each sweep lie in the folder of their base model, in one archive, `<model>/<name>.json.gz`: one folder
for each run, as `lm-eval-spt sweep configs/findings/<model>/<name>.yaml` left them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import t

from lm_eval_spt.analysis.distances import distances
from lm_eval_spt.analysis.results import read_run, results_files
from lm_eval_spt.analysis.statistics import halving_threshold
from lm_eval_spt.common.files import write
from results.archive import unpack

HERE = Path(__file__).parent
ARMS = ("frozen", "all", "model", "lora")
KINDS = ("none", "mlp", "residual", "xpe", "dual")
LENGTHS = (10, 1, 2, 5, 20, 50)  # the first is what the others are compared with

Tables = dict[str, dict[str, str]]
"""The name of a table -> its arms, the first one being the reference: their names and the folders of their runs."""

MODELS: dict[str, Tables] = {
    "gemma-3-270m": {
        "baselines": {
            "no prompt": "baselines/none",
            "instruction": "baselines/instruction",
        },
        "arms-8": {arm: f"arms-8/{arm}-seed*" for arm in ("frozen", "all")},
    },
    "mini": {
        **{
            f"arms-{size}": {arm: f"arms/{arm}-shots{shots}-seed*" for arm in ARMS}
            for size, shots in (("8", "8"), ("32", "32"), ("all", "_none"))
        },
        **{
            table: {f"P={length}": f"lengths/{start}-prompt_length{length}-seed*" for length in LENGTHS}
            for table, start in (("lengths", "text"), ("lengths-random", "uniform"))
        },
        "reparameterization": {kind: f"reparameterization/reparameterization_{kind}-seed*" for kind in KINDS},
    },
}


SOURCE, DISTANCE = "eng_Latn", "syntactic"

Seeds = dict[str, dict[str, float]]
"""Accuracies in percent by language, seed by seed."""


def by_seed(results: Path, pattern: str) -> Seeds:
    """Return the scores of the runs in the folders of `results` that match."""
    return {
        folder.name.rpartition("seed")[2]: {
            language: 100 * score.value for language, score in read_run(results_files(folder)[0]).scores["acc"].items()
        }
        for folder in sorted(results.glob(pattern))
    }


def over_seeds(values: list[float]) -> str:
    """Return a mean with its 95% interval from Student's t, where there are values and seeds for one."""
    if len(values) < 2:
        return f"{values[0]:.1f} (one seed)" if values else "–"
    half = t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):.1f} [{mean(values) - half:.1f}, {mean(values) + half:.1f}]"


def gains(runs: Seeds, reference: Seeds, languages: list[str]) -> list[float]:
    """Return how much better runs are than the reference with the same seed, in the mean over languages, in points."""
    return [mean(runs[seed][code] - reference[seed][code] for code in languages) for seed in runs if seed in reference]


def summary(results: Path, tables: Tables) -> str:
    """Return a table of all arms of a model: scores, and differences from the reference seed by seed.

    The last column is how much more the arm gains (or loses less) over the reference in the half of the target
    languages that is syntactically distant from the source than in the close half.
    """
    lines = []
    for table, arms in tables.items():
        (first, reference), *rest = [(arm, by_seed(results, pattern)) for arm, pattern in arms.items()]
        targets = sorted({code for scores in reference.values() for code in scores} - {SOURCE})
        lines = lines or [
            f"| comparison | arm | English | {len(targets)} others | others, from the reference "
            "| distant minus close |\n|---|---|---:|---:|---:|---:|",
        ]
        far = distances(SOURCE, targets)
        threshold = halving_threshold(far.vector(DISTANCE, targets))
        close, distant = (
            [code for code in targets if (far.values[DISTANCE][code] <= threshold) == near] for near in (True, False)
        )
        for arm, runs in [(first, reference), *rest]:
            source, others = (
                mean(mean(scores[code] for code in codes) for scores in runs.values()) for codes in ([SOURCE], targets)
            )
            compared = "– | –"
            if arm != first:
                of_halves = (gains(runs, reference, half) for half in (distant, close))
                uneven = [far_off - near for far_off, near in zip(*of_halves, strict=True)]
                compared = f"{over_seeds(gains(runs, reference, targets))} | {over_seeds(uneven)}"
            lines.append(f"| {table} | {arm} | {source:.1f} | {others:.1f} | {compared} |")
    return "\n".join(lines) + "\n"


def write_tables(output: Path) -> None:
    """Write ``summary.md``, and a Markdown report for each comparison, into a folder for each model in `output`."""
    for model, tables in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder)
            for archive in (HERE / model).glob("*.json.gz"):
                unpack(archive, results / archive.name.removesuffix(".json.gz"))
            write(output / model / "summary.md", summary(results, tables).encode())
            for table, arms in tables.items():
                runs = [f"{arm}={run}" for arm, pattern in arms.items() for run in sorted(results.glob(pattern))]
                command = [sys.executable, "-m", "lm_eval_spt.cli", "transfer", *runs, "--output"]
                subprocess.run([*command, output / model / f"{table}.md"], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    write_tables(HERE)
