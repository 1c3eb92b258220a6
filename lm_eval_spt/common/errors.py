"""The one exception type for mistakes in what the user gave, and how it is shown.

Everything a user can get wrong (a file, a flag, a task name) raises :class:`UserError` where the value enters, with a
message that says what was given, what was expected and what to do. Command lines show that message without a traceback
and exit with status 1.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import TracebackType


class UserError(ValueError):
    """A mistake in what the user gave.

    The message is one line of limited length without control characters, even where a file's content is quoted in it.
    """

    def __init__(self, message: str) -> None:
        if len(message) > 2000:
            message = f"{message[:1200]} ... {message[-700:]}"
        super().__init__(printable(message))


@contextlib.contextmanager
def error_context(where: str) -> Iterator[None]:
    """Begin the message of a UserError raised inside with `where` and a colon."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def printable(text: str) -> str:
    """Return a text on one line, with control characters and the like escaped."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def shown(value: object) -> str:
    """Return a wrong value from a file in a few characters, however long it is."""
    if isinstance(value, list | dict) and not value:
        return repr(value)
    if not isinstance(value, str | int | float | None):
        return f"a {type(value).__name__}"
    try:
        return repr(value)[:80]
    except ValueError:
        return "a very long number"


def show_user_errors_in_one_line() -> None:
    """Make an uncaught :class:`UserError` end the program with ``error: <message>`` instead of a traceback.

    Needed where another program owns ``main``: the harness's command line calls this package, not the other way
    round. All other exceptions are shown as before. Calling it again changes nothing.
    """
    previous = sys.excepthook
    if getattr(previous, "shows_user_errors", False):
        return

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if issubclass(kind, UserError):
            print(f"error: {error}", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    hook.shows_user_errors = True  # type: ignore[attr-defined]
    sys.excepthook = hook
