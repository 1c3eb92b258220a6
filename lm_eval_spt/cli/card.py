"""``lm-eval-spt card``: a prompt's model card."""

from __future__ import annotations

import argparse
from pathlib import Path

from lm_eval_spt.cli.arguments import RESULTS, add_languages, languages, named_places, print_notices


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write the model card of a prompt: what it is, how it was trained, how to use it and, with "
        "results, a table of its scores. A card that is there keeps what was written around that.",
        epilog=f'example: {prog} prompts/eng.safetensors --results results/eng "no prompt=results/none"',
    )
    parser.add_argument("prompt", metavar="FILE", help="a .safetensors file or a PEFT adapter folder")
    parser.add_argument("--results", metavar="[NAME=]PATH", nargs="+", default=[], help=RESULTS)
    add_languages(parser)
    parser.add_argument("--repository", metavar="OWNER/NAME", help="where it will be on the Hub, for the card's text")
    parser.add_argument("--output", metavar="CARD", help="default: FILE with the ending .md, or README.md in a folder")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Write a prompt's model card, or write it anew around what people added to it."""
    from lm_eval_spt.analysis.arms import read_arms
    from lm_eval_spt.common.files import write
    from lm_eval_spt.hub.model_card import CARD, model_card, read_card
    from lm_eval_spt.prompt.soft_prompt import SoftPrompt

    prompt, place = SoftPrompt.load(arguments.prompt), Path(arguments.prompt)
    places = named_places(arguments.results)
    arms, left_out = read_arms(places, languages(arguments)) if places else ([], [])
    output = Path(arguments.output or (place / CARD if place.is_dir() else place.with_suffix(".md")))
    existing = read_card(output) if output.exists() else ""
    write(output, model_card(prompt, arguments.repository or arguments.prompt, arms, existing).encode())
    print_notices(left_out)
    print(output)
