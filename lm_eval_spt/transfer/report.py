"""Tables of cross-lingual transfer, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lm_eval_spt.transfer.results import Score

Arms = Mapping[str, Mapping[str, Score]]
"""What is compared: a name for each arm, and its score in every language."""


def transfer_table(arms: Arms, source: str, majority: float | None = None) -> str:
    """Return a Markdown table: a row per language, the source first, a column per arm, in percent with standard errors.

    Below stands the mean over the target languages that all arms have, with the standard error of that mean (the
    languages' errors taken as independent).

    Args:
        arms: scores by arm and language.
        source: the source language's code.
        majority: the score of always answering the most frequent class, as a share of 1, shown as a column of its own.
    """
    languages = sorted({language for scores in arms.values() for language in scores} - {source})
    names = list(arms) if majority is None else ["majority class", *arms]
    constant = [] if majority is None else [f"{100 * majority:.1f}"]
    lines = [f"| language | {' | '.join(names)} |", "|---" + "|---:" * len(names) + "|"]
    for language in [source, *languages]:
        cells = [_cell(scores.get(language)) for scores in arms.values()]
        label = f"**{language}** (source)" if language == source else language
        lines.append(f"| {label} | {' | '.join([*constant, *cells])} |")
    shared = [language for language in languages if all(language in scores for scores in arms.values())]
    cells = [_cell(mean_score([scores[language] for language in shared])) for scores in arms.values()]
    lines.append(f"| **mean of {len(shared)} target languages** | {' | '.join([*constant, *cells])} |")
    return "\n".join(lines) + "\n"


def mean_score(scores: list[Score]) -> Score | None:
    """Return the mean and its standard error, None without scores."""
    if not scores:
        return None
    errors = [score.stderr for score in scores if score.stderr is not None]
    stderr = math.sqrt(sum(error**2 for error in errors)) / len(scores) if len(errors) == len(scores) else None
    return Score(sum(score.value for score in scores) / len(scores), stderr)


def _cell(score: Score | None) -> str:
    if score is None:
        return "–"
    error = "" if score.stderr is None else f" ± {100 * score.stderr:.1f}"
    return f"{100 * score.value:.1f}{error}"
