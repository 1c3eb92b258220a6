"""``lm-eval-spt export``: results in the format of Every Eval Ever, a public collection of evaluations."""

from __future__ import annotations

import argparse
from pathlib import Path

from lm_eval_spt.cli.arguments import add_languages, languages, print_notices


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write results in the format of Every Eval Ever, a public collection of evaluations: a record for "
        "each run, whose model is base model and prompt, and its samples where --log_samples wrote some.",
        epilog=f"example: {prog} results --organization my-lab",
    )
    parser.add_argument(
        "results", metavar="PATH", nargs="+", help="a results_*.json of the harness, or a folder that holds some"
    )
    parser.add_argument("--output", metavar="FOLDER", default=".", help="where data/ is put (default: here)")
    parser.add_argument(
        "--organization", metavar="NAME", default="unknown", help="who ran the evaluation; the collection wants to know"
    )
    parser.add_argument(
        "--relationship",
        choices=("first_party", "third_party", "collaborative", "other"),
        default="third_party",
        help="what the evaluator is to the model's developer (default: third_party)",
    )
    add_languages(parser)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Write results in the format of Every Eval Ever: print the files."""
    from lm_eval_spt.analysis.results import nothing_to, read_all
    from lm_eval_spt.hub.every_eval_ever import export

    runs, left_out = read_all(map(Path, arguments.results), languages(arguments))
    if not runs:
        raise nothing_to("export", left_out)
    print_notices(left_out)
    for run in runs:
        for path in export(run, Path(arguments.output), arguments.organization, arguments.relationship):
            print(path)
