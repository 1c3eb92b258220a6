"""Differences between arms: in the source language, over the target languages, and in each language.

Every arm is compared with one reference, in the same languages and on the same documents, so that what the arms have in
common cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lm_eval_spt.analysis.arms import Arm
from lm_eval_spt.analysis.distances import KINDS, Distances
from lm_eval_spt.analysis.languages import language as facts_of
from lm_eval_spt.analysis.languages import seen_by
from lm_eval_spt.analysis.noise import Estimates, Noise
from lm_eval_spt.analysis.statistics import halving_threshold, holm

Row = dict[str, Any]

GROUPINGS = ("family", "script", "macro_area", "seen")


def compare(noise: Noise, reference: Arm, distances: Distances, targets: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """Compare each arm with the reference.

    Args:
        noise: of the arms, in the source language and the targets.
        reference: one of the arms.
        distances: the distances from the source language.
        targets: the target languages.

    Returns:
        A row for each arm and scope: the source language, the mean over the targets, the transfer gap, the languages
        seen and unseen, each family; for each distance the close half, the distant half, and distant minus close. And a
        row for each arm and language, with p-values also corrected for the number of languages (Holm).
    """
    means: list[Row] = []
    per_language: list[Row] = []
    for arm in noise.arms:
        if arm is reference:
            continue
        label = {"arm": arm.name, "reference": reference.name, "metric": noise.metric}
        scopes = scopes_of(arm, distances, targets)
        weights = np.stack(list(scopes.values()))
        estimates = noise.estimate(noise.measure(arm, weights), noise.measure(reference, weights))
        for index, scope in enumerate(scopes):
            of_scope = {"scope": scope, "languages": int(np.count_nonzero(weights[index]))}
            means.append(label | of_scope | _tested(estimates, index))
        each = np.eye(len(noise.languages))
        estimates = noise.estimate(noise.measure(arm, each), noise.measure(reference, each))
        corrected = holm(estimates.p)
        for index, language in enumerate(noise.languages):
            tested = {"language": language} | _tested(estimates, index)
            per_language.append(label | tested | {"p_holm": known(corrected[index])})
    return means, per_language


def scopes_of(arm: Arm, distances: Distances, targets: Sequence[str]) -> dict[str, np.ndarray]:
    """Return what is estimated of arms: scope to weights over the source language and the targets `[1 + targets]`."""
    source = np.eye(1, 1 + len(targets))[0]
    all_targets = mean_over([True] * len(targets))
    scopes = {"source": source, "targets": all_targets, "transfer gap": source - all_targets}
    groups = groups_of(arm, targets)
    scopes |= {
        name: weights for (grouping, name), weights in groups.items() if grouping == "seen" and name != "unknown"
    }
    for kind, (_, close, distant) in halves_of(distances, targets).items():
        scopes |= {f"{kind}: close": close, f"{kind}: distant": distant, f"{kind}: distant - close": distant - close}
    return scopes | {f"family: {name}": weights for (grouping, name), weights in groups.items() if grouping == "family"}


def groups_of(arm: Arm, targets: Sequence[str]) -> dict[tuple[str, str], np.ndarray]:
    """Return families, scripts, areas, and the languages that the base model saw and did not see.

    Returns:
        (grouping, group), the largest group of a grouping first, to weights `[1 + targets]`.
    """
    seen = seen_by(arm.base_model)
    groups: dict[tuple[str, str], np.ndarray] = {}
    for grouping in GROUPINGS:
        if grouping == "seen":
            names = ["unknown" if seen is None else "seen" if target in seen else "unseen" for target in targets]
        else:
            names = [group_of(target, grouping) or "unknown" for target in targets]
        for name in sorted(set(names), key=lambda name: (-names.count(name), name)):
            groups[grouping, name] = mean_over(own == name for own in names)
    return groups


def halves_of(distances: Distances, targets: Sequence[str]) -> dict[str, tuple[float, np.ndarray, np.ndarray]]:
    """Return for each distance at which the targets differ the largest of a close language, and the halves' weights."""
    halves = {}
    for kind in KINDS:
        vector = distances.vector(kind, targets)
        threshold = halving_threshold(vector)
        if threshold is not None:
            halves[kind] = threshold, mean_over(vector <= threshold), mean_over(vector > threshold)
    return halves


def mean_over(chosen: Iterable[bool]) -> np.ndarray:
    """Return the weights `[1 + targets]` of the mean over some of the targets; the source has none."""
    weights = np.array([False, *chosen], dtype=np.float64)
    return weights / max(weights.sum(), 1)


def group_of(language: str, grouping: str) -> str | None:
    """Return the ``family``, ``branch``, ``script`` or ``macro_area`` of a language's code; None if it is unknown."""
    facts = facts_of(language)
    return (facts.script_name if grouping == "script" else str(getattr(facts, grouping))) or None


def known(number: float) -> float | None:
    """Return a number, None for NaN."""
    return None if math.isnan(number) else float(number)


def _tested(estimates: Estimates, index: int) -> Row:
    """A difference with its interval, its p-value and the smallest difference that would have been found."""
    difference = estimates[index]
    return {
        "difference": difference.value,
        "low": known(difference.low),
        "high": known(difference.high),
        "p": known(estimates.p[index]),
        "detectable": known(estimates.detectable[index]),
    }
