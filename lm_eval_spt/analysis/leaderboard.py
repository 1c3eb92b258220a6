"""Ranking arms by their scores in the target languages, with the ranks that the data leave open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lm_eval_spt.analysis.arms import Arm, check_metric, learned_what_is_scored, partial_data, target_languages
from lm_eval_spt.analysis.noise import Noise

METHOD = (
    "Mean score over the target languages, each counting the same. {}. Rank ranges: arms share ranks unless their "
    "difference is significant at 5% for all pairs together (Holm); an arm whose spread over seeds is not known has "
    "none of its own."
)

METRICS = ("acc", "macro_f1", "acc_norm", "f1", "exact_match", "mcc")
"""The metrics that are ranked by in any case, if all arms have them: more is better."""


@dataclass(frozen=True)
class Standing:
    """An arm's place by one metric; scores are shares of 1.

    Attributes:
        position: the place in the order of the means, from 1 on.
        rank: the first and the last rank that the data leave open.
        mean: the mean score over the target languages.
        interval: the ends of the mean's interval; None where nothing is known of its noise.
        intervals: language to the ends of the score's interval, for the languages that all arms have.
    """

    position: int
    rank: tuple[int, int]
    mean: float
    interval: tuple[float, float] | None
    intervals: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Leaderboard:
    """Arms that can be compared, ranked.

    Attributes:
        source: the source language's code.
        targets: the languages that every arm has, without the source and others that an arm learned from; the ranking
            is over these.
        arms: the arms, ordered by the first metric.
        standings: metric to the arms' standings, in the order of `arms`; the first metric is the one asked for.
        method: how they came about, in words.
        notices: lines that say what was left out and why, and how complete the data are.
    """

    source: str
    targets: Sequence[str]
    arms: Sequence[Arm]
    standings: Mapping[str, Sequence[Standing]]
    method: str
    notices: Sequence[str] = field(default_factory=list)


def rank(arms: Sequence[Arm], source: str, metric: str = "acc", notices: Iterable[str] = ()) -> Leaderboard:
    """Rank arms by their mean score over the target languages.

    Args:
        arms: from :func:`lm_eval_spt.analysis.arms.read_arms`.
        source: the source language's code.
        metric: what the arms are ordered by; other metrics that all arms have are ranked, too.
        notices: lines to begin the leaderboard's notices with.

    Raises:
        UserError: an arm lacks the metric, or there is no target language.
    """
    check_metric(arms, metric)
    metrics = [metric, *(name for name in METRICS if name != metric and all(arm.scores(name) for arm in arms))]
    targets, left_out = target_languages(arms, metrics, source)
    with_source = all(source in arm.scores(name) for arm in arms for name in metrics)
    covered = [source, *targets] if with_source else targets
    noises = {name: Noise(arms, covered, name, source=source) for name in metrics}
    standings = {name: stand(noise) for name, noise in noises.items()}
    order = sorted(range(len(arms)), key=lambda index: standings[metric][index].position)
    return Leaderboard(
        source,
        targets,
        [arms[index] for index in order],
        {name: [by_arm[index] for index in order] for name, by_arm in standings.items()},
        METHOD.format(noises[metric].method),
        [
            *notices,
            *learned_what_is_scored(arms),
            *partial_data(arms),
            *left_out,
            *([f"{len(targets)} target languages are few"] if len(targets) < 10 else []),
            *noises[metric].notes,
        ],
    )


def stand(noise: Noise) -> list[Standing]:
    """Rank arms by their mean over the target languages, with the ranks that chance leaves open.

    Args:
        noise: of the arms in the target languages, and in the source where all arms have it.
    """
    weights = np.array([language != noise.source for language in noise.languages], dtype=float)
    weights /= weights.sum()
    estimates = [noise.estimate(noise.measure(arm, weights[None]))[0] for arm in noise.arms]
    each = np.eye(len(noise.languages))
    ends = [noise.estimate(noise.measure(arm, each)).ends for arm in noise.arms]
    positions = np.empty(len(estimates), dtype=int)
    positions[np.argsort([-estimate.value for estimate in estimates], kind="stable")] = range(1, len(estimates) + 1)
    return [
        Standing(
            int(position),
            rank,
            estimate.value,
            None if np.isnan(estimate.low) else (estimate.low, estimate.high),
            {
                language: (low, high)
                for language, low, high in zip(noise.languages, *map(np.ndarray.tolist, of_arm), strict=True)
                if not np.isnan(low)
            },
        )
        for position, rank, estimate, of_arm in zip(positions, noise.ranks(weights), estimates, ends, strict=True)
    ]


def ranking_lines(board: Leaderboard) -> list[str]:
    """Return the ranking as lines of text: ranks, mean and its interval in percent, number of runs, arm's name."""
    metric, standings = next(iter(board.standings.items()))
    lines = [f"rank     {metric:>8}  95% interval  runs  arm"]
    for arm, standing in zip(board.arms, standings, strict=True):
        first, last = standing.rank
        ranks = f"{first}" if first == last else f"{first}–{last}"
        interval = " – ".join(f"{100 * end:4.1f}" for end in standing.interval or ()) or "–"
        name = arm.name if arm.name.isprintable() else repr(arm.name)
        lines.append(f"{ranks:7}  {100 * standing.mean:8.1f}  {interval:11}   {len(arm.runs):4}  {name}")
    return lines
