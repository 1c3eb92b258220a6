"""``lm-eval-spt convert``: a prompt file becomes a PEFT adapter folder, or a folder a file."""

from __future__ import annotations

import argparse
from pathlib import Path

from lm_eval_spt.common.errors import UserError


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Turn a prompt file (prefix placement) into a folder that PEFT loads, or a PEFT prompt tuning "
        "folder into a prompt file. The source decides which.",
        epilog=f"example: {prog} prompts/eng.safetensors peft/eng",
    )
    parser.add_argument("source", metavar="SOURCE", help="a .safetensors file, or a PEFT adapter folder")
    parser.add_argument("target", metavar="TARGET", help="a folder for a file, a .safetensors file for a folder")
    parser.add_argument(
        "--task-type",
        choices=("CAUSAL_LM", "SEQ_2_SEQ_LM"),
        help="of the base model, as PEFT calls it (default: what the prompt or its base model says, else CAUSAL_LM)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite a target that exists")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Turn a prompt file into a PEFT folder with a model card, or a PEFT folder into a prompt file."""
    from lm_eval_spt.common.files import write
    from lm_eval_spt.hub.model_card import CARD, model_card
    from lm_eval_spt.prompt.soft_prompt import SoftPrompt, size_in_words

    source, target = Path(arguments.source), Path(arguments.target)
    to_file = source.is_dir()
    if to_file != (target.suffix == ".safetensors"):
        expected = "a PEFT folder becomes a .safetensors file" if to_file else "a prompt file becomes a PEFT folder"
        raise UserError(f"can not convert {source} to {target}: {expected}, so name such a target")
    if to_file and arguments.task_type:
        raise UserError(
            "--task-type is given, which a prompt file does not hold: it is for a PEFT folder that is written"
        )
    prompt = SoftPrompt.load(source)
    if target.exists() and not arguments.force:
        raise UserError(f"{target} already exists: choose another name, or give --force to overwrite it")
    if to_file:
        prompt.save(target)
    else:
        card = target / CARD
        written_by_hand = card.exists()
        prompt.to_peft(target, arguments.task_type)
        if not written_by_hand:
            write(card, model_card(prompt, str(target)).encode())
    print(f"{target}: {prompt.length} virtual tokens, {size_in_words(prompt.size)}, placement {prompt.placement}")
