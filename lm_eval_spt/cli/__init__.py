"""The command line ``lm-eval-spt``: train a soft prompt, score it, use it, look into it, convert and share it.

    lm-eval-spt train --model mini --task mini_topics_eng_Latn --output prompts/eng.safetensors
    lm-eval-spt evaluate --prompts 'prompts/*.safetensors' --tasks mini_topics --output results
    lm-eval-spt classify prompts/eng.safetensors < texts.txt
    lm-eval-spt inspect prompts/eng.safetensors --base-model mini
    lm-eval-spt transfer "no prompt=results/none" "prompt=results/seed0" "prompt=results/seed1" --source eng_Latn

Each command is a module of this package with a function ``parser(prog)`` and a function ``run(arguments)``. What needs
torch is imported inside ``run``, so that ``--help`` is immediate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from lm_eval_spt.cli.command import execute

COMMANDS = {
    "train": "learn a soft prompt on a task",
    "evaluate": "score many prompts of one base model, sharing what they can",
    "classify": "apply a trained prompt to texts of your own",
    "inspect": "print a prompt's provenance, norms and nearest tokens",
    "convert": "turn a prompt file into a PEFT adapter folder, or back",
    "compose": "make several prompts of one base model into one",
    "sweep": "train and score a grid of prompts from a YAML file, on one machine or a cluster",
    "transfer": "analyse how scores carry over from the source language to others",
    "leaderboard": "rank results by their mean score in the target languages, on one HTML page",
    "export": "write results in the format of Every Eval Ever",
    "card": "write a prompt's model card",
    "push": "upload a prompt, its card and its results to the Hugging Face Hub",
    "demo": "learn prompts on English with the embedded model, score them in 21 languages, compare them",
}
"""The modules of this package that are commands, and what each does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; default: those of the process.

    Returns:
        Exit status: see :func:`lm_eval_spt.cli.command.execute`.

    Raises:
        SystemExit: from argparse, with status 2 for wrong usage and 0 for ``--help`` and ``--version``.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in COMMANDS:
        name, *arguments = argv
        return execute(lambda: import_module(f"lm_eval_spt.cli.{name}"), f"lm-eval-spt {name}", arguments)
    _parser().parse_args(argv)
    return 0


def _parser() -> argparse.ArgumentParser:
    """Return the parser of what is no command: it shows the help, or says what is wrong."""
    parser = argparse.ArgumentParser(
        prog="lm-eval-spt",
        description="Soft prompts for lm-evaluation-harness: train one, score it, use it, look into it, share it.",
        epilog="example: lm-eval-spt inspect prompts/eng.safetensors --base-model mini",
    )
    parser.add_argument("--version", action="version", version=f"lm_eval_spt {version('lm_eval_spt')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, purpose in COMMANDS.items():
        commands.add_parser(name, help=purpose)
    return parser
