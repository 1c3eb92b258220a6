"""Training: settings -> harness task -> examples -> frozen model -> loss -> prompt file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from lm_eval_spt.common.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Train from the command line; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        from lm_eval_spt.train.grid import configurations, train_grid  # takes seconds, in which Ctrl-C may come

        train_grid(configurations(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
