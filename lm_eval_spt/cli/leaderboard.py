"""``lm-eval-spt leaderboard``: results ranked by their mean score in the target languages, on one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from lm_eval_spt.cli.arguments import named_places, print_notices


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
    parser.add_argument("--source", metavar="LANGUAGE", default="eng_Latn", help="source language (default: eng_Latn)")
    parser.add_argument("--metric", default="acc", help="metric to rank by, such as macro_f1 (default: acc)")
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

    arms, left_out = read_arms(named_places(arguments.results))
    board = rank(arms, arguments.source, arguments.metric, left_out)
    write(Path(arguments.output), page(board).encode())
    print_notices(board.notices)
    print("\n".join(ranking_lines(board)))
    print(f"\n{arguments.output} shows it language by language")
