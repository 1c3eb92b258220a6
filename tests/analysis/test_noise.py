"""The noise of arms' scores, against t-tests, resampled documents, and worlds with a known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.coverage import World, count_hits
from lm_eval_spt.analysis.arms import Arm
from lm_eval_spt.analysis.noise import Noise
from lm_eval_spt.analysis.results import EvaluationRun, Score
from tests.helpers.results import arm_of, write_answers, write_results

LANGUAGES = ["eng_Latn", "deu_Latn", "fra_Latn", "swh_Latn"]
MEAN = np.full((1, 4), 0.25)


def arm(name: str, values: Any, seeds: list[int] | None = None, stderr: float | None = 0.0, shots: int = 8) -> Arm:
    """An arm whose runs have these scores, the same in all languages or one for each; without samples."""
    runs = []
    for number, value in enumerate(values):
        of_languages = np.broadcast_to(value, 4)
        scores = {"acc": {code: Score(float(v), stderr) for code, v in zip(LANGUAGES, of_languages, strict=True)}}
        config = {"prompt_digest": f"{name}{number}"} if seeds is not None else {}
        runs.append(EvaluationRun(Path(f"{name}{number}"), "x", {}, scores, {}, *[None] * 8, config, []))
    return Arm(name, runs, [{"seed": seed, "tasks": ["x"], "shots": shots} for seed in seeds or []] or [{}] * len(runs))


def noise_of(*arms: Arm, **options: Any) -> Noise:
    return Noise(arms, LANGUAGES, "acc", **options)


def difference(noise: Noise, first: int = 1, second: int = 0) -> Any:
    return noise.estimate(*(noise.measure(noise.arms[index], MEAN) for index in (first, second)))


# -- seeds: harness's errors of 0 leave nothing else ----------------------------------------------------------------


def test_arms_that_learned_from_the_same_documents_are_compared_pair_by_pair():
    a, b = np.array([0.50, 0.56, 0.62, 0.53]), np.array([0.66, 0.55, 0.60, 0.58])
    order = [2, 0, 1, 3]  # run i of b has the seed of run order[i] of a
    estimate = difference(noise_of(arm("a", a, [0, 1, 2, 3]), arm("b", b, order)))
    test = stats.ttest_rel(b, a[order])
    assert estimate.value[0] == pytest.approx(b.mean() - a.mean())
    assert estimate.p[0] == pytest.approx(test.pvalue, rel=1e-4)
    ends = test.confidence_interval(0.95)
    assert (estimate[0].low, estimate[0].high) == pytest.approx((ends.low, ends.high), rel=1e-4)


def test_runs_are_compared_with_what_has_no_seed_by_a_t_test_of_one_sample():
    values = [0.50, 0.56, 0.62, 0.53]
    noise = noise_of(arm("none", [0.45]), arm("b", values, [0, 1, 2, 3]))
    expected = stats.ttest_1samp(values, 0.45).pvalue
    assert difference(noise).p[0] == pytest.approx(expected, rel=1e-4)
    assert difference(noise, 0, 1).p[0] == pytest.approx(expected, rel=1e-4)
    assert not noise.notes[1:]  # the first is about samples


@pytest.mark.parametrize(("runs", "spreads"), [((2, 4), (1, 1)), ((2, 6), (3, 1)), ((5, 3), (1, 3)), ((3, 3), (5, 1))])
def test_different_numbers_of_runs_and_unequal_spreads_keep_the_level(runs, spreads):
    """Scheffe's rows: exact whatever the spreads are, where Welch's test with two runs is not."""
    random = np.random.default_rng(0)
    rejected = 0
    for _ in range(600):
        a, b = (random.normal(0.5, 0.01 * spread, count) for count, spread in zip(runs, spreads, strict=True))
        estimate = difference(noise_of(arm("a", a, list(range(10, 10 + runs[0]))), arm("b", b, list(range(runs[1])))))
        assert estimate.value[0] == pytest.approx(b.mean() - a.mean())
        rejected += estimate.p[0] < 0.05
    assert rejected / 600 == pytest.approx(0.05, abs=0.03)


def test_different_numbers_of_runs_of_the_same_documents_are_not_taken_for_surer():
    random = np.random.default_rng(1)
    rejected = 0
    for _ in range(1000):
        shared = random.normal(0, 0.02, 4)
        a, b = 0.5 + shared + random.normal(0, 0.01, 4), 0.5 + shared[:2] + random.normal(0, 0.01, 2)
        rejected += difference(noise_of(arm("a", a, [0, 1, 2, 3]), arm("b", b, [0, 1]))).p[0] < 0.05
    assert rejected / 1000 < 0.065


def test_one_run_borrows_the_spread_of_its_kind_and_says_so():
    a, b = np.array([0.50, 0.56, 0.62, 0.53]), np.array([0.64, 0.66])
    noise = noise_of(arm("a", a, [0, 1, 2, 3]), arm("b", b, [0, 1]), arm("c", [0.58], [0]))
    assert "c: one run: the pooled spread of a, b is taken" in noise.notes
    estimate = noise.estimate(noise.measure(noise.arms[2], MEAN))
    pooled = np.sqrt((3 * a.var(ddof=1) + b.var(ddof=1)) / 4)
    assert estimate.error[0] == pytest.approx(pooled)
    assert estimate[0].high - 0.58 == pytest.approx(stats.t.ppf(0.975, 4) * pooled)
    other = noise.estimate(noise.measure(noise.arms[2], MEAN), noise.measure(noise.arms[0], MEAN))
    assert other.error[0] == pytest.approx(np.sqrt(pooled**2 + a.var(ddof=1) / 4))


@pytest.mark.parametrize("lender", [None, arm("a", [0.5, 0.6], [0, 1], shots=32)])
def test_one_run_of_another_kind_has_no_rank_of_its_own(lender):
    others = [arm("none", [0.2]), arm("worse", [0.1])]
    noise = noise_of(*filter(None, [lender]), *others, arm("c", [0.9], [0]))
    assert "c: one run: the spread over seeds is not in it, and it has no rank of its own" in noise.notes
    ranks = dict(zip([one.name for one in noise.arms], noise.ranks(MEAN[0]), strict=True))
    assert ranks["c"] == (1, len(noise.arms))
    assert ranks["none"][1] < ranks["worse"][1]  # nothing is learned there: these are told apart
    estimate = difference(noise, -1, -2)
    assert np.isnan([estimate.p[0], estimate.detectable[0]]).all() and not np.isnan(estimate[0].low)


def test_seeds_that_drew_the_same_documents_are_pointed_out():
    noise = noise_of(arm("a", [0.5, 0.6, 0.7], [3, 3, 3]))
    assert "a: 3 runs learned from 1 draws of training documents" in noise.notes[-1]


# -- documents ------------------------------------------------------------------------------------------------------


def skills(mean: float) -> dict[str, float]:
    return {code: mean + 0.05 * index for index, code in enumerate(LANGUAGES)}


def with_samples(folder: Path, name: str, mean: float, seeds: list[int] | None = None) -> Arm:
    luck = np.random.default_rng(len(name)).normal(0, 0.05, len(seeds or [0]))
    files = [
        write_answers(folder / f"{name}{number}", skills(mean), seed=number + 10 * len(name), luck=extra)
        for number, extra in enumerate(luck if seeds else [0.0])
    ]
    return arm_of(name, files, seeds)


def test_documents_are_resampled_together_in_all_languages_and_arms(tmp_path):
    """Without a spread over seeds the errors are those of the bootstrap over documents."""
    noise = noise_of(with_samples(tmp_path, "a", 0.4), with_samples(tmp_path, "bb", 0.5))
    assert noise.notes == [] and noise.documents
    random = np.random.default_rng(0)
    right = noise.influence * np.sqrt(60 * 59) + noise._scores[:, :, None]  # [arms, languages, documents]
    assert set(np.unique(right.round(3))) == {0, 1}
    draws = np.array([right[:, :, random.integers(0, 60, 60)].mean(axis=(1, 2)) for _ in range(4000)])
    for index, one in enumerate(noise.arms):
        error = noise.estimate(noise.measure(one, MEAN)).error[0]
        assert error == pytest.approx(draws[:, index].std(), rel=0.05)
        assert error > 1.5 * np.sqrt(0.25 / 60 / 4)  # languages are not independent
    assert difference(noise).error[0] == pytest.approx((draws[:, 1] - draws[:, 0]).std(), rel=0.05)


def test_seeds_and_documents_make_the_two_way_variance(tmp_path):
    noise = noise_of(with_samples(tmp_path, "a", 0.4, [0, 1, 2]), with_samples(tmp_path, "bb", 0.5, [2, 0, 1]))
    right = noise.influence * np.sqrt(60 * 59) + noise._scores[:, :, None]
    a, b = right[:3].mean(axis=1), right[3:].mean(axis=1)
    for values, estimate in (
        (a, noise.estimate(noise.measure(noise.arms[0], MEAN))),
        (b - a[[2, 0, 1]], difference(noise)),
    ):
        seeds, documents = values.shape
        rows, columns = values.mean(axis=1), values.mean(axis=0)
        rest = values - rows[:, None] - columns + values.mean()
        both = (rest**2).sum() / ((seeds - 1) * (documents - 1)) / (seeds * documents)
        of_seeds, of_documents = rows.var(ddof=1) / seeds, columns.var(ddof=1) / documents
        assert estimate.error[0] == pytest.approx(np.sqrt(of_seeds + max(of_documents - both, 0)), rel=1e-4)


def test_all_answers_right_is_not_certain_and_does_not_fail(tmp_path):
    arms = [arm_of(name, [write_answers(tmp_path / name, dict.fromkeys(LANGUAGES, 1.0))]) for name in "ab"]
    noise = noise_of(*arms)
    estimate = noise.estimate(noise.measure(arms[0], MEAN))
    assert estimate.value[0] == 1 and estimate.error[0] == pytest.approx(1 / 60)
    assert difference(noise).p[0] == 1
    assert noise.ranks(MEAN[0]) == [(1, 2), (1, 2)]


def test_without_samples_the_harness_s_errors_bound_what_documents_add(tmp_path):
    files = [write_results(tmp_path / name, skills(mean)) for name, mean in (("a", 0.4), ("b", 0.6))]
    noise = noise_of(*(arm_of(file.parent.name, [file]) for file in files))
    assert not noise.documents
    assert "no samples beside" in noise.notes[0] and "bound what documents add" in noise.notes[0]
    assert noise.estimate(noise.measure(noise.arms[0], MEAN)).error[0] == pytest.approx(0.03)
    assert difference(noise).error[0] == pytest.approx(0.03 * np.sqrt(2))
    unknown = noise_of(arm("a", [0.5], stderr=None), arm("b", [0.9], stderr=None))
    assert "do not say what other documents would have changed" in unknown.notes[0]
    assert np.isnan(difference(unknown)[0].low) and unknown.ranks(MEAN[0]) == [(1, 2), (1, 2)]


def test_random_languages_add_theirs(tmp_path):
    arms = [with_samples(tmp_path, "a", 0.3)]
    fixed, random = noise_of(*arms, source="eng_Latn"), noise_of(*arms, source="eng_Latn", random_languages=True)
    targets = np.array([[0, 1 / 3, 1 / 3, 1 / 3], [1, 0, 0, 0]])
    errors = [noise.estimate(noise.measure(arms[0], targets)).error for noise in (fixed, random)]
    scores = [arms[0].scores("acc")[code].value for code in LANGUAGES[1:]]
    assert errors[1][0] ** 2 - errors[0][0] ** 2 == pytest.approx(np.var(scores, ddof=1) / 3, rel=1e-5)
    assert errors[1][1] == errors[0][1]  # the source is one language
    assert "and languages" in random.method and "languages are fixed" in fixed.method


# -- worlds with a known truth: a short `make coverage` -------------------------------------------------------------


@pytest.mark.parametrize(
    "world",
    [
        World((2,) * 4, 15, 84),
        World((4,) * 4, 15, 84, unequal=True),
        World((1, 1, 1, 4), 15, 84),
        World((2, 4, 8, 8), 15, 84, paired=False),
    ],
)
def test_intervals_and_ranks_hold(world):
    found = count_hits(world, 150)
    # Four arms of a world have their documents in common: 600 intervals are worth some 250.
    for what in ("means", "differences"):
        assert 0.91 <= found[f"{what} held"] / found[what] <= 0.985, what
    assert found["wrong ranks"] <= stats.binom(150, 0.05).ppf(0.999)
