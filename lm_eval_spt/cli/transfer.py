"""``lm-eval-spt transfer``: how scores carry over from the source language, as tables and figures."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from lm_eval_spt.cli.arguments import (
    add_languages,
    add_source_and_metric,
    languages,
    named_places,
    share,
    source_and_metric,
)


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Tables of scores per language, family and script, transfer gaps, correlations with six distances "
        "from the source language, close and distant halves, and differences between arms. Printed for reading in a "
        "terminal, as Markdown into a file or pipe. Results given under one name are one arm's runs; without a name "
        "those that differ in the training seed alone are.",
        epilog=f'example: {prog} "no prompt=results/none" "prompt=results/spt" --source eng_Latn',
    )
    parser.add_argument(
        "results", metavar="[NAME=]PATH", nargs="+", help="a results_*.json of the harness, or a folder that holds some"
    )
    add_source_and_metric(parser)
    add_languages(parser)
    parser.add_argument(
        "--reference", metavar="NAME", help="arm that the others are compared with (default: the first)"
    )
    parser.add_argument(
        "--random-languages",
        action="store_true",
        help="take the languages as drawn from others like them: intervals say how numbers carry over to these",
    )
    parser.add_argument(
        "--distances",
        choices=("lang2vec", "urielplus"),
        default="lang2vec",
        help="where distances come from (default: lang2vec)",
    )
    parser.add_argument(
        "--formula", choices=("angular", "cosine"), default="angular", help="of the distances (default: angular)"
    )
    parser.add_argument(
        "--majority", type=share, metavar="SHARE", help="show the score of the largest class, such as 0.25"
    )
    parser.add_argument("--all-languages", action="store_true", help="show more than 60 languages in the terminal, too")
    parser.add_argument("--latex", action="store_true", help="print LaTeX tables instead")
    parser.add_argument(
        "--methods", action="store_true", help="print a paragraph for a paper instead: what was done, in LaTeX"
    )
    parser.add_argument(
        "--output",
        metavar="PLACE",
        action="append",
        default=[],
        help="save a report: a file that ends in .md, .tex, .json, .csv or .parquet, or a folder for everything; "
        "can be given again",
    )
    parser.add_argument("--figures", metavar="FOLDER", help="save figures there, as PNG and PDF")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Analyse how scores carry over from the source language: print the tables, save what is asked for."""
    from lm_eval_spt.analysis import report
    from lm_eval_spt.analysis.arms import read_arms
    from lm_eval_spt.analysis.distances import distances
    from lm_eval_spt.analysis.transfer import analyse

    for place in arguments.output:
        report.check_ending(Path(place))
    arms, left_out = read_arms(named_places(arguments.results), languages(arguments))
    source, metric = source_and_metric(arguments, arms)
    scored = sorted({language for arm in arms for run in arm.runs for language in run.languages(metric)})
    analysis = analyse(
        arms,
        distances(source, scored, arguments.formula, arguments.distances),
        metric,
        arguments.reference,
        arguments.random_languages,
        left_out,
    )
    written = [path for place in arguments.output for path in report.save(analysis, Path(place), arguments.majority)]
    if arguments.figures:
        from lm_eval_spt.analysis.figures import draw

        written += draw(analysis, arms, Path(arguments.figures))
    if arguments.methods:
        from lm_eval_spt.analysis.methods import methods

        print(methods(analysis, arms), end="")
    elif arguments.latex:
        print(report.as_latex(analysis), end="")
    elif sys.stdout.isatty():
        from rich.console import Console

        report.show(analysis, Console(), arguments.majority, arguments.all_languages)
    else:
        print(report.as_markdown(analysis, arguments.majority), end="")
    for folder, count in Counter(path.parent for path in written).items():
        print(f"wrote {count} files to {folder}", file=sys.stderr)
