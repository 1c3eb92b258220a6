"""Real weights, in float32 and bfloat16: the numbers of HFLM and PEFT, one evaluation, one resumed run, GGUF files.

float32 is held to 1e-4, or to 1e-5 of a log-likelihood. In bfloat16 batches of another shape round otherwise, in HFLM
as here: there both are held to what the same texts give in float32, and :data:`BFLOAT16` says how much further off this
package may be.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.harness.evaluate import evaluate_prompts
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference.gguf import GGUFFile
from lm_eval_spt.inference.probe import forget
from lm_eval_spt.prompt.fingerprint import embedding_fingerprint
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train.base import base_of
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.loop import train
from tests.helpers.requests import loglikelihoods, request
from tests.helpers.scoring import CLOSE, peft_lm, values
from tests.helpers.training import Stopped, stopped_after
from tests.real.fetch import SOURCES

pytestmark = pytest.mark.real

BFLOAT16 = 1.5
"""Largest mean error of this package in bfloat16, as a multiple of HFLM's."""

BATCHES = 0.5
"""How far a log-likelihood in bfloat16 may move with its batch."""

TASKS = ["mini_topics_eng_Latn", "mini_topics_deu_Latn"]
DOCUMENTS = 3
"""How many documents of a task are scored."""

MIXED = "Hello, wörld:  12345 — 你好, สวัสดี, مرحبا\n\n\tan 👩‍🚀's   e = mc²"


@dataclass(frozen=True)
class Real:
    """A real model, loaded.

    Attributes:
        name: of the model.
        folder: with all models.
        lm: this package's model class, without a prompt.
    """

    name: str
    folder: Path
    lm: SPTLM

    @property
    def precise(self) -> bool:
        return self.lm.model.dtype == torch.float32


CASES = [(name, dtype) for name in SOURCES for dtype in ("float32", "bfloat16")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def real(request, real_models) -> Iterator[Real]:
    name, dtype = request.param
    lm = SPTLM(pretrained=str(real_models / name), dtype=dtype, device="cpu", batch_size=8)
    yield Real(name, real_models, lm)


@pytest.fixture(scope="module")
def asked(real) -> list[Instance]:
    """The requests of a few documents; each is asked as the harness asks it."""
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    found: list[Instance] = []
    for task in manager.load(TASKS)["tasks"].values():
        task.build_all_requests(limit=DOCUMENTS)
        found += task.instances
    return [request("loglikelihood", instance.args, number) for number, instance in enumerate(found)]


@pytest.fixture(scope="module")
def precise(real, asked) -> dict[str, list[float]]:
    """Log-likelihoods in float32 from HFLM, without a prompt and from PEFT: what bfloat16 is held to."""
    model = AutoModelForCausalLM.from_pretrained(real.folder / real.name, dtype=torch.float32)
    models = {
        "plain": HFLM(pretrained=model, tokenizer=real.lm.tokenizer, batch_size=8),
        "prompt": peft_lm(model, real.lm.tokenizer, random_prompt(real.lm, "prefix")),
    }
    return {name: values(lm.loglikelihood(asked, disable_tqdm=True)) for name, lm in models.items()}


def random_prompt(lm: SPTLM, placement: str, seed: int = 0) -> SoftPrompt:
    """Return a prompt of tokens' embeddings, moved a little: what training starts from."""
    embedding = lm.model.get_input_embeddings()
    generator = torch.Generator().manual_seed(seed)
    rows = embedding(torch.randint(1000, 20000, (8,), generator=generator)).detach().float()
    vectors = rows + 0.1 * rows.std() * torch.randn(rows.shape, generator=generator)
    metadata = {"placement": placement, "base_model": "real", "embedding_fingerprint": embedding_fingerprint(embedding)}
    return SoftPrompt(vectors, metadata, name=f"{placement}{seed}")


def around(lm: SPTLM, **settings) -> SPTLM:
    return SPTLM.from_loaded(lm, batch_size=8, **settings)


def assert_close(real: Real, found: list[float], expected: list[float], precise: list[float]) -> None:
    """Hold log-likelihoods to those of another program; in bfloat16 both are held to those in float32."""
    found_, expected_, precise_ = map(np.array, (found, expected, precise))
    off = np.abs(found_ - expected_)
    print(f"off by {off.max():.2e} absolute, {(off / np.abs(expected_)).max():.2e} relative")
    if real.precise:
        assert found == pytest.approx(expected, **CLOSE)
        return
    own, other = (np.abs(each - precise_).mean() for each in (found_, expected_))
    print(f"mean error {own:.3f}, the other's {other:.3f}, of {np.abs(precise_).mean():.1f}")
    assert own < BFLOAT16 * other


def test_rounding_is_not_taken_for_a_fault(real):
    """Whatever texts a run has, a model that can be read in the fastest way is."""
    documents = list(TaskManager(include_path=str(tasks_folder())).load(TASKS[:1])["tasks"][TASKS[0]].test_docs())
    choices = [
        real.lm.tokenizer.encode(f" {word}", add_special_tokens=False) for word in ("travel", "science/technology")
    ]
    for number in range(0, 60, 5):
        forget(real.lm.model)
        texts = [real.lm.tok_encode(document["text"]) for document in documents[number : number + 5]]
        known = real.lm.try_out([(text, choice) for text in texts for choice in choices], None)
        assert (known.layout, known.cache) == ("tree", True)


def assert_same(real: Real, found: list[float], expected: list[float]) -> None:
    """Hold log-likelihoods to those of the same model in other batches."""
    print(f"off by {np.abs(np.subtract(found, expected)).max():.2e}")
    assert found == pytest.approx(expected, **(CLOSE if real.precise else {"abs": BATCHES}))


def test_a_plain_model_gives_the_numbers_of_hflm(real, asked, precise):
    hflm = HFLM(pretrained=real.lm.model, tokenizer=real.lm.tokenizer, batch_size=8)
    expected = values(hflm.loglikelihood(asked, disable_tqdm=True))
    found = values(real.lm.loglikelihood(asked, disable_tqdm=True))
    assert_close(real, found, expected, precise["plain"])


def test_a_prompt_gives_the_numbers_of_peft(real, asked, precise):
    prompt = random_prompt(real.lm, "prefix")
    expected = values(peft_lm(real.lm.model, real.lm.tokenizer, prompt).loglikelihood(asked, disable_tqdm=True))
    found = values(around(real.lm, prompt=prompt).loglikelihood(asked, disable_tqdm=True))
    assert_close(real, found, expected, precise["prompt"])


def test_evaluate_writes_what_lm_eval_says(real, tmp_path):
    for placement in ("prefix", "suffix"):
        for seed in (0, 1):
            random_prompt(real.lm, placement, seed).save(tmp_path / f"{placement}{seed}.safetensors")
    files = sorted(map(str, tmp_path.glob("*.safetensors")))
    options = {"limit": DOCUMENTS, "batch_size": "8"}
    written = evaluate_prompts(files, TASKS[:1], str(tmp_path / "out"), base=real.lm, log_samples=True, **options)
    for file, path in zip(files, written, strict=True):
        manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
        lm = around(real.lm, prompt=file)
        said = simple_evaluate(model=lm, tasks=TASKS[:1], task_manager=manager, limit=DOCUMENTS, bootstrap_iters=0)
        scores = json.loads(path.read_text())["results"][TASKS[0]]
        samples = [json.loads(line) for line in next(path.parent.glob("samples_*.jsonl")).read_text().splitlines()]
        for sample, other in zip(samples, said["samples"][TASKS[0]], strict=True):
            found, expected = (loglikelihoods(each) for each in (sample, other))
            assert_same(real, found, expected)
        if real.precise:
            for metric in ("acc,none", "macro_f1,none"):
                assert scores[metric] == said["results"][TASKS[0]][metric]


def test_a_resumed_run_gives_the_same_prompt(real, tmp_path, monkeypatch):
    base = base_of(real.lm)
    dtype = str(real.lm.model.dtype).removeprefix("torch.")

    def settings(name: str, **more) -> TrainingConfig:
        few = {"epochs": 2, "shots": 1, "validation_shots": 1, "prompt_length": 4, "batch_size": 4}
        place = {"model": str(real.folder / real.name), "task": TASKS[0], "output": str(tmp_path / name)}
        return TrainingConfig(**place, **few, dtype=dtype, checkpoint_steps=1, **more)

    whole = train(settings("whole.safetensors"), base)
    assert whole is not None
    with monkeypatch.context() as patch:
        stopped_after(3, patch)
        with pytest.raises(Stopped):
            train(settings("stopped.safetensors"), base)
    assert not (tmp_path / "stopped.safetensors").exists()
    resumed = train(settings("stopped.safetensors", resume=True), base)
    assert resumed is not None and torch.equal(resumed.vectors, whole.vectors)
    assert SoftPrompt.load(tmp_path / "stopped.safetensors").digest == whole.digest


def test_a_gguf_file_is_the_model_in_the_folder(real, asked, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(real.folder / "cache"))
    file = real.folder / f"{real.name}.gguf"
    lm = SPTLM(pretrained=str(file), dtype=str(real.lm.model.dtype).removeprefix("torch."), device="cpu", batch_size=8)
    found, expected = lm.model.state_dict(), real.lm.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    texts = [MIXED, *(text for instance in asked[::7] for text in instance.args)]
    original = AutoTokenizer.from_pretrained(real.folder / real.name)
    assert [lm.tokenizer(text)["input_ids"] for text in texts] == [original(text)["input_ids"] for text in texts]
    assert lm.tokenizer.chat_template == original.chat_template and len(lm.tokenizer) == len(original)
    configs = [each.model.config.to_dict() | {"_name_or_path": ""} for each in (lm, real.lm)]
    assert configs[0] == configs[1]
    assert GGUFFile(file).sha256 == SOURCES[real.name].sha256 == lm.get_model_info()["gguf_sha256"]


def test_a_chat_template_is_applied_as_by_hflm(real):
    if real.lm.tokenizer.chat_template is None:
        pytest.skip(f"{real.name} is a base model, without a chat template")
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    options = {"tasks": TASKS[:1], "task_manager": manager, "limit": DOCUMENTS, "bootstrap_iters": 0}
    precise = AutoModelForCausalLM.from_pretrained(real.folder / real.name, dtype=torch.float32)
    models = [HFLM(pretrained=model, tokenizer=real.lm.tokenizer, batch_size=8) for model in (real.lm.model, precise)]
    answers = []
    for lm in (real.lm, *models):
        samples = simple_evaluate(model=lm, apply_chat_template=True, **options)["samples"][TASKS[0]]
        answers.append([value for sample in samples for value in loglikelihoods(sample)])
    assert_close(real, *answers)
