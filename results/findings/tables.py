"""Write the tables that the docs read out, and show them there: python -m results.findings.tables

The results of each sweep lie in the folder of their base model, in one archive, `<model>/<name>.tar.xz`: one folder
for each run, as `lm-eval-spt sweep configs/findings/<model>/<name>.yaml` left them.
"""

from __future__ import annotations

import io
import itertools
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np

from lm_eval_spt.analysis.arms import Arm, target_languages, training_record
from lm_eval_spt.analysis.comparison import halves_of, mean_over
from lm_eval_spt.analysis.distances import distances
from lm_eval_spt.analysis.noise import Noise
from lm_eval_spt.analysis.results import EvaluationRun, Score, read_run, results_files
from lm_eval_spt.analysis.statistics import Estimate
from lm_eval_spt.cli import main
from lm_eval_spt.common.errors import UserError, show_user_errors_in_one_line
from lm_eval_spt.common.files import write
from lm_eval_spt.harness.samples import samples_path
from results.archive import unpack

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
PAGES = {"gemma-3-270m": "findings.md", "smollm2-135m-instruct": "findings.md", "mini": "findings-mini.md"}
"""Base models -> the page of `docs` that shows their tables."""
ARMS = {"frozen": "frozen", "prompt and model": "all", "model alone": "model", "LoRA and prompt": "lora"}
"""Arms as the tables name them -> the part of the runs' names."""
KINDS = ("none", "mlp", "residual", "xpe", "dual")
VARIANTS = {**{kind: kind for kind in KINDS[1:]}, "random start": "uniform", "before the text": "prefix"}
"""How prompts are made otherwise, as the tables name it -> the part of the runs' names."""
LENGTHS = (10, 1, 2, 5, 20, 50)  # the first is what the others are compared with

FROZEN = "frozen-8/own_documents-seed[0-3]"

Tables = dict[str, dict[str, str]]
"""The name of a table -> its arms, the first one being the reference: their names and the folders of their runs."""

SOURCES: Tables = {
    f"sources-{kind}": {
        f"{number} language{'s' * (number != 'one')}": f"sources/{number}-reparameterization_{kind}-seed*"
        for number in ("one", "three", "five")
    }
    for kind in ("none", "xpe")
}


def _on_a_task(task: str, baselines: dict[str, str]) -> Tables:
    """Return what was compared on another task: the arms and baselines as they answer, and calibrated."""
    calibrated, arms = f"{task}-calibrated", {**ARMS, "deep prefix": "deep"}
    return {
        f"{task}-8": {
            **{arm: f"{task}/{part}-seed*" for arm, part in arms.items()},
            **{name: f"{task}/{part}" for name, part in baselines.items()},
            "ensemble of four": f"{calibrated}/four",
        },
        f"{calibrated}-8": {
            "frozen, not calibrated": f"{task}/frozen-seed*",
            **{arm: f"{calibrated}/probability-{part}-seed*" for arm, part in arms.items()},
            **{name: f"{calibrated}/probability-{part}" for name, part in baselines.items()},
            "ensemble of four": f"{calibrated}/probability-four",
        },
        f"{task}-documents": {
            "8 of each class": f"{task}/frozen-seed*",
            "32 of each class": f"{task}-32/frozen-seed*",
            "8 of each class, calibrated": f"{calibrated}/probability-frozen-seed*",
            "32 of each class, calibrated": f"{task}-32/probability-frozen-seed*",
            "the same, by the label prior": f"{task}-32/label_prior-frozen-seed*",
        },
        f"{task}-32": {
            f"{arm}{', by the label prior' if prior else ''}": f"{task}-32/{prior}{ARMS[arm]}-seed*"
            for prior in ("", "label_prior-")
            for arm in ("frozen", "prompt and model", "LoRA and prompt")
        },
    }


MODELS: dict[str, Tables] = {
    "gemma-3-270m": {
        "baselines": {
            "no prompt": "baselines/none",
            "instruction": "baselines/instruction",
        },
        "arms-8": {
            "frozen": FROZEN,
            **{arm: f"arms-8/{part}-seed*" for arm, part in ARMS.items() if arm != "frozen"},
            "deep prefix": "arms-8/deep-seed*",
            "frozen, learned at 5e-3": "lr5-8/own-seed*",
        },
        "arms-32": {
            "frozen": "documents/frozen-shots32-seed*",
            **{arm: f"arms-32/{part}-seed*" for arm, part in ARMS.items() if arm != "frozen"},
        },
        "arms-32-calibrated": {
            "frozen": "documents/probability-frozen-shots32-seed*",
            **{arm: f"arms-32/probability-{part}-seed*" for arm, part in ARMS.items() if arm != "frozen"},
        },
        "arms-all": {
            "frozen": "documents/frozen-shots_none-seed*",
            "prompt and model": "arms-all/all-seed*",
            "frozen, calibrated": "documents/probability-frozen-shots_none-seed*",
            "prompt and model, calibrated": "arms-all/probability-all-seed*",
            "prompt and model, by the label prior": "arms-all/label_prior-all-seed*",
        },
        "float32-8": {
            "bfloat16": "frozen-8/own_documents-seed[01]",
            "float32": "float32-8/frozen-seed*",
        },
        "label_prior-8": {
            "frozen, not calibrated": "lr5-8/own-seed*",
            "frozen": "lr5-8/label_prior-own-seed*",
            "frozen, with label smoothing": "lr5-8/label_prior-smooth-seed*",
            "ensemble of four": "lr5-8/label_prior-own-four",
            "ensemble of four, with label smoothing": "lr5-8/label_prior-smooth-four",
            "no prompt": "calibrated-8/label_prior-none",
            "instruction": "calibrated-8/label_prior-instruction",
        },
        "label_prior-32": {
            "frozen, not calibrated": "documents/frozen-shots32-seed*",
            "frozen": "documents/label_prior-frozen-shots32-seed*",
            **{arm: f"arms-32/label_prior-{part}-seed*" for arm, part in ARMS.items() if arm != "frozen"},
            "ensemble of four": "documents/label_prior-frozen-shots32-four",
        },
        **{
            f"{average}-8": {
                "frozen, not calibrated": FROZEN,
                **{arm: f"calibrated-8/{average}-{part}-seed*" for arm, part in ARMS.items()},
                "deep prefix": f"calibrated-8/{average}-deep-seed*",
                "no prompt": f"calibrated-8/{average}-none",
                "instruction": f"calibrated-8/{average}-instruction",
                "ensemble of four": f"calibrated-8/{average}-four-seed*",
                "ensemble of four, same documents": f"calibrated-8/{average}-shared-four",
                "the same, learned at 5e-3": f"calibrated-8/{average}-lr5-four",
                "frozen, learned at 5e-3": f"lr5-8/{average}-own-seed*",
                "ensemble of four, learned at 5e-3": f"lr5-8/{average}-own-four",
            }
            for average in ("probability", "log_probability")
        },
        "languages-8": {
            "no prompt": "languages-8/none",
            "no prompt, calibrated": "languages-8/probability-none",
            "instruction": "languages-8/instruction",
            "instruction, calibrated": "languages-8/probability-instruction",
            "frozen": "languages-8/frozen-seed*",
            "frozen, calibrated": "languages-8/probability-frozen-seed*",
            "prompt and model": "languages-8/all-seed0",
            "prompt and model, calibrated": "languages-8/probability-all-seed0",
            "prompt and model, by the label prior": "languages-8/label_prior-all-seed0",
            "ensemble of four": "languages-8/four",
            "ensemble of four, calibrated": "languages-8/probability-four",
        },
        "own_documents-8": {
            "one prompt": "frozen-8/own_documents-seed*",
            "ensemble of two": "frozen-8/own_documents-two-seed*",
            "ensemble of four": "frozen-8/own_documents-four-seed*",
            "ensemble of eight": "frozen-8/own_documents-eight-seed*",
            "ensemble of sixteen": "frozen-8/own_documents-sixteen",
            "average of four": "frozen-8/own_documents-average",
            "one prompt, learned at 5e-3": "lr5-8/own-seed*",
            "ensemble of four, learned at 5e-3": "lr5-8/own-four",
            "one prompt, with label smoothing": "lr5-8/smooth-seed*",
            "ensemble of four, with label smoothing": "lr5-8/smooth-four",
        },
        "shared_documents-8": {
            "one prompt": "frozen-8/shared_documents-seed*",
            "ensemble of four": "frozen-8/shared_documents-four",
            "average of four": "frozen-8/shared_documents-average",
            "one prompt, learned at 5e-3": "lr5-8/lr5-seed*",
            "ensemble of four, learned at 5e-3": "lr5-8/lr5-four",
        },
        "documents": {
            "8 of each class": FROZEN,
            "32 of each class": "documents/frozen-shots32-seed*",
            "all 701": "documents/frozen-shots_none-seed*",
            "ensemble of four, 8 of each class": "frozen-8/own_documents-four-seed*",
            "ensemble of four, 32 of each class": "documents/frozen-shots32-four",
        },
        "documents-calibrated": {
            "8 of each class": "calibrated-8/probability-frozen-seed*",
            "32 of each class": "documents/probability-frozen-shots32-seed*",
            "all 701": "documents/probability-frozen-shots_none-seed*",
            "ensemble of four, 8 of each class": "calibrated-8/probability-four-seed*",
            "ensemble of four, 32 of each class": "documents/probability-frozen-shots32-four",
        },
        "lengths-8": {
            "P=16": "frozen-8/own_documents-seed[01]",
            **{f"P={length}": f"lengths-8/text-prompt_length{length}-seed*" for length in sorted(LENGTHS)},
        },
        "lengths-8-calibrated": {
            "P=16": "calibrated-8/probability-frozen-seed[01]",
            **{f"P={length}": f"lengths-8/probability-text-prompt_length{length}-seed*" for length in sorted(LENGTHS)},
        },
        "variants-8": {
            "plain vectors": "frozen-8/own_documents-seed[01]",
            "plain vectors, at 5e-3": "lr5-8/own-seed[01]",
            **{name: f"variants-8/{run}-seed*" for name, run in VARIANTS.items()},
        },
        "variants-8-calibrated": {
            "plain vectors": "calibrated-8/probability-frozen-seed[01]",
            "plain vectors, at 5e-3": "lr5-8/probability-own-seed[01]",
            **{name: f"variants-8/probability-{run}-seed*" for name, run in VARIANTS.items()},
        },
        "few_shot": {
            "no prompt": "baselines/none",
            "instruction": "baselines/instruction",
            "eight examples": "few_shot/few_shot-seed0",
            "eight examples, calibrated": "few_shot/probability-few_shot-seed0",
            "frozen": FROZEN,
        },
        "checkpoints-8": {
            "best epoch": FROZEN,
            "mean of the last five epochs": "checkpoints-8/checkpoints-seed*",
        },
        **SOURCES,
        **_on_a_task("nollysenti", {"no prompt": "none"}),
        **_on_a_task("nusax", {"no prompt": "none", "instruction": "instruction"}),
    },
    "smollm2-135m-instruct": {
        "frozen-8": {
            "frozen": "frozen-8/frozen-seed*",
            "no prompt": "frozen-8/none",
            "frozen, calibrated": "frozen-8/probability-frozen-seed*",
            "no prompt, calibrated": "frozen-8/probability-none",
            "ensemble of four": "frozen-8/four",
            "ensemble of four, calibrated": "frozen-8/probability-four",
        },
    },
    "mini": {
        **{
            f"arms-{size}": {arm: f"arms/{part}-shots{shots}-seed*" for arm, part in ARMS.items()}
            for size, shots in (("8", "8"), ("32", "32"), ("all", "_none"))
        },
        **{
            table: {f"P={length}": f"lengths/{start}-prompt_length{length}-seed*" for length in LENGTHS}
            for table, start in (("lengths", "text"), ("lengths-random", "uniform"))
        },
        "reparameterization": {kind: f"reparameterization/reparameterization_{kind}-seed*" for kind in KINDS},
        "methods": {
            "one prompt": "methods/suffix-shots_seed?-seed?",
            "ensemble of four": "methods/suffix-shots_seed?-ensemble",
            "average of four": "methods/suffix-shots_seed?-average",
        },
        **SOURCES,
    },
}


SOURCE, DISTANCE = "eng_Latn", "syntactic"
FIRST_LOOK = [
    "arb_Arab", "deu_Latn", "fin_Latn", "fra_Latn", "hin_Deva", "ind_Latn", "jpn_Jpan", "kor_Hang", "rus_Cyrl",
    "swh_Latn", "tha_Thai", "tur_Latn", "vie_Latn", "yor_Latn", "zho_Hans",
]  # fmt: skip
"""The languages of a first look at Gemma 3 270M, for whose mean a goal was set."""


def arm_of(name: str, results: Path, pattern: str) -> Arm:
    """Return an arm of the runs in the folders of `results` that match.

    Without samples, what documents add is only known to be less than the harness's standard errors, which is many times
    what they add to a difference: then it is left out, and intervals are over seeds alone.
    """
    runs: list[EvaluationRun] = []
    for folder in sorted(results.glob(pattern)):
        run = read_run(results_files(folder)[0])
        if not samples_path(run.path).is_file():
            scores = {code: Score(score.value, None) for code, score in run.scores["acc"].items()}
            run = replace(run, scores={"acc": scores})
        runs.append(run)
    return Arm(name, runs, [training_record(run) for run in runs])


def in_points(estimate: Estimate, note: str = "") -> str:
    """Return a difference with its 95% interval, if it has one, in points."""
    value, low, high = (100 * number for number in (estimate.value, estimate.low, estimate.high))
    return f"{value:.1f}" if np.isnan(low) else f"{value:.1f} [{low:.1f}, {high:.1f}]{note}"


def summary(results: Path, table: dict[str, str]) -> str:
    """Return a comparison as a table: scores of its arms, and differences from the reference.

    The last column is how much more the arm gains (or loses less) over the reference in the half of the target
    languages that is syntactically distant from the source than in the close half.
    """
    arms = [arm_of(name, results, pattern) for name, pattern in table.items()]
    targets, _ = target_languages(arms, ["acc"], SOURCE)
    _, close, distant = halves_of(distances(SOURCE, targets), targets)[DISTANCE]
    others = mean_over([True] * len(targets))
    means_of = {f"{len(targets)} others": others}
    if {*FIRST_LOOK} < {*targets}:
        means_of = {"first 15": mean_over([target in FIRST_LOOK for target in targets]), **means_of}
    noise = Noise(arms, [SOURCE, *targets], "acc")
    reference, *rest = (noise.measure(arm, np.stack([others, distant - close, *means_of.values()])) for arm in arms)
    header = ["arm", "English", *means_of, "from the reference", "distant minus close"]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for arm, measured in zip(arms, [reference, *rest], strict=True):
        compared = ["–", "–"]
        if measured is not reference:
            note = {"borrowed": " (one run)", "unknown": " (one run)"}.get(measured.spread, "")
            estimates = noise.estimate(measured, reference)
            compared = [in_points(estimates[index], note) for index in range(2)]
        means = [arm.scores("acc")[SOURCE].value, *measured.values.mean(axis=0)[2:]]
        rows.append([arm.name, *(f"{100 * mean:.1f}" for mean in means), *compared])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def write_tables(output: Path) -> None:
    """Write ``summary.md``, and a Markdown report for each comparison, into a folder for each model in `output`."""
    for model, tables in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder)
            for archive in (HERE / model).glob("*.tar.xz"):
                unpack(archive, results / archive.name.removesuffix(".tar.xz"))
            summaries = [f"## {table}\n\n{summary(results, arms)}" for table, arms in tables.items()]
            write(output / model / "summary.md", "\n".join(summaries).encode())
            for table, arms in tables.items():
                runs = [f"{arm}={run}" for arm, pattern in arms.items() for run in sorted(results.glob(pattern))]
                with redirect_stdout(io.StringIO()) as report:
                    if status := main(["transfer", *runs]):
                        sys.exit(status)
                write(output / model / f"{table}.md", report.getvalue().encode())


def show_tables(model: str, page: Path) -> None:
    """Put the tables of a model's ``summary.md`` into a page, each behind a comment with its name, ``<!-- arms-8 -->``.

    Raises:
        UserError: the page has no such comment for a table.
    """
    text = page.read_text(encoding="utf-8")
    for comparison in (HERE / model / "summary.md").read_text(encoding="utf-8").removeprefix("## ").split("\n## "):
        title, _, table = comparison.partition("\n\n")
        before, comment, after = text.partition(f"<!-- {title} -->\n")
        if not comment:
            raise UserError(f"{page} does not say where the table {title} belongs: expected a line <!-- {title} -->")
        rows = itertools.dropwhile(lambda line: line.startswith("|"), after.splitlines(keepends=True))
        text = before + comment + table.rstrip("\n") + "\n" + "".join(rows)
    write(page, text.encode())


if __name__ == "__main__":
    show_user_errors_in_one_line()
    write_tables(HERE)
    for of_model, page_name in PAGES.items():
        show_tables(of_model, DOCS / page_name)
