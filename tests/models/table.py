"""The table in `docs/models.md`: written from what came of the trials, and read again by the tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version

from tests.helpers.paths import ROOT
from tests.models.trials import COLUMNS, EXACT, LENGTHS, NEW_TOKENS, SLOWER, Row

PAGE = ROOT / "docs/models.md"

_TEXT = """# Base models

Every causal-LM architecture of transformers, tried: a tiny random model of each (float32, on a CPU) scores, trains
and generates with random prompts, and its numbers are compared with those of the *plain pass*: one unpadded text
through the model's own `forward`, the embeddings put together by hand, no cache. Made with transformers
{transformers}, torch {torch} and lm-eval {lm_eval} by

    python -m tests.models            # all: some minutes
    python -m tests.models mamba      # these only, without writing this page

- **{exact}**: log-likelihoods to 1e-4 and a hundred-thousandth of their size (gradients to a thousandth of the
  largest), read in the fastest way: each context once, all its answers as one tree, going on from a KV cache.
- **{slower}**: the same numbers, but each answer is read with its context, or without a cache. Which way is taken is
  found out when a model is loaded, on the run's own texts (`lm_eval_spt/inference/probe.py`).
- **no**: it can not be done; the number leads to the line that the user gets.

Contexts have {lengths} tokens and four answers each, windows and chunks 16. *No prompt*, *prefix*, *suffix* and
*both* are scored through the harness's model class; *deep prefix* scores and generates behind the cache of five
tokens, and is held to the plain pass over these tokens and the context; *evaluate* reads texts once for two suffix prompts; *train* is
the loss and gradient of a step with a suffix prompt, on cached contexts where the model reads on from a cache, and
with a prefix prompt; *generate* is {new} tokens by greedy decoding after prompts in each place, two contexts of
different length in one batch: all tokens are right.

Slower are models whose state is no KV cache (Mamba, RWKV, xLSTM) and hybrids of them with attention, attention that
chooses its keys by an index (DeepSeek V3.2, GLM with DSA), and those that count positions by the slots of a batch or
make all masks themselves (the decoders of BART and its like, GPT-Neo, MPT, XLNet).

Encoders that became decoders (BERT, RoBERTa) are built with `is_decoder=True`, and the decoders of BART, Marian and
their like are read by themselves. Encoder-decoder models are no part of this table: they take prefix prompts. T5, mT5
and UMT5, T5Gemma, BART, mBART, Marian, Pegasus, PLBART, MVP and LED have been tried. ProphetNet, whose positions
move with padding, reads each text alone.

Of {count} architectures {built} were tried; {fast} are read in the fastest way in all columns.

"""


def page(rows: Sequence[Row]) -> str:
    """Return the page of these architectures."""
    notes: dict[str, int] = {}

    def note(line: str, name: str) -> str:
        line = line.replace(name, "…")  # the row has it
        return f"no [{notes.setdefault(line, len(notes) + 1)}]"

    lines = [f"| model_type | class | {' | '.join(COLUMNS)} |", "|---|---|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = [row.cells.get(column, row.reason) for column in COLUMNS]
        shown = [cell if cell in (EXACT, SLOWER) else note(cell, row.name) for cell in cells]
        lines.append(f"| {row.kind} | {row.name} | {' | '.join(shown)} |")
    built = [row for row in rows if not row.reason]
    text = _TEXT.format(
        exact=EXACT, slower=SLOWER, lengths=f"{', '.join(map(str, LENGTHS[:-1]))} or {LENGTHS[-1]}", new=NEW_TOKENS,
        count=len(rows), built=len(built), fast=sum(set(row.cells.values()) == {EXACT} for row in built),
        **{library: version(library).partition("+")[0] for library in ("transformers", "torch", "lm_eval")},
    )  # fmt: skip
    return text + "\n".join([*lines, "", *(f"{number}. {line}" for line, number in notes.items()), ""])


def written() -> tuple[str, dict[str, list[str]]]:
    """Return the version of transformers that the page was made with, and by `model_type` the cells of its rows."""
    text = PAGE.read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    (made_with,) = re.findall(r"Made with transformers\s+([^,]+),", text)
    return made_with, {row[0]: row[2:] for row in rows}
