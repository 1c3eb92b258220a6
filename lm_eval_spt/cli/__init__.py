"""The command line ``lm-eval-spt``: train a soft prompt, look into one, convert it to and from PEFT, make several into
one, compare results, share them.

    lm-eval-spt train --model mini --task mini_topics_eng_Latn --output prompts/eng.safetensors
    lm-eval-spt inspect prompts/eng.safetensors --base-model mini
    lm-eval-spt convert prompts/eng.safetensors peft/eng
    lm-eval-spt compose prompts/eng.safetensors prompts/arb.safetensors --mode mean --output prompts/both.safetensors
    lm-eval-spt sweep configs/paper/xglm-564m.yaml --dry-run
    lm-eval-spt transfer "no prompt=results/none" "prompt=results/seed0" "prompt=results/seed1" --source eng_Latn
    lm-eval-spt leaderboard "no prompt=results/none" "prompt=results/seed0" --output leaderboard.html
    lm-eval-spt card prompts/eng.safetensors --results results/seed0
    lm-eval-spt push prompts/eng.safetensors owner/name --results results/seed0

What needs torch is imported inside the commands, so that ``--help`` is immediate.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_spt.cli.harness_options import add_harness_options
from lm_eval_spt.common.errors import UserError

if TYPE_CHECKING:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; default: those of the process.

    Returns:
        Exit status: 0, 1 after a user's mistake (one line on stderr), 130 after Ctrl-C, 141 when the output's reader is
        gone.

    Raises:
        SystemExit: from argparse, with status 2 for wrong usage and 0 for ``--help``.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # vocabulary tokens on a terminal that is not UTF-8
    try:
        if argv[:1] == ["train"]:  # the trainer has its own parser, with its own --help
            from lm_eval_spt.train import main as train

            return train(argv[1:])
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)
        sys.stdout.flush()
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more at exit: that must not meet the closed pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def inspect(arguments: argparse.Namespace) -> None:
    """Print where a prompt comes from, the norms of its vectors and, given the base model, their nearest tokens."""
    from lm_eval_spt.inference.base_model import load_embedding
    from lm_eval_spt.prompt.inspection import as_text, nearest_vocabulary, report
    from lm_eval_spt.prompt.soft_prompt import SoftPrompt

    prompt = SoftPrompt.from_pretrained(arguments.prompt)
    content = report(prompt)
    if arguments.base_model:
        embedding, tokenizer = load_embedding(arguments.base_model)
        content |= nearest_vocabulary(prompt, embedding, tokenizer, arguments.base_model, arguments.neighbours)
    print(json.dumps(content, indent=2) if arguments.json else "\n".join(as_text(content)))


def convert(arguments: argparse.Namespace) -> None:
    """Turn a prompt file into a PEFT folder, or a PEFT folder into a prompt file."""
    from lm_eval_spt.prompt.soft_prompt import SoftPrompt

    source, target = Path(arguments.source), Path(arguments.target)
    to_file = source.is_dir()
    if to_file != (target.suffix == ".safetensors"):
        expected = "a PEFT folder becomes a .safetensors file" if to_file else "a prompt file becomes a PEFT folder"
        raise UserError(f"can not convert {source} to {target}: {expected}, so name such a target")
    prompt = SoftPrompt.load(source)
    if target.exists() and not arguments.force:
        raise UserError(f"{target} already exists: choose another name, or give --force to overwrite it")
    if to_file:
        prompt.save(target)
    else:
        prompt.to_peft(target)
    print(f"{target}: {prompt.length} virtual tokens of size {prompt.hidden_size}, placement {prompt.placement}")


def compose(arguments: argparse.Namespace) -> None:
    """Make several prompts of one base model into one."""
    from lm_eval_spt.prompt.compose import compose
    from lm_eval_spt.prompt.soft_prompt import SoftPrompt

    output = Path(arguments.output)
    if output.suffix != ".safetensors":
        raise UserError(f"--output is {arguments.output!r}: expected a file name that ends in .safetensors")
    prompt = compose([SoftPrompt.from_pretrained(name) for name in arguments.prompts], arguments.mode, arguments.weight)
    if output.exists() and not arguments.force:
        raise UserError(f"{output} already exists: choose another name, or give --force to overwrite it")
    prompt.save(output)
    print(f"{output}: {prompt.length} virtual tokens of size {prompt.hidden_size}, placement {prompt.placement}")


def evaluate(arguments: argparse.Namespace) -> None:
    """Score many prompts of one base model on harness tasks, sharing what they can."""
    from lm_eval_spt.harness.evaluate import evaluate_prompts

    options = {key: value for key, value in vars(arguments).items() if key not in ("run", "prompts", "tasks")}
    evaluate_prompts(arguments.prompts, arguments.tasks.split(","), **options)


def sweep(arguments: argparse.Namespace) -> None:
    """Train and score all prompts that a sweep file asks for, or what is left of them."""
    from lm_eval_spt.sweep.command import sweep

    sweep(**{key: value for key, value in vars(arguments).items() if key != "run"})


def transfer(arguments: argparse.Namespace) -> None:
    """Analyse how scores carry over from the source language: print the tables, save what is asked for."""
    from lm_eval_spt.analysis import report
    from lm_eval_spt.analysis.arms import read_arms
    from lm_eval_spt.analysis.distances import distances
    from lm_eval_spt.analysis.transfer import analyse

    arms, left_out = read_arms(_places(arguments.results))
    languages = sorted({language for arm in arms for run in arm.runs for language in run.languages(arguments.metric)})
    analysis = analyse(
        arms,
        distances(arguments.source, languages, arguments.formula, arguments.distances),
        arguments.metric,
        arguments.reference,
        arguments.bootstrap == "documents",
        left_out,
    )
    written = [path for place in arguments.output for path in report.save(analysis, Path(place), arguments.majority)]
    if arguments.figures:
        from lm_eval_spt.analysis.figures import draw

        written += draw(analysis, arms, Path(arguments.figures))
    if arguments.latex:
        print(report.as_latex(analysis), end="")
    elif sys.stdout.isatty():
        from rich.console import Console

        report.show(analysis, Console(), arguments.majority, arguments.languages)
    else:
        print(report.as_markdown(analysis, arguments.majority), end="")
    for folder, count in Counter(path.parent for path in written).items():
        print(f"wrote {count} files to {folder}", file=sys.stderr)


def leaderboard(arguments: argparse.Namespace) -> None:
    """Rank arms by their mean score in the target languages: print the ranking, write the page with all details."""
    from lm_eval_spt.analysis.arms import read_arms
    from lm_eval_spt.analysis.html.page import page
    from lm_eval_spt.analysis.leaderboard import rank, ranking_lines
    from lm_eval_spt.common.files import write

    arms, left_out = read_arms(_places(arguments.results))
    board = rank(arms, arguments.source, arguments.metric, left_out)
    write(Path(arguments.output), page(board).encode())
    _print_notices(board.notices)
    print("\n".join(ranking_lines(board)))
    print(f"\n{arguments.output} shows it language by language")


def card(arguments: argparse.Namespace) -> None:
    """Write a prompt's model card, or write it anew around what people added to it."""
    from lm_eval_spt.analysis.arms import read_arms
    from lm_eval_spt.common.files import write
    from lm_eval_spt.hub.model_card import CARD, model_card, read_card
    from lm_eval_spt.prompt.soft_prompt import SoftPrompt

    prompt, place = SoftPrompt.load(arguments.prompt), Path(arguments.prompt)
    arms, left_out = read_arms(_places(arguments.results)) if arguments.results else ([], [])
    output = Path(arguments.output or (place / CARD if place.is_dir() else place.with_suffix(".md")))
    existing = read_card(output) if output.exists() else ""
    write(output, model_card(prompt, arguments.repository or arguments.prompt, arms, existing).encode())
    _print_notices(left_out)
    print(output)


def push(arguments: argparse.Namespace) -> None:
    """Upload a prompt with its card and results to the Hub."""
    from lm_eval_spt.analysis.arms import read_arms
    from lm_eval_spt.hub.push import push
    from lm_eval_spt.prompt.soft_prompt import SoftPrompt

    prompt = SoftPrompt.load(arguments.prompt)
    arms, left_out = read_arms(_places(arguments.results)) if arguments.results else ([], [])
    _print_notices(left_out)
    print(push(prompt, arguments.repository, arms, arguments.private))
    print(f"lm_eval --model spt --model_args prompt={arguments.repository} loads it")


def _places(given: Iterable[str]) -> list[tuple[str | None, Path]]:
    """`[NAME=]PATH` arguments as name, None without one, and path."""
    places = []
    for text in given:
        name, _, place = ("", "", text) if Path(text).exists() else text.rpartition("=")
        places.append((name or None, Path(place)))
    return places


def _print_notices(notices: Sequence[str]) -> None:
    for notice in notices:
        print(notice if notice.isprintable() else repr(notice), file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lm-eval-spt",
        description="Soft prompts for lm-evaluation-harness: train one, look into it, convert it to and from PEFT.",
        epilog="example: lm-eval-spt inspect prompts/eng.safetensors --base-model mini",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    commands.add_parser("train", help="learn a soft prompt on a task (see: lm-eval-spt train --help)")

    command = commands.add_parser(
        "inspect",
        help="print a prompt's provenance, norms and nearest tokens",
        description="Print where a prompt comes from, the norms of its vectors and, given the base model, the "
        "vocabulary tokens nearest to every vector by cosine similarity.",
        epilog="example: lm-eval-spt inspect prompts/eng.safetensors --base-model mini --neighbours 3",
    )
    command.add_argument(
        "prompt", metavar="FILE", help="a .safetensors file, a PEFT adapter folder or a Hub repository"
    )
    command.add_argument(
        "--base-model", metavar="NAME", help="a Hub id, a folder, or 'mini'; without it no tokens are shown"
    )
    command.add_argument("--neighbours", type=_positive, default=5, metavar="N", help="tokens per vector (default: 5)")
    command.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    command.set_defaults(run=inspect)

    command = commands.add_parser(
        "convert",
        help="turn a prompt file into a PEFT adapter folder, or back",
        description="Turn a prompt file (prefix placement) into a folder that PEFT loads, or a PEFT prompt tuning "
        "folder into a prompt file. The source decides which.",
        epilog="example: lm-eval-spt convert prompts/eng.safetensors peft/eng",
    )
    command.add_argument("source", metavar="SOURCE", help="a .safetensors file, or a PEFT adapter folder")
    command.add_argument("target", metavar="TARGET", help="a folder for a file, a .safetensors file for a folder")
    command.add_argument("--force", action="store_true", help="overwrite a target that exists")
    command.set_defaults(run=convert)

    command = commands.add_parser(
        "compose",
        help="make several prompts of one base model into one",
        description="Make several prompts of one base model and one placement into one: all vectors one after the "
        "other (concat), the mean of prompts of one length (mean), or something between two of them (interpolate). "
        "The result's metadata names the parts and their digests.",
        epilog="example: lm-eval-spt compose eng.safetensors arb.safetensors --mode mean --output mean.safetensors",
    )
    command.add_argument(
        "prompts", metavar="PROMPT", nargs="+", help="prompt files, PEFT adapter folders or Hub repositories"
    )
    command.add_argument(
        "--mode", choices=("concat", "mean", "interpolate"), default="concat", help="(default: concat)"
    )
    command.add_argument(
        "--weight",
        type=_finite,
        metavar="W",
        help="of the second prompt with interpolate: (1-W)*A + W*B (default: 0.5)",
    )
    command.add_argument("--output", required=True, metavar="FILE", help="the .safetensors file to write")
    command.add_argument("--force", action="store_true", help="overwrite an output that exists")
    command.set_defaults(run=compose)

    command = commands.add_parser(
        "evaluate",
        help="score many prompts of one base model, sharing what they can",
        description="Score many prompts of one base model on harness tasks, as lm_eval --model spt would one after the "
        "other: the model is loaded once, and a text is read once for all suffix prompts. Each prompt gets a results "
        "file of its own; what has one already is left out, so that an interrupted evaluation goes on.",
        epilog="example: lm-eval-spt evaluate --prompts 'prompts/*.safetensors' --tasks mini_topics --output results",
    )
    command.add_argument("--prompts", nargs="+", required=True, metavar="FILE", help="prompt files; patterns will do")
    command.add_argument("--tasks", required=True, metavar="TASKS", help="tasks and groups, comma separated")
    command.add_argument("--output", required=True, metavar="FOLDER", help="where the results go")
    command.add_argument("--model_args", "--model-args", default="", help="further arguments, as in lm_eval")
    command.add_argument("--include_path", "--include-path", metavar="FOLDER", help="folder with further tasks")
    command.add_argument("--log_samples", "--log-samples", action="store_true", help="also write every answer")
    command.add_argument("--batch_size", "--batch-size", default="auto", help="as in lm_eval (default: auto)")
    command.add_argument("--device", help="such as cpu or cuda:1 (default: the best that is here)")
    add_harness_options(command)
    command.set_defaults(run=evaluate)

    command = commands.add_parser(
        "sweep",
        help="train and score a grid of prompts from a YAML file, on one machine or a cluster",
        description="Plan the runs that a YAML file of axes asks for, say what they take, train and score them. Every "
        "run leaves a prompt, a results file and a record under its name; what is there already is not done again, and "
        "a run that fails does not keep the others from going on.",
        epilog="example: lm-eval-spt sweep configs/paper/xglm-564m.yaml --dry-run",
    )
    command.add_argument("file", metavar="FILE", help="the sweep file: see docs/sweeps.md")
    command.add_argument(
        "--dry-run", "--dry_run", action="store_true", help="only print the plan, its state and its cost"
    )
    command.add_argument(
        "--output", metavar="FOLDER", help="instead of the file's (default: sweeps/<name of the file>)"
    )
    command.add_argument("--targets", metavar="TASKS", help="instead of the file's, comma separated")
    command.add_argument(
        "--engine", default="local", help="local: in this process; ray; slurm: write an array job (default: local)"
    )
    command.add_argument(
        "--max-runs", "--max_runs", type=_positive, default=500, metavar="N", help="refuse larger sweeps (default: 500)"
    )
    command.add_argument(
        "--throughput", type=float, metavar="TFLOPS", help="of a device, to estimate the time (default: measured here)"
    )
    command.add_argument("--shard", type=int, metavar="N", help="do only this shard: what a job of --engine slurm does")
    command.add_argument(
        "--workers", type=_positive, metavar="N", help="with ray: shards at a time (default: one for each GPU or node)"
    )
    command.add_argument(
        "--address", metavar="ADDRESS", help="of the Ray cluster (default: RAY_ADDRESS, else one of this machine alone)"
    )
    command.set_defaults(run=sweep)

    command = commands.add_parser(
        "transfer",
        help="analyse how scores carry over from the source language to others",
        description="Tables of scores per language, family and script, transfer gaps, correlations with six distances "
        "from the source language, close and distant halves, and differences between arms. Printed for reading in a "
        "terminal, as Markdown into a file or pipe. Results given under one name are one arm's runs; without a name "
        "those that differ in the training seed alone are.",
        epilog='example: lm-eval-spt transfer "no prompt=results/none" "prompt=results/spt" --source eng_Latn',
    )
    command.add_argument(
        "results", metavar="[NAME=]PATH", nargs="+", help="a results_*.json of the harness, or a folder that holds some"
    )
    command.add_argument("--source", metavar="LANGUAGE", default="eng_Latn", help="source language (default: eng_Latn)")
    command.add_argument("--metric", default="acc", help="metric to analyse, such as macro_f1 (default: acc)")
    command.add_argument(
        "--reference", metavar="NAME", help="arm that the others are compared with (default: the first)"
    )
    command.add_argument(
        "--bootstrap",
        choices=("documents", "languages"),
        default="documents",
        help="what is resampled for differences; documents need --log_samples, else it is languages "
        "(default: documents)",
    )
    command.add_argument(
        "--distances",
        choices=("lang2vec", "urielplus"),
        default="lang2vec",
        help="where distances come from (default: lang2vec)",
    )
    command.add_argument(
        "--formula", choices=("angular", "cosine"), default="angular", help="of the distances (default: angular)"
    )
    command.add_argument(
        "--majority", type=float, metavar="SHARE", help="show the score of the largest class, such as 0.25"
    )
    command.add_argument("--languages", action="store_true", help="show more than 60 languages in the terminal, too")
    command.add_argument("--latex", action="store_true", help="print LaTeX tables instead")
    command.add_argument(
        "--output",
        metavar="PLACE",
        action="append",
        default=[],
        help="save a report: a file that ends in .md, .tex, .json, .csv or .parquet, or a folder for everything; "
        "can be given again",
    )
    command.add_argument("--figures", metavar="FOLDER", help="save figures there, as PNG and PDF")
    command.set_defaults(run=transfer)

    command = commands.add_parser(
        "leaderboard",
        help="rank results by their mean score in the target languages, on one HTML page",
        description="Rank arms by their mean score in the target languages, with the ranks that chance leaves open, "
        "and write one HTML page that shows every language. Results given under one name are one arm's runs; without a "
        "name those that differ in the training seed alone are. What can not be compared is left out, with the reason.",
        epilog='example: lm-eval-spt leaderboard "no prompt=results/none" "prompt=results/spt" --output page.html',
    )
    command.add_argument(
        "results", metavar="[NAME=]PATH", nargs="+", help="a results_*.json of the harness, or a folder that holds some"
    )
    command.add_argument("--source", metavar="LANGUAGE", default="eng_Latn", help="source language (default: eng_Latn)")
    command.add_argument("--metric", default="acc", help="metric to rank by, such as macro_f1 (default: acc)")
    command.add_argument(
        "--output", metavar="FILE", default="leaderboard.html", help="the page (default: leaderboard.html)"
    )
    command.set_defaults(run=leaderboard)

    results = "results_*.json of the harness, or folders that hold some: of this prompt, and of what to compare it with"
    command = commands.add_parser(
        "card",
        help="write a prompt's model card",
        description="Write the model card of a prompt: what it is, how it was trained, how to use it and, with "
        "results, a table of its scores. A card that is there keeps what was written around that.",
        epilog='example: lm-eval-spt card prompts/eng.safetensors --results results/eng "no prompt=results/none"',
    )
    command.add_argument("prompt", metavar="FILE", help="a .safetensors file or a PEFT adapter folder")
    command.add_argument("--results", metavar="[NAME=]PATH", nargs="+", default=[], help=results)
    command.add_argument("--repository", metavar="OWNER/NAME", help="where it will be on the Hub, for the card's text")
    command.add_argument("--output", metavar="CARD", help="default: FILE with the ending .md, or README.md in a folder")
    command.set_defaults(run=card)

    command = commands.add_parser(
        "push",
        help="upload a prompt, its card and its results to the Hugging Face Hub",
        description="Upload a prompt, its model card and its results to a repository on the Hugging Face Hub, which is "
        "created where there is none; prompt=OWNER/NAME then loads it. A prefix prompt becomes a PEFT adapter there. "
        "Log in first: hf auth login.",
        epilog="example: lm-eval-spt push prompts/eng.safetensors me/bloom-topics-eng --results results/eng",
    )
    command.add_argument("prompt", metavar="FILE", help="a .safetensors file or a PEFT adapter folder")
    command.add_argument("repository", metavar="OWNER/NAME", help="the repository")
    command.add_argument("--results", metavar="[NAME=]PATH", nargs="+", default=[], help=results)
    command.add_argument("--private", action="store_true", help="a repository that is created is private")
    command.set_defaults(run=push)
    return parser


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} given, expected a number")
    return number


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} given, expected a whole number from 1 on")
    return number


if __name__ == "__main__":
    sys.exit(main())
