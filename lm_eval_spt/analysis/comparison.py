"""Arm against arm: differences in the source language, over the targets, and in each language.

Every arm is compared with one reference. Both had the same documents, and the languages are the same: what is resampled
is drawn once for all arms, so that what they have in common cancels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_eval_spt.analysis.arms import Arm
from lm_eval_spt.analysis.distances import KINDS, Distances
from lm_eval_spt.analysis.documents import Answers, read_answers
from lm_eval_spt.analysis.languages import seen_by
from lm_eval_spt.analysis.statistics import DOCUMENT_RESAMPLES, Estimate, bootstrap_p, estimate, halves, holm, resample
from lm_eval_spt.common.errors import UserError

Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Differences of arms from a reference.

    Attributes:
        means: a row for each arm and scope: the source language, the mean over the targets, the transfer gap, the
            languages seen and unseen, the close and the distant half by each distance and how their differences differ.
        per_language: a row for each arm and language; p-values also corrected for the number of languages, by Holm.
        target_means: arm, the reference included, to the mean score over the targets with its interval.
        resampled: what the intervals come from: ``documents`` or ``languages``, which tell nothing of one language.
        notes: why it could not be documents.
    """

    means: Sequence[Row]
    per_language: Sequence[Row]
    target_means: Mapping[str, Estimate]
    resampled: str
    notes: Sequence[str]


def compare(
    arms: Sequence[Arm],
    reference: Arm,
    distances: Distances,
    metric: str,
    targets: Sequence[str],
    over_documents: bool = True,
) -> Comparison:
    """Compare each arm with the reference, itself left out.

    Args:
        arms: they have the source language and the targets.
        reference: one of them.
        distances: from the source language.
        metric: such as ``acc``.
        targets: the target languages.
        over_documents: resample documents where the harness logged its samples; otherwise languages.
    """
    languages = [distances.source, *targets]
    answers: dict[str, Answers] = {}
    notes = []
    if over_documents:
        try:
            answers = _answers(arms, languages, metric)
        except UserError as problem:
            notes.append(f"resampled over languages, not over documents: {problem}")

    def scores_of(arm: Arm) -> tuple[np.ndarray, np.ndarray | None]:
        """The scores `[languages]` and, where there are documents, their resamples `[resamples, languages]`."""
        of_languages = arm.scores(metric)
        scores = np.array([of_languages[language].value for language in languages])
        if not answers:
            return scores, None
        counts = resample(len(answers[arm.name].labels), DOCUMENT_RESAMPLES)
        return scores, answers[arm.name].resampled(metric, counts)

    means: list[Row] = []
    per_language: list[Row] = []
    target_means = {}
    resampled = "documents" if answers else "languages"
    of_reference, draws_of_reference = scores_of(reference)
    for arm in arms:
        scores, draws = scores_of(arm)
        scopes = _scopes(arm, distances, targets)
        to_targets = scopes["targets"]
        of_targets = _draws(to_targets, scores, draws)
        mean = float(to_targets @ scores)
        target_means[arm.name] = Estimate(mean, mean, mean) if of_targets is None else estimate(mean, of_targets)
        if arm is reference:
            continue
        label = {"arm": arm.name, "reference": reference.name, "metric": metric, "resampled": resampled}
        scores -= of_reference
        if draws is not None:
            draws = draws - draws_of_reference
        for scope, weights in scopes.items():
            row = {"scope": scope, "languages": int(np.count_nonzero(weights))}
            means.append(label | row | _tested(float(weights @ scores), _draws(weights, scores, draws)))
        corrected = [None] * len(languages) if draws is None else holm(bootstrap_p(draws).tolist())
        for index, language in enumerate(languages):
            tested = _tested(float(scores[index]), None if draws is None else draws[:, index])
            per_language.append(label | {"language": language} | tested | {"p_holm": corrected[index]})
    return Comparison(means, per_language, target_means, resampled, notes)


def _answers(arms: Sequence[Arm], languages: Sequence[str], metric: str) -> dict[str, Answers]:
    """The answers of all arms; UserError where one has none, or has other documents than the first."""
    answers: dict[str, Answers] = {}
    for arm in arms:
        answers[arm.name] = read_answers(arm.runs, languages, metric)
        if not np.array_equal(answers[arm.name].labels, answers[arms[0].name].labels):
            raise UserError(f"{arm.name!r} and {arms[0].name!r} were not scored on the same documents")
    return answers


def _tested(value: float, draws: np.ndarray | None) -> Row:
    """A difference with interval and p-value from its resamples; None without them."""
    if draws is None:
        return {"difference": value, "low": None, "high": None, "p": None}
    found = estimate(value, draws)
    return {"difference": value, "low": found.low, "high": found.high, "p": float(bootstrap_p(draws))}


def _draws(weights: np.ndarray, scores: np.ndarray, draws: np.ndarray | None) -> np.ndarray | None:
    """Resamples of a weighted mean: of documents where there are `draws` of them, else of languages."""
    return _over_languages(weights, scores) if draws is None else draws @ weights


def _scopes(arm: Arm, distances: Distances, targets: Sequence[str]) -> dict[str, np.ndarray]:
    """What differences are taken of: weights over the source language and the targets `[1 + targets]`."""

    def mean_of(chosen: Iterable[bool]) -> np.ndarray:
        weights = np.array([False, *chosen], dtype=np.float64)
        return weights / max(weights.sum(), 1)

    source = np.eye(1, 1 + len(targets))[0]
    all_targets = mean_of([True] * len(targets))
    scopes = {"source": source, "targets": all_targets, "transfer gap": source - all_targets}
    seen = seen_by(arm.base_model)
    if seen is not None:
        scopes |= {"seen": mean_of(t in seen for t in targets), "unseen": mean_of(t not in seen for t in targets)}
    for kind in KINDS:
        vector = distances.vector(kind, targets)
        for half in halves(np.zeros((1, len(targets))), vector):
            close, distant = mean_of(vector <= half.threshold), mean_of(vector > half.threshold)
            scopes |= {
                f"{kind}: close": close,
                f"{kind}: distant": distant,
                f"{kind}: distant - close": distant - close,
            }
    return {scope: weights for scope, weights in scopes.items() if weights.any()}


def _over_languages(weights: np.ndarray, scores: np.ndarray) -> np.ndarray | None:
    """Resamples of a weighted mean over languages; those of one sign of weight are drawn among themselves.

    The source language is not a draw from many: it stays. None where there is nothing to draw.
    """
    draws = np.full(DOCUMENT_RESAMPLES, weights[0] * scores[0])
    drawn = False
    for seed, sign in enumerate((1, -1)):
        members = np.flatnonzero(np.sign(weights[1:]) == sign) + 1
        if len(members) > 1:
            draws += resample(len(members), DOCUMENT_RESAMPLES, seed) @ (weights[members] * scores[members])
            drawn = True
        elif len(members):
            draws += weights[members] @ scores[members]
    return draws if drawn else None
