"""``lm-eval-spt inspect``: where a prompt comes from, the norms of its vectors, their nearest tokens."""

from __future__ import annotations

import argparse
import json

from lm_eval_spt.cli.arguments import positive
from lm_eval_spt.common.errors import UserError


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Print where a prompt comes from, the norms of its vectors and, given the base model, the "
        "vocabulary tokens nearest to every vector by cosine similarity.",
        epilog=f"example: {prog} prompts/eng.safetensors --base-model mini --neighbours 3",
    )
    parser.add_argument("prompt", metavar="FILE", help="a .safetensors file, a PEFT adapter folder or a Hub repository")
    parser.add_argument(
        "--base-model",
        metavar="NAME",
        help="a Hub id, a folder, a .gguf file, or 'mini'; without it no tokens are shown",
    )
    parser.add_argument("--gguf-file", metavar="NAME", help="GGUF file in the folder or repository --base-model")
    parser.add_argument("--neighbours", type=positive, default=5, metavar="N", help="tokens per vector (default: 5)")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the code that the base model brings along, if it does"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Print where a prompt comes from, the norms of its vectors and, given the base model, their nearest tokens."""
    from lm_eval_spt.inference.base_model import load_embedding
    from lm_eval_spt.prompt.inspection import as_text, nearest_vocabulary, report
    from lm_eval_spt.prompt.soft_prompt import SoftPrompt

    if arguments.gguf_file and not arguments.base_model:
        raise UserError("--gguf-file was given without a base model: add --base-model <folder or Hub id>")
    prompt = SoftPrompt.from_pretrained(arguments.prompt)
    facts = report(prompt)
    if arguments.base_model:
        embedding, tokenizer = load_embedding(
            arguments.base_model, arguments.gguf_file, trust_remote_code=arguments.trust_remote_code
        )
        facts |= nearest_vocabulary(prompt, embedding, tokenizer, arguments.base_model, arguments.neighbours)
    print(json.dumps(facts, indent=2) if arguments.json else "\n".join(as_text(facts)))
