"""``lm-eval-spt push``: a prompt, its card and its results go to the Hugging Face Hub."""

from __future__ import annotations

import argparse

from lm_eval_spt.cli.arguments import RESULTS, add_languages, languages, named_places, print_notices


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Upload a prompt, its model card and its results to a repository on the Hugging Face Hub, which is "
        "created where there is none; prompt=OWNER/NAME then loads it. A prefix prompt becomes a PEFT adapter there. "
        "Log in first: hf auth login.",
        epilog=f"example: {prog} prompts/eng.safetensors me/bloom-topics-eng --results results/eng",
    )
    parser.add_argument("prompt", metavar="FILE", help="a .safetensors file or a PEFT adapter folder")
    parser.add_argument("repository", metavar="OWNER/NAME", help="the repository")
    parser.add_argument("--results", metavar="[NAME=]PATH", nargs="+", default=[], help=RESULTS)
    add_languages(parser)
    parser.add_argument("--private", action="store_true", help="a repository that is created is private")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Upload a prompt with its card and results to the Hub."""
    from lm_eval_spt.analysis.arms import read_arms
    from lm_eval_spt.hub.push import push
    from lm_eval_spt.prompt.soft_prompt import SoftPrompt

    prompt = SoftPrompt.load(arguments.prompt)
    places = named_places(arguments.results)
    arms, left_out = read_arms(places, languages(arguments)) if places else ([], [])
    print_notices(left_out)
    print(push(prompt, arguments.repository, arms, arguments.private))
    print(f"lm_eval --model spt --model_args prompt={arguments.repository} loads it")
