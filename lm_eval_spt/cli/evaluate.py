"""``lm-eval-spt evaluate``: many prompts of one base model are scored on harness tasks."""

from __future__ import annotations

import argparse

from lm_eval_spt.cli.harness_options import add_harness_options


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Score many prompts of one base model on harness tasks, as lm_eval --model spt would one after the "
        "other: the model is loaded once, and a text is read once for all suffix prompts. Each prompt gets a results "
        "file of its own; what has one already is left out, so that an interrupted evaluation goes on.",
        epilog=f"example: {prog} --prompts 'prompts/*.safetensors' --tasks mini_topics --output results",
    )
    parser.add_argument(
        "--prompts", nargs="+", required=True, metavar="FILE", help="prompt files; patterns will do; A+B is an ensemble"
    )
    parser.add_argument(
        "--ensemble",
        choices=("probability", "log_probability"),
        help="what an ensemble averages (default: probability); with this flag a pattern is an ensemble, too",
    )
    parser.add_argument("--tasks", required=True, metavar="TASKS", help="tasks and groups, comma separated")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the results go")
    parser.add_argument("--model-args", default="", help="further arguments, as in lm_eval")
    parser.add_argument("--gguf-file", metavar="NAME", help="GGUF file in the base model's folder or repository")
    parser.add_argument("--include-path", metavar="FOLDER", help="folder with further tasks")
    parser.add_argument(
        "--log-samples",
        action="store_true",
        help="also write the harness's own samples, with all texts; a compact form is always written",
    )
    parser.add_argument("--batch-size", default="auto", help="as in lm_eval (default: auto)")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: the best that is here)")
    add_harness_options(parser)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Score many prompts of one base model on harness tasks, sharing what they can."""
    from lm_eval_spt.harness.evaluate import evaluate_prompts

    options = {key: value for key, value in vars(arguments).items() if key not in ("prompts", "tasks", "gguf_file")}
    if arguments.gguf_file:
        options["model_args"] = ",".join(filter(None, [arguments.model_args, f"gguf_file={arguments.gguf_file}"]))
    evaluate_prompts(arguments.prompts, arguments.tasks.split(","), **options)
