"""Ranking arms by their scores in the target languages, with the ranks that the data leave open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lm_eval_spt.analysis.arms import Arm, learned_what_is_scored, left_out_languages, partial_data
from lm_eval_spt.analysis.statistics import LEVEL, resample
from lm_eval_spt.common.errors import UserError

METRICS = ("acc", "macro_f1", "acc_norm", "f1", "exact_match", "mcc")
"""The metrics that are ranked by in any case, if all arms have them: more is better."""

RESAMPLES = 5000
METHOD = (
    f"Mean score over the target languages, each counting the same. Intervals ({LEVEL:.0%}): percentile bootstrap, "
    f"{RESAMPLES} resamples of the languages. Rank ranges: arms whose paired difference over the same resamples is "
    f"not significant share ranks; all pairs hold together at {LEVEL:.0%} (the largest studentised difference, as in "
    "Mogstad, Romano, Shaikh and Wilhelm 2024, Inference for Ranks)."
)


@dataclass(frozen=True)
class Standing:
    """An arm's place by one metric; scores are shares of 1.

    Attributes:
        position: the place in the order of the means, from 1 on.
        rank: the first and the last rank that the data leave open.
        mean: the mean score over the target languages.
        interval: the ends of the mean's interval.
    """

    position: int
    rank: tuple[int, int]
    mean: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Leaderboard:
    """Arms that can be compared, ranked.

    Attributes:
        source: the source language's code.
        targets: the languages that every arm has, without the source; the ranking is over these.
        arms: the arms, ordered by the first metric.
        standings: metric to the arms' standings, in the order of `arms`; the first metric is the one asked for.
        notices: lines that say what was left out and why, and how complete the data are.
    """

    source: str
    targets: Sequence[str]
    arms: Sequence[Arm]
    standings: Mapping[str, Sequence[Standing]]
    notices: Sequence[str] = field(default_factory=list)


def rank(arms: Sequence[Arm], source: str, metric: str = "acc", notices: Iterable[str] = ()) -> Leaderboard:
    """Rank arms by their mean score over the target languages.

    Args:
        arms: from :func:`lm_eval_spt.analysis.arms.read_arms`.
        source: the source language's code.
        metric: what the arms are ordered by; other metrics that all arms have are ranked, too.
        notices: lines to begin the leaderboard's notices with.

    Raises:
        UserError: an arm lacks the metric, or the arms have no target language in common.
    """
    for arm in arms:
        own = arm.scores(metric).values()
        if not own or any(abs(score.value) > 1 for score in own):
            raise UserError(
                f"{arm.name!r} has no {metric!r} to rank by: expected a share of 1 that all runs have, such as "
                f"{', '.join(name for name in METRICS if arm.scores(name)) or METRICS[0]}"
            )
    metrics = [metric, *(name for name in METRICS if name != metric and all(arm.scores(name) for arm in arms))]
    languages = [set.intersection(*(set(arm.scores(name)) for name in metrics)) - {source} for arm in arms]
    targets = sorted(set.intersection(*languages))
    if not targets:
        smallest = arms[min(range(len(arms)), key=lambda index: len(languages[index]))]
        raise UserError(
            f"the arms have no target language in common (source: {source}): leave out {smallest.name!r}, or score it "
            "in the languages of the others"
        )
    standings = {}
    for name in metrics:
        scores = [arm.scores(name) for arm in arms]
        standings[name] = stand(np.array([[by_language[target].value for target in targets] for by_language in scores]))
    order = sorted(range(len(arms)), key=lambda index: standings[metric][index].position)
    return Leaderboard(
        source,
        targets,
        [arms[index] for index in order],
        {name: [by_arm[index] for index in order] for name, by_arm in standings.items()},
        [*notices, *learned_what_is_scored(arms), *partial_data(arms), *_caveats(arms, languages, targets)],
    )


def stand(scores: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> list[Standing]:
    """Rank arms by their mean, with the ranks that chance leaves open.

    Languages are resampled with replacement, the same ones for all arms. An arm is better than another if their
    difference exceeds c standard errors; c is the bootstrap's quantile of the largest studentised deviation among all
    pairs, so that all comparisons hold together (Mogstad et al. 2024).

    Args:
        scores: `[arms, languages]`, shares of 1.
        resamples: the number of bootstrap resamples.
        seed: the seed of the resampling.
    """
    count, languages = scores.shape
    means, resampled = scores.mean(axis=1), resample(languages, resamples, seed) @ scores.T / languages
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)

    largest = np.zeros(resamples)
    differences, errors = means[:, None] - means, np.zeros((count, count))
    for arm in range(count):  # one arm against all: the memory of all pairs at once would be too much
        deviations = resampled[:, [arm]] - resampled - differences[arm]
        errors[arm] = np.maximum(deviations.std(axis=0), 1e-12)  # 0 where two differ by the same in every language
        largest = np.maximum(largest, np.abs(deviations / errors[arm]).max(axis=1))
    better = (differences > np.quantile(largest, LEVEL) * errors) & (languages > 1)
    positions = np.empty(count, dtype=int)
    positions[np.argsort(-means, kind="stable")] = np.arange(1, count + 1)
    return [
        Standing(
            int(positions[arm]),
            (1 + int(better[:, arm].sum()), count - int(better[arm].sum())),
            float(means[arm]),
            (float(low[arm]), float(high[arm])),
        )
        for arm in range(count)
    ]


def ranking_lines(board: Leaderboard) -> list[str]:
    """Return the ranking as lines of text: ranks, mean and its interval in percent, number of runs, arm's name."""
    metric, standings = next(iter(board.standings.items()))
    lines = [f"rank     {metric:>8}  95% interval  runs  arm"]
    for arm, standing in zip(board.arms, standings, strict=True):
        first, last = standing.rank
        ranks = f"{first}" if first == last else f"{first}–{last}"
        low, high = (100 * end for end in standing.interval)
        name = arm.name if arm.name.isprintable() else repr(arm.name)
        lines.append(f"{ranks:7}  {100 * standing.mean:8.1f}  {low:4.1f} – {high:4.1f}   {len(arm.runs):4}  {name}")
    return lines


def _caveats(arms: Sequence[Arm], languages: Sequence[set[str]], targets: Sequence[str]) -> Iterable[str]:
    """Lines about how few languages the ranking is over."""
    if left_out := left_out_languages(arms, languages, targets):
        yield f"ranked over {left_out}"
    if len(targets) < 10:
        yield f"{len(targets)} target languages are few: intervals and rank ranges are rough"
