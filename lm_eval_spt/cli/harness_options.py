"""Flags of the harness's own command that others take, too, with its meaning."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


def add_harness_options(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each of :class:`~lm_eval_spt.harness.options.EvaluationOptions`."""

    def add(name: str, **argument: Any) -> None:
        parser.add_argument(f"--{name.replace('_', '-')}", **argument)

    add("limit", type=float, metavar="N", help="only the first N documents of each task, or a share of them")
    add("data", metavar="NAME=FOLDER", help="local copies of data sets, comma separated: see lm-eval-spt train")
    add("columns", metavar="NAME=COLUMN", help="columns that have other names in those: see lm-eval-spt train")
    add("num_fewshot", type=int, metavar="N", help="shots in every context (default: what each task says)")
    add(
        "apply_chat_template",
        nargs="?",
        const=True,
        default=False,
        metavar="NAME",
        help="make a chat of every context, with the tokenizer's chat template or with the one of this name",
    )
    add("system_instruction", metavar="TEXT", help="text before every context, in a chat the system's")
    add(
        "fewshot_as_multiturn",
        type=lambda text: text.lower() in ("true", "1", "yes"),
        nargs="?",
        const=True,
        metavar="yes|no",
        help="make each shot a turn of the chat (default: yes with --apply-chat-template)",
    )
    add(
        "gen_kwargs",
        nargs="+",
        action=MergeIntoDict,
        metavar="KEY=VALUE",
        help="arguments of generation, such as max_gen_toks=20 or a JSON object; they replace those of the tasks",
    )
    add("use_cache", metavar="PATH", help="keep the answers in files whose paths begin so, one for each prompt")
    add(
        "cache_requests",
        nargs="?",
        const="true",
        default=False,
        choices=("true", "refresh", "delete"),
        help="keep the tasks' requests for the next time; 'refresh' makes them anew, 'delete' forgets them",
    )


class MergeIntoDict(argparse.Action):
    """The harness's own reading of ``key=value`` arguments, which is imported where it is needed."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        from lm_eval._cli.utils import MergeDictAction

        MergeDictAction.__call__(self, parser, namespace, values, option_string)
