"""``lm-eval-spt leaderboard``: results ranked by their mean score in the target languages, on one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from lm_eval_spt.cli.arguments import (
    add_languages,
    add_source_and_metric,
    languages,
    named_places,
    print_notices,
    source_and_metric,
)


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Rank arms by their mean score in the target languages, with the ranks that chance leaves open, "
        "and write one HTML page that shows every language. Results given under one name are one arm's runs; without a "
        "name those that differ in the training seed alone are. What can not be compared is left out, with the reason.",
        epilog=f'example: {prog} "no prompt=results/none" "prompt=results/spt" --output page.html',
    )
    parser.add_argument(
        "results", metavar="[NAME=]PATH", nargs="+", help="a results_*.json of the harness, or a folder that holds some"
    )
    add_source_and_metric(parser)
    add_languages(parser)
    parser.add_argument(
        "--output", metavar="FILE", default="leaderboard.html", help="the page (default: leaderboard.html)"
    )
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Rank arms by their mean score in the target languages: print the ranking, write the page with all details."""
    from lm_eval_spt.analysis.arms import read_arms
    from lm_eval_spt.analysis.html.page import page
    from lm_eval_spt.analysis.leaderboard import rank, ranking_lines
    from lm_eval_spt.common.files import write

    arms, left_out = read_arms(named_places(arguments.results), languages(arguments))
    board = rank(arms, *source_and_metric(arguments, arms), left_out)
    write(Path(arguments.output), page(board).encode())
    print_notices(board.notices)
    print("\n".join(ranking_lines(board)))
    print(f"\n{arguments.output} shows it language by language")
