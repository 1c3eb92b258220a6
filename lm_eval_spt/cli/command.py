"""How a command is run: its flags, what is shown of a mistake, and its exit status."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

from lm_eval_spt.common.errors import UserError


def execute(load: Callable[[], ModuleType], prog: str, arguments: Sequence[str]) -> int:
    """Run a command.

    Args:
        load: imports the command: a module with ``parser(prog)``, which returns the parser of its arguments, and
            ``run(arguments)``. That can take seconds, in which Ctrl-C may come.
        prog: how the command was called, for its help.
        arguments: its arguments.

    Returns:
        Exit status: 0, 1 after a user's mistake (one line on stderr), 130 after Ctrl-C, 141 when the output's reader is
        gone.

    Raises:
        SystemExit: from argparse, with status 2 for wrong usage and 0 for ``--help``.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # vocabulary tokens on a terminal that is not UTF-8
    try:
        command = load()
        command.run(command.parser(prog).parse_args(_with_hyphens(arguments)))
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


def _with_hyphens(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with every flag in hyphens: the harness writes underscores, and both are taken."""
    hyphenated: list[str] = []
    for number, argument in enumerate(arguments):
        if argument == "--":
            return [*hyphenated, *arguments[number:]]
        flag, equals, value = argument.partition("=")
        hyphenated.append(flag.replace("_", "-") + equals + value if flag.startswith("--") else argument)
    return hyphenated
