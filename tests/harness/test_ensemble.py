"""Ensembles of prompts, held to the prompts' own answers, averaged in plain Python."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.harness.evaluate import evaluate_prompts
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.harness.many_prompts import ManyPromptsLM
from lm_eval_spt.harness.prompted_lm import PromptedLM
from lm_eval_spt.prompt.ensemble import Ensemble, read_prompt
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.models import random_prompt_files
from tests.helpers.requests import loglikelihoods, request, rolling_loglikelihoods

TASK = "mini_topics_eng_Latn"
KINDS = [("suffix", 2), ("suffix", 5), ("prefix", 3), ("both", 4)]


@pytest.fixture(scope="module")
def base() -> SPTLM:
    return SPTLM(pretrained="mini", device="cpu", batch_size="auto")


@pytest.fixture(scope="module")
def files(base, tmp_path_factory) -> list[str]:
    return random_prompt_files(base.model, tmp_path_factory.mktemp("prompts"), *KINDS)


def evaluated(lm, limit: int = 8, **options) -> dict:
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    return simple_evaluate(
        model=lm, tasks=[TASK], task_manager=manager, limit=limit, log_samples=True, bootstrap_iters=0, **options
    )


def answers(results: dict) -> dict[int, list[float]]:
    return {sample["doc_id"]: loglikelihoods(sample) for sample in results["samples"][TASK]}


def mean_of(members: list[list[float]], average: str) -> list[float]:
    """The choices' values for one document, up to a constant: [members][choices] -> [choices]."""
    if average == "log_probability":
        return [sum(column) / len(members) for column in zip(*members, strict=True)]
    shares = []
    for values in members:
        total = sum(math.exp(value - max(values)) for value in values)
        shares.append([math.exp(value - max(values)) / total for value in values])
    return [math.log(sum(column) / len(members)) for column in zip(*shares, strict=True)]


@pytest.mark.parametrize("average", ["probability", "log_probability"])
def test_an_ensemble_is_the_average_of_its_members(base, files, average):
    single = [answers(evaluated(SPTLM.from_loaded(base, prompt=file, batch_size="auto"))) for file in files]
    named = {"prompt": "+".join(files), "ensemble": average, "device": "cpu", "batch_size": "auto"}
    results = evaluated("spt", model_args=named)
    right = 0
    for sample in results["samples"][TASK]:
        found, number = loglikelihoods(sample), sample["doc_id"]
        expected = mean_of([of_member[number] for of_member in single], average)
        shift = found[0] - expected[0]
        assert found == pytest.approx([value + shift for value in expected], abs=2e-4)
        right += max(range(7), key=expected.__getitem__) == int(sample["target"])
    assert results["results"][TASK]["acc,none"] == pytest.approx(right / 8)
    config = results["config"]
    assert config["prompt_name"] == "suffix0+suffix1+prefix2+both3" and config["prompt_length"] == 14
    members = config["prompt_metadata"]["ensemble"]["members"]
    assert [member["digest"] for member in members] == [SoftPrompt.load(file).digest for file in files]


def test_texts_without_choices(base, files):
    """Each is a document by itself: with probabilities its likelihood is the mean of its likelihoods."""
    lm = ManyPromptsLM.from_loaded(base, prompts=[read_prompt("+".join(files[:2]))], batch_size="auto")
    texts = ["The river rises.", "A goal in the final"]
    asked = [request("loglikelihood", (text, " word"), number) for number, text in enumerate(texts)]
    whole = [request("loglikelihood_rolling", (text,), number) for number, text in enumerate(texts)]
    single = [SPTLM.from_loaded(base, prompt=file, batch_size="auto") for file in files[:2]]
    found = [value for value, _ in lm.loglikelihood(asked, disable_tqdm=True)]
    expected = [[value for value, _ in each.loglikelihood(asked, disable_tqdm=True)] for each in single]
    rolling, of_each = rolling_loglikelihoods(lm, whole), [rolling_loglikelihoods(each, whole) for each in single]
    for combined, members in ((found, expected), (rolling, of_each)):
        # The logarithm of 1, the mean share of the only choice, plus the mean of the totals.
        assert combined == pytest.approx([sum(column) / 2 for column in zip(*members, strict=True)], abs=1e-4)
    with pytest.raises(UserError, match="gives log-likelihoods, the task generates text: use one prompt"):
        lm.generate_until([request("generate_until", ("The river", {"until": ["."]}))])


def test_evaluate_gives_an_ensemble_results_of_its_own(base, files, tmp_path):
    names = [files[0], "+".join(files[:2])]
    paths = evaluate_prompts(names, [TASK], str(tmp_path), base=base, limit=5, log_samples=True)
    assert len({path.parent for path in paths}) == 2
    found = json.loads(paths[1].read_text())
    expected = evaluated("spt", limit=5, model_args={"prompt": names[1], "device": "cpu", "batch_size": "auto"})
    assert found["results"][TASK]["acc,none"] == expected["results"][TASK]["acc,none"]
    assert found["config"]["prompt_digest"] == expected["config"]["prompt_digest"]
    assert found["config"]["model_args"]["ensemble"] == "probability"
    assert evaluate_prompts(names, [TASK], str(tmp_path), base=base, limit=5, log_samples=True) == paths  # done already
    pattern = str(Path(files[0]).with_name("suffix*.safetensors"))
    (same,) = evaluate_prompts([pattern], [TASK], str(tmp_path), base=base, limit=5, ensemble="probability")
    assert json.loads(same.read_text())["config"]["prompt_digest"] == found["config"]["prompt_digest"]
    (other,) = evaluate_prompts([names[1]], [TASK], str(tmp_path), base=base, limit=5, ensemble="log_probability")
    assert other.parent != paths[1].parent


def test_a_cache_of_answers_belongs_to_one_ensemble(files, tmp_path):
    named = {"device": "cpu", "batch_size": "auto", "pretrained": "mini", "ensemble": "log_probability"}
    both, cache = "+".join(files[:2]), str(tmp_path / "answers")
    first = evaluated("spt", model_args=named | {"prompt": both}, use_cache=cache)
    again = evaluated("spt", model_args=named | {"prompt": both}, use_cache=cache)
    assert answers(again) == answers(first)
    with pytest.raises(UserError, match="was written with another prompt"):
        evaluated("spt", model_args=named | {"prompt": "+".join(files[1:3])}, use_cache=cache)
    probabilities = named | {"prompt": both, "ensemble": "probability"}
    with pytest.raises(UserError, match="depends on all choices of a document, and --use_cache keeps single answers"):
        evaluated("spt", model_args=probabilities, use_cache=str(tmp_path / "others"))


@pytest.mark.parametrize("average", ["probability", "log_probability"])
def test_a_request_that_the_harness_repeats_counts_once(base, files, average):
    """It repeats the last one where processes have unequal shares of the documents."""
    lm = ManyPromptsLM.from_loaded(base, prompts=[read_prompt("+".join(files[:2]), average)], batch_size="auto")
    asked = [
        request("loglikelihood", ("The river rises.", f" {word}"), 0) for word in ("geography", "sports", "travel")
    ]
    expected = lm.loglikelihood(asked, disable_tqdm=True)
    assert lm.loglikelihood([*asked, *[asked[-1]] * 4], disable_tqdm=True) == [*expected, *[expected[-1]] * 4]


def test_the_harness_s_own_loop_answers_for_all_prompts_if_that_is_asked_for(base, files, monkeypatch):
    lm = ManyPromptsLM.from_loaded(base, prompts=[read_prompt("+".join(files[:2]))], batch_size="auto", fast=False)
    calls = []
    loop = PromptedLM._hflm_loop
    monkeypatch.setattr(PromptedLM, "_hflm_loop", lambda *given: calls.append(given) or loop(*given))
    asked = [request("loglikelihood", ("The river rises.", f" {word}"), 0) for word in ("geography", "sports")]
    found = lm.loglikelihood(asked, disable_tqdm=True)
    assert len(calls) == 2
    fast = ManyPromptsLM.from_loaded(base, prompts=[read_prompt("+".join(files[:2]))], batch_size="auto")
    expected = [value for value, _ in fast.loglikelihood(asked, disable_tqdm=True)]
    assert [value for value, _ in found] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("names", [slice(1), slice(2), slice(2, 3)])
def test_thinking_is_for_generation(base, files, names):
    given = {"batch_size": "auto", "enable_thinking": True, "think_end_token": "</t>"}
    lm = ManyPromptsLM.from_loaded(base, prompts=[read_prompt("+".join(files[names]))], **given)
    with pytest.raises(UserError, match="enable_thinking=True is for tasks that generate text"):
        lm.loglikelihood([request("loglikelihood", ("The river", " rises"))], disable_tqdm=True)


def test_what_makes_no_ensemble_is_one_line(files, tmp_path):
    one, other = SoftPrompt.load(files[0]), SoftPrompt.load(files[1])
    with pytest.raises(UserError, match="two prompts or more, each once: found 'suffix0', 'suffix0'"):
        read_prompt(f"{files[0]}+{files[0]}")
    with pytest.raises(UserError, match=r"no prompt file matches '.*nothing\*'"):
        read_prompt(f"{files[0]}+{tmp_path}/nothing*")
    with pytest.raises(UserError, match="is one prompt: join several by"):
        read_prompt(files[0], "probability")
    with pytest.raises(UserError, match="ensemble is 'vote', expected 'probability' or 'log_probability'"):
        read_prompt("+".join(files[:2]), "vote")
    elsewhere = SoftPrompt(other.vectors, {**other.metadata, "embedding_fingerprint": "another"})
    with pytest.raises(UserError, match="different entries of embedding_fingerprint"):
        Ensemble((one, elsewhere))
    wider = SoftPrompt(other.vectors.repeat(1, 2), {"placement": "suffix"})
    with pytest.raises(UserError, match="have vectors of size 256 and vectors of size 512: expected one kind and size"):
        Ensemble((one, wider))


def test_a_plus_in_the_name_of_a_file_or_folder_joins_nothing(base, files, tmp_path):
    odd = tmp_path / "a+b.safetensors"
    odd.write_bytes(Path(files[0]).read_bytes())
    assert read_prompt(str(odd)).digest == SoftPrompt.load(files[0]).digest
    folder = tmp_path / "base+prompt"
    folder.mkdir()
    for number, file in enumerate(files[:2]):
        (folder / f"{number}.safetensors").write_bytes(Path(file).read_bytes())
    assert len(read_prompt(f"{folder}/*.safetensors").members) == 2
    assert len(evaluate_prompts([f"{folder}/*.safetensors"], [TASK], str(tmp_path / "out"), base=base, limit=1)) == 2
