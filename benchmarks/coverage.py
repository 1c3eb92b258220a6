"""Hold intervals and rank ranges to what they say, in worlds whose truth is known: `make coverage`.

    python -m benchmarks.coverage                      # some minutes; writes the table in docs/statistics.md
    python -m benchmarks.coverage --worlds 50          # a look; prints, and writes nothing
    python -m benchmarks.coverage --fit "RUNS" "RUNS"  # the components of real samples: of two arms' runs, by seed

A world has arms, seeds, languages and documents. An answer is right where a sum of normal effects is above 0: of the
document, also in this language, for this arm and for this seed; of the seed, also in this language; and what is left.
The sum has the variance 1, so that the true score is known exactly. The sizes of the effects are those of real samples:
eight prompts for the embedded model, learned on few and on all documents of SIB-200 with four seeds each, scored in 20
languages (``results/sib200/21_languages/prompts``). Estimates come from the class that `transfer` and `leaderboard`
use.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special, stats

from lm_eval_spt.analysis.arms import Arm
from lm_eval_spt.analysis.documents import influence_of, read_answers
from lm_eval_spt.analysis.noise import Noise
from lm_eval_spt.analysis.results import EvaluationRun, Score, read_run, results_files
from lm_eval_spt.common.files import write

PAGE = Path(__file__).parent.parent / "docs/statistics.md"
BEGIN, END = "<!-- written by make coverage -->\n", "<!-- end of what make coverage wrote -->\n"

UNEQUAL_MEANS = (0.0, 0.0, 0.03, 0.06)
UNEQUAL_SPREADS = (2.0, 1.5, 1.0, 0.5)


@dataclass(frozen=True)
class Effects:
    """The standard deviations of a world's effects; what is left makes the variance 1.

    Attributes:
        document: of a document, in all languages.
        document_language: of a document in a language.
        arm_document, arm_document_language: the same for an arm.
        seed: of a seed.
        shared: the share of the seeds' variance that arms have in common which learned from the same documents.
        seed_language: of a seed in a language.
        seed_document: of a seed with a document.
        language: of a language.
        mean: the probit of the mean score.
    """

    document: float = 0.656
    document_language: float = 0.689
    arm_document: float = 0.055
    arm_document_language: float = 0.105
    seed: float = 0.046
    shared: float = 0.42
    seed_language: float = 0.043
    seed_document: float = 0.195
    language: float = 0.144
    mean: float = 0.29


@dataclass(frozen=True)
class World:
    """What is drawn: arms with their runs, scored on documents in languages.

    Attributes:
        runs: of each arm.
        languages, documents: their numbers.
        unequal: whether the arms differ in mean and in spread over seeds; else they are all alike.
        paired: whether runs of the same number learned from the same documents.
        effects: the sizes of the effects.
    """

    runs: tuple[int, ...]
    languages: int
    documents: int
    unequal: bool = False
    paired: bool = True
    effects: Effects = Effects()

    def draw(self, random: np.random.Generator) -> tuple[Noise, np.ndarray]:
        """Return the arms' noise as the analysis sees it, and the true means of the arms `[arms]`."""

        def normal(size: float | np.ndarray, *shape: int) -> np.ndarray:
            return random.standard_normal(shape, dtype=np.float32) * np.float32(size)

        effects, count = self.effects, len(self.runs)
        spreads = np.array(UNEQUAL_SPREADS[:count] if self.unequal else [1.0] * count) * effects.seed
        if min(self.runs) == 1:  # what is lent can only be right where spreads are alike
            spreads = np.full(count, effects.seed)
        sizes = [
            value
            for name, value in dataclasses.asdict(effects).items()
            if name not in ("seed", "shared", "language", "mean")
        ]
        left = np.sqrt(1 - sum(np.square(sizes)) - spreads**2)
        level = effects.mean + normal(effects.language, self.languages)
        gains = np.array(UNEQUAL_MEANS[:count] if self.unequal else [0.0] * count) / stats.norm.pdf(effects.mean)
        documents = normal(effects.document, self.documents) + normal(
            effects.document_language, self.languages, self.documents
        )
        shared = normal(np.sqrt(effects.shared), max(self.runs))
        arms, influence, truth = [], [], []
        for index, runs in enumerate(self.runs):
            of_arm = documents + normal(effects.arm_document, self.documents)
            of_arm += normal(effects.arm_document_language, self.languages, self.documents)
            of_arm += level[:, None] + np.float32(gains[index])
            own = normal(np.sqrt(1 - effects.shared), runs)
            seeds = spreads[index] * (own + (shared[:runs] if self.paired else normal(np.sqrt(effects.shared), runs)))
            truth.append(special.ndtr(level + gains[index]).mean())
            members = []
            for seed in seeds:
                latent = of_arm + np.float32(seed) + normal(effects.seed_language, self.languages, 1)
                latent += normal(effects.seed_document, self.documents)
                latent += normal(left[index], self.languages, self.documents)
                scores, moved = influence_of((latent > 0).astype(float), np.ones(latent.shape, dtype=bool))
                members.append(_run(scores, len(influence)))
                influence.append(moved.astype(np.float32))
            seeds_of = [{"seed": seed + (0 if self.paired else 100 * index), "tasks": ["x"]} for seed in range(runs)]
            arms.append(Arm(f"arm {index}", members, seeds_of))
        names = list(arms[0].runs[0].scores["acc"])
        return Noise(arms, names, "acc", influence=np.stack(influence)), np.array(truth)


def _run(scores: np.ndarray, number: int) -> EvaluationRun:
    by_language = {f"l{index}": Score(float(score), None) for index, score in enumerate(scores)}
    config = {"prompt_digest": f"{number}"}
    facts: list[Any] = [None] * 8
    return EvaluationRun(Path(f"{number}"), "x", {}, {"acc": by_language}, {}, *facts, config, [])


def count_hits(world: World, worlds: int, seed: int = 0) -> Counter[str]:
    """Draw worlds and count: intervals of means and differences, those that hold the truth, and worlds with mistakes.

    Returns:
        ``means``, ``means held``, ``differences``, ``differences held``, ``worlds``, ``wrong ranks`` (worlds in which
        an arm is called better than one that is not worse: a rank range leaves out a rank that the arm has) and
        ``ranked`` (worlds in which the first arm is told from another).
    """
    random = np.random.default_rng(seed)
    found: Counter[str] = Counter()
    for _ in range(worlds):
        noise, truth = world.draw(random)
        weights = np.full((1, world.languages), 1 / world.languages)
        measured = [noise.measure(arm, weights) for arm in noise.arms]
        found["worlds"] += 1
        for index, one in enumerate(measured):
            estimate = noise.estimate(one)[0]
            found["means"] += 1
            found["means held"] += estimate.low <= truth[index] <= estimate.high
        for first, second in itertools.combinations(range(len(measured)), 2):
            estimate = noise.estimate(measured[second], measured[first])[0]
            difference = truth[second] - truth[first]
            found["differences"] += 1
            found["differences held"] += estimate.low <= difference <= estimate.high
        ranks = noise.ranks(weights[0])
        least = [1 + int((truth > own + 1e-9).sum()) for own in truth]
        most = [len(truth) - int((truth < own - 1e-9).sum()) for own in truth]
        found["wrong ranks"] += any(
            first > low or last < high for (first, last), low, high in zip(ranks, least, most, strict=True)
        )
        found["ranked"] += ranks[0] != (1, len(truth))
    return found


SETTINGS = [
    *(
        (f"{seeds}", World((seeds,) * 4 if seeds > 1 else (1, 1, 1, 4), languages, documents))
        for seeds in (1, 2, 4, 8)
        for documents in (84, 204)
        for languages in (15, 30, 205)
    ),
    ("2, other documents", World((2,) * 4, 30, 204, paired=False)),
    ("8, other documents", World((8,) * 4, 30, 204, paired=False)),
    ("2, 4, 8, 8", World((2, 4, 8, 8), 30, 204)),
    ("2, 4, 8, 8, other documents", World((2, 4, 8, 8), 30, 204, paired=False)),
]


def table(worlds: int, processes: int) -> str:
    """Return the table of coverage in Markdown: arms that are alike, and arms that are not."""
    lines = [
        "| seeds | documents | languages | arms | means | differences | worlds with a wrong rank range | arms ranked |",
        "|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    jobs = [(number, unequal, worlds) for number in range(len(SETTINGS)) for unequal in (False, True)]
    with ProcessPoolExecutor(processes) as pool:
        for line in pool.map(_row, jobs):
            lines.append(line)
            print(line, file=sys.stderr, flush=True)
    return "\n".join(lines) + "\n"


def _row(job: tuple[int, bool, int]) -> str:
    number, unequal, worlds = job
    name, world = SETTINGS[number]
    found = count_hits(dataclasses.replace(world, unequal=unequal), worlds, seed=number)
    shares = [found[f"{what} held"] / found[what] for what in ("means", "differences")]
    shares += [found[what] / found["worlds"] for what in ("wrong ranks", "ranked")]
    cells = [name, str(world.documents), str(world.languages), "unequal" if unequal else "equal"]
    return f"| {' | '.join([*cells, *(f'{100 * share:.1f}' for share in shares)])} |"


def fit(first: str, second: str) -> Effects:
    """Return the effects in the samples of two arms, each a pattern of folders in the order of their seeds."""
    answers = []
    for pattern in (first, second):
        runs = [read_run(results_files(folder)[0]) for folder in sorted(Path().glob(pattern))]
        languages = [language for language in runs[0].languages() if language != "eng_Latn"]
        answers.append([read_answers(run, languages, "acc").values for run in runs])
    right = np.array(answers)  # [arms, seeds, languages, documents]
    probability = right.mean()
    threshold = special.ndtri(probability)
    deviations = right - right.mean(axis=3, keepdims=True)
    products = np.einsum("aslx,bqmx->aslbqm", deviations, deviations) / (right.shape[3] - 1)
    arm, seed, language, other_arm, other_seed, other_language = np.indices(products.shape)

    def correlation(same_arm: bool, same_seed: bool, same_language: bool) -> float:
        """That of the normal sums which gives the covariance of answers to one document."""
        chosen = (arm == other_arm) == same_arm
        chosen &= ((seed == other_seed) == same_seed) & ((language == other_language) == same_language)
        covariance, low, high = products[chosen].mean(), -1.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            both = stats.multivariate_normal.cdf([threshold] * 2, cov=[[1, middle], [middle, 1]], allow_singular=True)
            low, high = (middle, high) if both - probability**2 < covariance else (low, middle)
        return low

    document = correlation(False, False, False)
    in_language = correlation(False, False, True)
    of_arm = correlation(True, False, False)
    of_arm_in_language = correlation(True, False, True)
    of_seed = correlation(True, True, False)
    by_language = right.mean(axis=3) - right.mean(axis=(1, 3))[:, None]
    by_seed = by_language.mean(axis=2)
    slope = stats.norm.pdf(threshold)
    sizes = {
        "document": document,
        "document_language": in_language - document,
        "arm_document": of_arm - document,
        "arm_document_language": of_arm_in_language - in_language - (of_arm - document),
        "seed": by_seed.var(axis=1, ddof=1).max() / slope**2,
        "seed_language": (by_language - by_seed[..., None]).var(axis=(1, 2)).max() / slope**2,
        "seed_document": of_seed - of_arm,
        "language": special.ndtri(right.mean(axis=(0, 1, 3))).var(ddof=1),
    }
    rounded = {name: round(float(np.sqrt(max(size, 0))), 3) for name, size in sizes.items()}
    return Effects(**rounded, shared=round(float(np.corrcoef(*by_seed)[0, 1]), 2), mean=round(float(threshold), 2))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=400, help="of each kind (default: 400)")
    parser.add_argument("--processes", type=int, default=1, help="side by side (default: 1)")
    parser.add_argument("--fit", nargs=2, metavar="RUNS", help="print the effects in real samples instead")
    options = parser.parse_args()
    if options.fit:
        print(fit(*options.fit))
        return
    text = table(options.worlds, options.processes)
    if options.worlds < parser.get_default("worlds"):
        print(text)
        return
    page = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    write(PAGE, pattern.sub(lambda _: BEGIN + text + END, page).encode())


if __name__ == "__main__":
    main()
