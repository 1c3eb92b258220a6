"""Calibrated answers, held to the model's own answers and a restatement in plain Python."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from lm_eval_spt.analysis.arms import read_arms
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.harness.calibration import calibrate, match_prior
from lm_eval_spt.harness.classify import classify
from lm_eval_spt.harness.evaluate import evaluate_prompts
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.hub.model_card import model_card
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.models import random_prompt_files
from tests.helpers.requests import loglikelihoods, request

TASKS = ["mini_topics_eng_Latn", "mini_topics_swh_Latn"]
KINDS = ["probability", "log_probability"]
LIMIT = 6


@pytest.fixture(scope="module")
def base() -> SPTLM:
    return SPTLM(pretrained="mini", device="cpu", batch_size="auto")


@pytest.fixture(scope="module")
def files(base, tmp_path_factory) -> list[str]:
    kinds = [("suffix", 3), ("suffix", 3), ("prefix", 3)]
    return random_prompt_files(base.model, tmp_path_factory.mktemp("prompts"), *kinds)


def evaluated(model, tasks=TASKS, limit=LIMIT, **options) -> dict:
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    return simple_evaluate(
        model=model, tasks=tasks, task_manager=manager, limit=limit, log_samples=True, bootstrap_iters=0, **options
    )


def answers(results: dict, task: str) -> list[list[float]]:
    """[documents][choices]"""
    return [loglikelihoods(sample) for sample in sorted(results["samples"][task], key=lambda each: each["doc_id"])]


def asking(document: int, text: str, choice: str) -> Instance:
    return Instance("loglikelihood", {}, (text, choice), idx=0, metadata=("t", document, 1))


def shares(row: list[float]) -> list[float]:
    exponentials = [math.exp(value - max(row)) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def restated(rows: list[list[float]], average: str) -> list[list[float]]:
    """Log-shares of the choices of each document without what the model thinks of the choices in the mean."""
    probabilities = [shares(row) for row in rows]
    if average == "probability":
        means = [math.log(sum(column) / len(rows)) for column in zip(*probabilities, strict=True)]
    else:
        means = [sum(map(math.log, column)) / len(rows) for column in zip(*probabilities, strict=True)]
    return [[math.log(share) - mean for share, mean in zip(row, means, strict=True)] for row in probabilities]


def same_up_to_a_constant(found: list[float], expected: list[float]) -> bool:
    shift = found[0] - expected[0]
    return found == pytest.approx([value + shift for value in expected], abs=2e-4)


@pytest.mark.parametrize("average", KINDS)
@pytest.mark.parametrize("number", [None, 2])
def test_answers_lose_what_the_model_thinks_of_the_choices(base, files, average, number):
    prompt = {} if number is None else {"prompt": files[number]}
    plain = evaluated(SPTLM.from_loaded(base, batch_size="auto", **prompt))
    found = evaluated(SPTLM.from_loaded(base, batch_size="auto", calibration=average, **prompt))
    assert found["config"]["calibration"] == average
    for task in TASKS:  # each by itself
        rows = answers(plain, task)
        expected = restated(rows, average)
        for row, calibrated, wanted in zip(rows, answers(found, task), expected, strict=True):
            assert same_up_to_a_constant(calibrated, wanted) and not same_up_to_a_constant(calibrated, row)
        targets = {sample["doc_id"]: int(sample["target"]) for sample in found["samples"][task]}
        right = [int(np.argmax(row)) == targets[number] for number, row in enumerate(expected)]
        assert found["results"][task]["acc,none"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize("average", KINDS)
def test_the_members_of_an_ensemble_are_calibrated_and_then_averaged(base, files, average):
    members = [answers(evaluated(SPTLM.from_loaded(base, prompt=file, batch_size="auto")), TASKS[1]) for file in files]
    named = {"prompt": "+".join(files), "calibration": average, "device": "cpu", "batch_size": "auto"}
    found = answers(evaluated("spt", model_args=named), TASKS[1])
    calibrated = [restated(rows, average) for rows in members]
    for document, row in enumerate(found):
        of_members = [shares(rows[document]) for rows in calibrated]
        assert same_up_to_a_constant(row, [math.log(sum(column)) for column in zip(*of_members, strict=True)])


COUNTS = [40, 25, 10, 5, 5, 10, 5]


def matched(rows: list[list[float]], counts: list[float]) -> list[list[float]]:
    """Log-likelihoods plus the constants for which mean probabilities are the label shares.

    They are where a convex function has its minimum, as its gradient is the difference of the two.
    """
    values, prior = np.array(rows), np.array(counts) / sum(counts)
    values = values - values.max(axis=1, keepdims=True)

    def convex(constants: np.ndarray) -> float:
        return float(logsumexp(values + constants, axis=1).mean() - constants @ prior)

    def gradient(constants: np.ndarray) -> np.ndarray:
        return np.asarray(softmax(values + constants, axis=1).mean(axis=0) - prior)

    found = minimize(convex, np.zeros(len(prior)), jac=gradient, method="BFGS", options={"gtol": 1e-9})
    return (values + found.x).tolist()


@pytest.mark.parametrize("named", [True, False])
def test_choices_become_as_frequent_as_they_are_known_to_be(base, files, named):
    """By the record of the prompt, or by counts that are given, in each task by itself."""
    prompt = SoftPrompt.load(files[0])
    recorded = SoftPrompt(prompt.vectors, prompt.metadata | {"label_counts": COUNTS}, "recorded")
    given = {"prompt": recorded, "calibration": "label_prior"} if named else {"prompt": prompt}
    given = {"calibration": "+".join(map(str, COUNTS))} | given
    plain = evaluated(SPTLM.from_loaded(base, batch_size="auto", prompt=prompt))
    found = evaluated(SPTLM.from_loaded(base, batch_size="auto", **given))
    assert found["config"]["calibration"] == given["calibration"]
    for task in TASKS:
        expected = matched(answers(plain, task), COUNTS)
        for calibrated, wanted in zip(answers(found, task), expected, strict=True):
            assert same_up_to_a_constant(calibrated, wanted)
        mean = np.mean([shares(row) for row in answers(found, task)], axis=0)
        assert mean == pytest.approx(np.array(COUNTS) / sum(COUNTS), abs=1e-6)


def test_each_member_of_an_ensemble_has_its_own_label_counts(base, files, tmp_path):
    counts = [COUNTS, COUNTS[::-1]]
    paths = [str(tmp_path / f"{number}.safetensors") for number in range(2)]
    for file, path, known in zip(files, paths, counts, strict=False):
        prompt = SoftPrompt.load(file)
        SoftPrompt(prompt.vectors, prompt.metadata | {"label_counts": known}).save(path)
    members = [answers(evaluated(SPTLM.from_loaded(base, prompt=path, batch_size="auto")), TASKS[0]) for path in paths]
    named = {"prompt": "+".join(paths), "calibration": "label_prior", "device": "cpu", "batch_size": "auto"}
    found = answers(evaluated("spt", model_args=named), TASKS[0])
    calibrated = [matched(rows, known) for rows, known in zip(members, counts, strict=True)]
    for document, row in enumerate(found):
        of_members = [shares(rows[document]) for rows in calibrated]
        assert same_up_to_a_constant(row, [math.log(sum(column)) for column in zip(*of_members, strict=True)])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 300.0])
def test_priors_are_matched_however_sure_the_model_is(scale):
    generator = np.random.default_rng(0)
    values = generator.normal(0, scale, (200, 4)) + generator.normal(0, 5 * scale, 4)
    documents, choices = np.repeat(np.arange(200), 4), np.tile(np.arange(4), 200)
    prior = np.array([0.4, 0.3, 0.2, 0.1])
    found = match_prior(values.ravel(), documents, choices, np.tile(prior, 200)).reshape(200, 4)
    assert np.isfinite(found).all()
    assert softmax(found, axis=1).mean(axis=0) == pytest.approx(prior, abs=0.005)


def test_a_preference_that_all_documents_share_changes_nothing() -> None:
    generator = np.random.default_rng(0)
    values, preference = generator.normal(-5, 2, (9, 4)), generator.normal(0, 3, 4)
    documents, choices = np.repeat(np.arange(9), 4), np.tile(np.arange(4), 9)
    once, twice = (
        calibrate(given.ravel(), documents, choices, "log_probability").reshape(9, 4)
        for given in (values, values + preference)
    )
    differences = once - twice
    assert differences == pytest.approx(np.repeat(differences[:, :1], 4, axis=1))  # one constant for a document
    assert (once.argmax(axis=1) == twice.argmax(axis=1)).all() and (values + preference).argmax(axis=1).std() < 1.5
    assert len(calibrate(np.zeros(0), documents[:0], choices[:0], "probability")) == 0


def test_probabilities_of_nothing_at_all_and_of_certainty() -> None:
    values = np.array([0.0, -1000.0, -1000.0, 0.0])
    found = calibrate(values, np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), "probability")
    assert found == pytest.approx(values + math.log(2))


def test_a_choice_that_is_far_less_likely_than_all_others_keeps_a_number() -> None:
    values = np.array([-1.0, -2000.0, -2.0, -1999.0])
    found = calibrate(values, np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), "probability")
    assert np.isfinite(found).all()


def test_questions_without_the_text_are_not_mixed_with_the_others(base):
    """As metrics by mutual information ask them: their answers keep their differences from each other."""
    lm = SPTLM.from_loaded(base, calibration="probability", batch_size="auto")
    asked = [
        asking(document, text, choice)
        for document, context in enumerate(["The river rises.", "A goal in the final"])
        for text in (context, "")
        for choice in (" sports", " nature")
    ]
    found = np.array([value for value, _ in lm.loglikelihood(asked, disable_tqdm=True)]).reshape(2, 2, 2)
    plain = np.array([value for value, _ in base.loglikelihood(asked, disable_tqdm=True)]).reshape(2, 2, 2)
    for text in (0, 1):
        expected = np.array(restated(plain[:, text].tolist(), "probability"))
        assert np.diff(found[:, text], axis=1) == pytest.approx(np.diff(expected, axis=1), abs=1e-4)


def test_calibrated_results_have_a_folder_and_an_arm_of_their_own(base, files, tmp_path):
    given = {"output": str(tmp_path), "base": base, "limit": 3}
    paths = [
        evaluate_prompts(files[:1], TASKS, model_args=f"pretrained=mini{more}", **given)[0]
        for more in ("", ",calibration=probability", ",calibration=log_probability")
    ]
    assert len({path.parent for path in paths}) == 3
    assert paths[1].parent.name.endswith("+calibrated_by_probability")
    again = evaluate_prompts(files[:1], TASKS, model_args="pretrained=mini,calibration=probability", **given)
    assert again == [paths[1]]  # done already
    arms, left_out = read_arms([(None, tmp_path)])
    assert len(arms) == 3 and not left_out
    assert sorted("calibrated" in arm.description for arm in arms) == [False, True, True]
    assert sum("(calibrated)" in arm.name for arm in arms) == 2
    assert json.loads(paths[1].read_text())["config"]["calibration"] == "probability"
    card = model_card(SoftPrompt.load(files[0]), files[0], arms)
    for name in ("acc, calibrated", "| suffix0 (mini_topics), acc |", "suffix0 (calibrated) (mini_topics), acc"):
        assert name in card


def test_texts_of_one_s_own_are_calibrated_by_each_other(base, files):
    texts = ["The team won the match.", "The minister resigned.", "A new planet was found."]
    plain, found = (
        classify(files[0], texts, lm=base, task=TASKS[0], **more) for more in ({}, {"calibration": "probability"})
    )
    expected = restated([list(each.loglikelihoods.values()) for each in plain], "probability")
    for calibrated, wanted in zip(found, expected, strict=True):
        assert same_up_to_a_constant(list(calibrated.loglikelihoods.values()), wanted)


def test_no_text_is_calibrated_by_itself(base, files, monkeypatch):
    monkeypatch.setattr("lm_eval_spt.harness.classify.TEXTS_AT_ONCE", 2)
    texts = ["The team won the match.", "The minister resigned.", "A new planet was found."]
    together = {"lm": base, "task": TASKS[0], "calibration": "log_probability"}
    plain = classify(files[0], texts, lm=base, task=TASKS[0])
    found = classify(files[0], texts, **together)
    expected = restated([list(each.loglikelihoods.values()) for each in plain], "log_probability")
    for calibrated, wanted in zip(found, expected, strict=True):
        assert same_up_to_a_constant(list(calibrated.loglikelihoods.values()), wanted)
    assert len(classify(files[0], texts * 2, **together)) == 6
    with pytest.raises(UserError, match="calibration compares a task's documents: it needs two or more"):
        classify(files[0], texts[:1], **together)


def test_what_can_not_be_calibrated_is_one_line(base, files, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="calibration is 'batch', expected 'probability', 'log_probability', "):
        SPTLM.from_loaded(base, calibration="batch")
    for counts in ("3", "3+0", "3+-1", "3+x", "3+inf", "3+nan"):
        with pytest.raises(UserError, match="as positive numbers in the labels' order"):
            SPTLM.from_loaded(base, calibration=counts)
    with pytest.raises(UserError, match="from the record of what was learned, and that does not say it for all: give"):
        SPTLM.from_loaded(base, prompt=files[0], calibration="label_prior")
    with pytest.raises(UserError, match="from the record of what was learned, and there is none: give their"):
        SPTLM.from_loaded(base, calibration="label_prior").loglikelihood([asking(0, "ab", " c")], disable_tqdm=True)
    with pytest.raises(UserError, match=r"by the label counts 3\+4, of 2 labels, the task '\w+' has 7 choices: give"):
        evaluated(SPTLM.from_loaded(base, calibration="3+4"), limit=2)
    lm = SPTLM.from_loaded(base, prompt=files[0], calibration="probability", batch_size="auto")
    own = [asking(number, text, f" {text}") for number, text in enumerate(("ab", "cd"))]
    with pytest.raises(UserError, match="the choices of the task 't' differ from document to document"):
        lm.loglikelihood(own, disable_tqdm=True)
    with pytest.raises(UserError, match="is for choices, the task asks for new text"):
        lm.generate_until([request("generate_until", ("The river", {"until": ["."]}))])
    with pytest.raises(UserError, match="is for choices, the task asks for whole texts"):
        lm.loglikelihood_rolling([request("loglikelihood_rolling", ("The river",))])
    with pytest.raises(UserError, match="depend on all documents that are scored: leave --use_cache out"):
        evaluated(lm, limit=2, use_cache=str(tmp_path / "answers"))
    monkeypatch.setattr(SPTLM, "world_size", 2)
    with pytest.raises(UserError, match="the answers to all documents in one process"):
        SPTLM.from_loaded(base, calibration="probability")
