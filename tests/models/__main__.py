"""Try every causal-LM architecture of the installed transformers, and write what came of it to `docs/models.md`.

python -m tests.models                  # all, and the page
python -m tests.models llama mamba      # these only
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

from lm_eval_spt.common.files import write
from tests.models.table import PAGE, page
from tests.models.tiny import ARCHITECTURES
from tests.models.trials import try_architecture


def main(kinds: list[str]) -> int:
    """Try the architectures that are named, or all; returns 1 if anything was wrong."""
    if unknown := set(kinds) - set(ARCHITECTURES):
        print(f"no such model_type: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    transformers.logging.set_verbosity(logging.CRITICAL)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    rows = []
    for kind in kinds or ARCHITECTURES:
        started = time.perf_counter()
        row = try_architecture(kind)
        rows.append(row)
        columns: dict[str, list[str]] = {}
        for column, cell in row.cells.items():
            columns.setdefault(cell, []).append(column)
        outcome = row.reason or "; ".join(f"{', '.join(where)}: {cell}" for cell, where in columns.items())
        print(f"{kind}: {outcome} ({time.perf_counter() - started:.1f} s)", flush=True)
        for column, problem in row.wrong.items():
            print(f"    WRONG {column}: {problem}", flush=True)
    wrong = [row.kind for row in rows if row.wrong]
    if wrong:
        print(f"wrong: {', '.join(wrong)}; no page was written", file=sys.stderr)
    elif not kinds:
        write(PAGE, page(rows).encode())
        print(PAGE)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
