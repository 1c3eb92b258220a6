"""Differences between arms: in the source language, over the target languages, and in each language.

Every arm is compared with one reference, in the same languages and on the same documents. Each resample is drawn once
for all arms, so that what the arms have in common cancels.
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
            languages seen and unseen; for each distance the close half, the distant half, and distant minus close.
        per_language: a row for each arm and language, with p-values also corrected for the number of languages (Holm).
        target_means: arm, the reference included, to the mean score over the targets with its interval.
        resampled: what was resampled for the intervals: ``documents``, or ``languages``, which give none for a single
            language.
        notes: why documents could not be resampled.
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
    """Compare each arm with the reference.

    Args:
        arms: the arms, all of which have the source language and the targets.
        reference: one of `arms`.
        distances: the distances from the source language.
        metric: such as ``acc``.
        targets: the target languages.
        over_documents: resample documents if the harness logged its samples; otherwise languages.
    """
    languages = [distances.source, *targets]
    answers: dict[str, Answers] = {}
    notes = []
    if over_documents:
        try:
            answers = _answers(arms, languages, metric)
        except UserError as problem:
            notes.append(f"resampled over languages, not over documents: {problem}")

    def scores_and_draws(arm: Arm) -> tuple[np.ndarray, np.ndarray | None]:
        """An arm's scores `[languages]` and, if documents are resampled, their resamples `[resamples, languages]`."""
        by_language = arm.scores(metric)
        scores = np.array([by_language[language].value for language in languages])
        if not answers:
            return scores, None
        counts = resample(len(answers[arm.name].labels), DOCUMENT_RESAMPLES)
        return scores, answers[arm.name].resampled(metric, counts)

    means: list[Row] = []
    per_language: list[Row] = []
    target_means = {}
    resampled = "documents" if answers else "languages"
    reference_scores, reference_draws = scores_and_draws(reference)
    for arm in arms:
        scores, draws = scores_and_draws(arm)
        scopes = _scopes(arm, distances, targets)
        mean = float(scopes["targets"] @ scores)
        mean_draws = _draws(scopes["targets"], scores, draws)
        target_means[arm.name] = Estimate(mean, mean, mean) if mean_draws is None else estimate(mean, mean_draws)
        if arm is reference:
            continue
        label = {"arm": arm.name, "reference": reference.name, "metric": metric, "resampled": resampled}
        scores -= reference_scores
        if draws is not None:
            draws = draws - reference_draws
        for scope, weights in scopes.items():
            row = {"scope": scope, "languages": int(np.count_nonzero(weights))}
            means.append(label | row | _tested(float(weights @ scores), _draws(weights, scores, draws)))
        corrected = [None] * len(languages) if draws is None else holm(bootstrap_p(draws).tolist())
        for index, language in enumerate(languages):
            tested = _tested(float(scores[index]), None if draws is None else draws[:, index])
            per_language.append(label | {"language": language} | tested | {"p_holm": corrected[index]})
    return Comparison(means, per_language, target_means, resampled, notes)


def _answers(arms: Sequence[Arm], languages: Sequence[str], metric: str) -> dict[str, Answers]:
    """The answers of all arms; UserError if an arm has none, or has other documents than the first."""
    answers: dict[str, Answers] = {}
    for arm in arms:
        answers[arm.name] = read_answers(arm.runs, languages, metric)
        if not np.array_equal(answers[arm.name].labels, answers[arms[0].name].labels):
            raise UserError(f"{arm.name!r} and {arms[0].name!r} were not scored on the same documents")
    return answers


def _tested(value: float, draws: np.ndarray | None) -> Row:
    """A difference with its interval and p-value, which are None without resamples."""
    if draws is None:
        return {"difference": value, "low": None, "high": None, "p": None}
    interval = estimate(value, draws)
    return {"difference": value, "low": interval.low, "high": interval.high, "p": float(bootstrap_p(draws))}


def _draws(weights: np.ndarray, scores: np.ndarray, draws: np.ndarray | None) -> np.ndarray | None:
    """Resamples of a weighted mean: over documents if there are `draws` of them, else over languages."""
    return _over_languages(weights, scores) if draws is None else draws @ weights


def _scopes(arm: Arm, distances: Distances, targets: Sequence[str]) -> dict[str, np.ndarray]:
    """What differences are computed for: scope to weights over the source language and the targets `[1 + targets]`."""

    def mean_over(chosen: Iterable[bool]) -> np.ndarray:
        weights = np.array([False, *chosen], dtype=np.float64)
        return weights / max(weights.sum(), 1)

    source = np.eye(1, 1 + len(targets))[0]
    all_targets = mean_over([True] * len(targets))
    scopes = {"source": source, "targets": all_targets, "transfer gap": source - all_targets}
    seen = seen_by(arm.base_model)
    if seen is not None:
        scopes |= {"seen": mean_over(t in seen for t in targets), "unseen": mean_over(t not in seen for t in targets)}
    for kind in KINDS:
        vector = distances.vector(kind, targets)
        for half in halves(np.zeros((1, len(targets))), vector):
            close, distant = mean_over(vector <= half.threshold), mean_over(vector > half.threshold)
            scopes |= {
                f"{kind}: close": close,
                f"{kind}: distant": distant,
                f"{kind}: distant - close": distant - close,
            }
    return {scope: weights for scope, weights in scopes.items() if weights.any()}


def _over_languages(weights: np.ndarray, scores: np.ndarray) -> np.ndarray | None:
    """Resamples of a weighted mean over languages; None if there are not two languages to draw from.

    Languages with positive and with negative weights are drawn separately. The source language is not drawn: it is
    fixed.
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
