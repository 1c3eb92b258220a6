"""``lm-eval-spt compose``: several prompts of one base model become one."""

from __future__ import annotations

import argparse
from pathlib import Path

from lm_eval_spt.cli.arguments import finite
from lm_eval_spt.common.errors import UserError


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Make several prompts of one base model and one placement into one: all vectors one after the "
        "other (concat), the mean of prompts of one length (mean), or something between two of them (interpolate). "
        "The result's metadata names the parts and their digests.",
        epilog=f"example: {prog} eng.safetensors arb.safetensors --mode mean --output mean.safetensors",
    )
    parser.add_argument(
        "prompts", metavar="PROMPT", nargs="+", help="prompt files, PEFT adapter folders or Hub repositories"
    )
    parser.add_argument("--mode", choices=("concat", "mean", "interpolate"), default="concat", help="(default: concat)")
    parser.add_argument(
        "--weight",
        type=finite,
        metavar="W",
        help="of the second prompt with interpolate: (1-W)*A + W*B (default: 0.5)",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--force", action="store_true", help="overwrite an output that exists")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Make several prompts of one base model into one."""
    from lm_eval_spt.prompt.compose import compose
    from lm_eval_spt.prompt.soft_prompt import SoftPrompt, size_in_words

    output = Path(arguments.output)
    if output.suffix != ".safetensors":
        raise UserError(f"--output is {arguments.output!r}: expected a file name that ends in .safetensors")
    prompt = compose([SoftPrompt.from_pretrained(name) for name in arguments.prompts], arguments.mode, arguments.weight)
    if output.exists() and not arguments.force:
        raise UserError(f"{output} already exists: choose another name, or give --force to overwrite it")
    prompt.save(output)
    print(f"{output}: {prompt.length} virtual tokens, {size_in_words(prompt.size)}, placement {prompt.placement}")
