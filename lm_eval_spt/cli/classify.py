"""``lm-eval-spt classify``: a trained prompt is applied to the lines of the standard input."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from lm_eval_spt.common.errors import UserError

if TYPE_CHECKING:
    from lm_eval_spt.harness.classify import Classification


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Read texts, one in each line, and print for each the most likely choice and the probability of "
        "every choice. A text is shown to the model as the task that the prompt was trained on shows its documents.",
        epilog=f"example: {prog} prompts/mini_eng_suffix16.safetensors < texts.txt",
    )
    parser.add_argument(
        "prompt", metavar="PROMPT", help="a .safetensors file, a PEFT adapter folder or a Hub repository"
    )
    parser.add_argument(
        "--choices", metavar="A,B,...", help="what the answer can be (default: the choices of the prompt's task)"
    )
    parser.add_argument(
        "--format", choices=("tsv", "jsonl"), default="tsv", help="tab separated, or JSON lines (default: tsv)"
    )
    parser.add_argument("--task", metavar="TASK", help="whose wording to use (default: of the prompt's own task)")
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help="wording instead of the task's, such as '{{text}}\\nTopic:'; \\n is a line break",
    )
    parser.add_argument("--include-path", metavar="FOLDER", help="folder with further tasks")
    parser.add_argument("--model", metavar="NAME", help="base model (default: the one that the prompt names)")
    parser.add_argument("--gguf-file", metavar="NAME", help="GGUF file in the base model's folder or repository")
    parser.add_argument("--model-args", default="", help="its further arguments, such as peft=FOLDER, as in lm_eval")
    parser.add_argument("--batch-size", default="auto", help="as in lm_eval (default: auto)")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: the best that is here)")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Print the label and the probability of every choice for each line of the standard input."""
    lines = _lines()
    first = list(_up_to_text(lines))
    if not first:
        raise UserError("the standard input has no text: expected one in each line, such as < texts.txt")

    from lm_eval.utils import simple_parse_args_string

    from lm_eval_spt.harness.classify import Classifier
    from lm_eval_spt.harness.model_arguments import refuse_flags

    model_args = simple_parse_args_string(arguments.model_args)
    own = ("choices", "model", "task", "template", "include_path", "batch_size", "device")
    refuse_flags(model_args, {"prompt": "PROMPT", **{name: f"--{name.replace('_', '-')}" for name in own}})
    named = model_args.pop("pretrained", None)
    if arguments.gguf_file:
        model_args["gguf_file"] = arguments.gguf_file
    template = arguments.template.replace("\\n", "\n") if arguments.template else None
    classifier = Classifier(
        arguments.prompt,
        arguments.choices.split(",") if arguments.choices else None,
        model=arguments.model or named,
        task=arguments.task,
        template=template,
        include_path=arguments.include_path,
        batch_size=arguments.batch_size,
        device=arguments.device,
        **model_args,
    )
    results = classifier.stream(chain(first, lines))
    if arguments.format == "jsonl":
        _print_json(results)
    else:
        _print_table(results, classifier.choices)


def _lines() -> Iterator[str]:
    """Give the lines of the standard input as they come."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig")
    try:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"the standard input is not UTF-8 ({error.reason}): convert it first") from None


def _up_to_text(lines: Iterable[str]) -> Iterator[str]:
    """Give lines up to the first that is not blank; none where all are blank."""
    blank = []
    for line in lines:
        blank.append(line)
        if line.strip():
            yield from blank
            return


def _print_json(results: Iterable[Classification]) -> None:
    for result in results:
        line = {"label": result.label, "probabilities": result.probabilities}
        print(json.dumps(line, ensure_ascii=False))


def _print_table(results: Iterable[Classification], choices: Iterable[str]) -> None:
    table = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    for number, result in enumerate(results):
        if not number:  # after the first answer: what is refused leaves no table behind
            table.writerow(["label", *choices])
        table.writerow([result.label, *(f"{share:.6f}" for share in result.probabilities.values())])
