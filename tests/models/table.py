"""The table in `docs/models.md`: written from what came of the trials, and read again by the tests."""

from __future__ import annotations

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
*both* are scored through the harness's model class; *evaluate* reads texts once for two suffix prompts; *train* is
the loss and gradient of a step with a suffix prompt, on cached contexts where the model reads on from a cache, and
with a prefix prompt; *generate* is {new} tokens by greedy decoding after prompts in each place, two contexts of
different length in one batch: all tokens are right.

Encoders that became decoders (BERT, RoBERTa) are built with `is_decoder=True`, and the decoders of BART, Marian and
their like are read by themselves. Encoder-decoder models (T5, mT5) are no part of this table: they take prefix
prompts, and [the README](../README.md) says how.

Of {count} architectures {built} were tried; {fast} are read in the fastest way in all columns.

"""


def page(rows: Sequence[Row]) -> str:
    """Return the page of these architectures."""
    notes: dict[str, int] = {}

    def note(line: str) -> str:
        return f"no [{notes.setdefault(_shortened(line), len(notes) + 1)}]"

    lines = [f"| model_type | class | {' | '.join(COLUMNS)} |", "|---|---|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = [row.cells.get(column, row.reason) for column in COLUMNS]
        shown = [cell if cell in (EXACT, SLOWER) else note(cell) for cell in cells]
        lines.append(f"| {row.kind} | {row.name} | {' | '.join(shown)} |")
    built = [row for row in rows if not row.reason]
    text = _TEXT.format(
        exact=EXACT, slower=SLOWER, lengths=f"{', '.join(map(str, LENGTHS[:-1]))} or {LENGTHS[-1]}", new=NEW_TOKENS,
        count=len(rows), built=len(built), fast=sum(set(row.cells.values()) == {EXACT} for row in built),
        **{library: version(library).partition("+")[0] for library in ("transformers", "torch", "lm_eval")},
    )  # fmt: skip
    return text + "\n".join([*lines, "", *(f"{number}. {line}" for line, number in notes.items()), ""])


def _shortened(line: str) -> str:
    """Return a line without the class's name, with which it begins: the row has it."""
    first, _, rest = line.partition(" ")
    return f"… {rest}" if first.endswith(("ForCausalLM", "Model", "Generation")) else line


def written() -> tuple[str, dict[str, list[str]]]:
    """Return the version of transformers that the page was made with, and by `model_type` the cells of its rows."""
    text = PAGE.read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    return text.partition("Made with transformers ")[2].partition(",")[0], {row[0]: row[2:] for row in rows}
