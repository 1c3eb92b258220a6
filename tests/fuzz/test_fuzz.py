"""Whatever a reader is given, it reads or refuses it: a short run of ``make fuzz``, and what failed in long ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from transformers import AutoConfig

from lm_eval_spt.analysis.arms import training_record
from lm_eval_spt.analysis.results import read_run, read_runs
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.evaluate import evaluate_prompts
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference.base_model import load_embedding, model_path
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train.config import TrainingConfig
from tests.fuzz.readers import READERS
from tests.fuzz.run import FAILURES, Failure, Outcome, give, run, workplace
from tests.helpers.models import random_prompt
from tests.helpers.results import write_prompt, write_results

KEPT = [(folder.name, file.name) for folder in sorted(FAILURES.glob("*")) for file in sorted(folder.iterdir())]


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(name):
    with workplace() as folder:
        outcome = run(READERS[name], 300, seed=1, folder=folder)
    assert outcome.read + outcome.refused == 300
    # Damage that never gets past a parser, or is never noticed, would test nothing.
    assert outcome.read >= 10 and outcome.refused >= 50


@pytest.mark.parametrize(("name", "file"), KEPT)
def test_what_failed_once_is_refused_now(name, file):
    with workplace() as folder:
        give(READERS[name], (FAILURES / name / file).read_bytes(), folder, Outcome())


def test_the_fuzzer_notices(tmp_path, monkeypatch):
    """A reader that trusts an entry of its file is found out."""
    monkeypatch.setattr("tests.fuzz.run.FAILURES", tmp_path)

    def careless(path: Path) -> float:
        prompt = SoftPrompt.load(path)
        return 1 / prompt.metadata.get("tuned_share", 1)

    reader = READERS["prompt"]
    with pytest.raises(Failure, match="prompt: (ZeroDivisionError|TypeError)") as caught, workplace() as folder:
        run(type(reader)("prompt", reader.kind, reader.file, reader.seeds, careless), 5000, 0, folder)
    kept = Path(str(caught.value).rpartition(" ")[2])
    assert kept.parent == tmp_path / "prompt"
    with pytest.raises((ZeroDivisionError, TypeError)):
        careless(kept)


# -- sizes -----------------------------------------------------------------------------------------------------------


def sparse(path: Path, start: bytes, size: int) -> Path:
    """A file of any size that takes no room."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return path


def test_a_size_is_checked_before_anything_is_read(tmp_path):
    terabyte = 2**40
    header = json.dumps(
        {"prompt_embeddings": {"dtype": "F32", "shape": [2**19, 2**19], "data_offsets": [0, terabyte]}}
    ).encode()
    start = struct.pack("<Q", len(header)) + header
    prompt = sparse(tmp_path / "p.safetensors", start, len(start) + terabyte)
    with pytest.raises(UserError, match=r"has 1,099,511,627,\d+ bytes, a prompt has at most 1,073,741,824"):
        SoftPrompt.load(prompt)
    long_header = sparse(tmp_path / "h.safetensors", struct.pack("<Q", 2**29), 2**29 + 8)
    with pytest.raises(UserError, match="a header of 536,870,912 bytes, at most 16,777,216"):
        SoftPrompt.load(long_header)
    results = sparse(tmp_path / "results_x.json", b"{", terabyte)
    with pytest.raises(UserError, match="at most 134,217,728 are read"):
        read_runs(results)
    settings = sparse(tmp_path / "run.yaml", b"lr: 1", terabyte)
    with pytest.raises(UserError, match="--config .* at most 65,536 are read"):
        TrainingConfig.from_settings({"config": str(settings)})
    (tmp_path / "adapter").mkdir()
    sparse(tmp_path / "adapter" / "adapter_config.json", b"{", terabyte)
    with pytest.raises(UserError, match="at most 16,777,216 are read"):
        SoftPrompt.load(tmp_path / "adapter")


def test_yaml_that_would_unfold_to_gigabytes_is_refused_without_unfolding(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]" for number in range(1, 12)]
    (tmp_path / "run.yaml").write_text("\n".join([*lines, "model: *a11"]))
    with pytest.raises(UserError, match="unknown settings: a0"):
        TrainingConfig.from_settings({"config": str(tmp_path / "run.yaml")})
    (tmp_path / "run.yaml").write_text("lr: &a [1]\nseed: *a\nmodel: &b [" + "[1], " * 9 + "]\n")
    with pytest.raises(UserError, match="lr is a list, expected a number"):
        TrainingConfig.from_settings({"config": str(tmp_path / "run.yaml")})


# -- what a file names is not followed -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/etc", "../../x", "/", "..", "a/../../b", "\0"])
def test_a_base_model_elsewhere_is_not_opened_because_a_prompt_names_it(name, tmp_path, monkeypatch):
    monkeypatch.setattr("lm_eval_spt.harness.prompted_lm.ensure_available", lambda *_: pytest.fail("it was looked at"))
    file = tmp_path / "p.safetensors"
    SoftPrompt(random_prompt(AnyModel).vectors, {"base_model": name}).save(file)
    for use in (
        lambda: SPTLM(prompt=str(file)),
        lambda: evaluate_prompts([str(file)], ["mini_topics_eng_Latn"], str(tmp_path / "out")),
    ):
        with pytest.raises(UserError, match="outside of the current one.*give it with pretrained="):
            use()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.safetensors"]


def test_a_base_model_below_the_current_folder_is_opened(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(model_path("mini"))
    prompt = random_prompt(SPTLM(pretrained="mini", device="cpu").model, length=2)
    own = SoftPrompt(prompt.vectors, {**prompt.metadata, "base_model": str(tmp_path / "copy")}, name="own")
    (tmp_path / "copy").mkdir()
    for path in Path(model_path("mini")).iterdir():
        (tmp_path / "copy" / path.name).hardlink_to(path)
    monkeypatch.chdir(tmp_path)
    assert SPTLM(prompt=own, device="cpu").base_model_name == str(tmp_path / "copy")
    linked = SoftPrompt(prompt.vectors, {"base_model": "models/mine"})
    with pytest.raises(UserError, match="outside of the current one"):  # the link leads elsewhere
        SPTLM(prompt=linked, device="cpu")
    assert SPTLM(pretrained="models/mine", prompt=linked, device="cpu").prompt is linked  # the user says so


class AnyModel:
    """Enough of a model for a prompt of 4 vectors of size 8."""

    @staticmethod
    def get_input_embeddings():
        import torch

        return torch.nn.Embedding(64, 8)


@pytest.mark.parametrize("revision", ["../../../../etc", "/etc", "a/../b", "a b", ""])
def test_a_revision_is_no_path(revision):
    metadata = {"base_model": "owner/name", "base_model_revision": revision}
    if not revision:
        assert SoftPrompt(random_prompt(AnyModel).vectors, metadata).metadata["base_model_revision"] == ""
        return
    with pytest.raises(UserError, match="base_model_revision .*, expected a name in git"):
        SoftPrompt(random_prompt(AnyModel).vectors, metadata)


def test_results_do_not_make_a_prompt_elsewhere_be_opened(tmp_path, monkeypatch):
    prompt = write_prompt(tmp_path / "elsewhere" / "p.safetensors")
    file = write_results(tmp_path / "here" / "results", {"eng_Latn": 0.5}, prompt=prompt, prompt_metadata=None)
    (tmp_path / "here").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "here")
    assert training_record(read_run(file)) == {}
    monkeypatch.chdir(tmp_path)
    assert training_record(read_run(file))["shots"] == 8


def test_a_task_of_a_results_file_is_no_path(tmp_path):
    for family in ("../../etc/x", "/etc/x", "a\\b"):
        file = write_results(tmp_path, {"eng_Latn": 0.5}, family=family)
        with pytest.raises(UserError, match="can not be told from the name"):
            read_runs(file)


def test_a_model_that_brings_code_is_not_run(tmp_path):
    """Nothing turns on `trust_remote_code`, and nothing asks whether to."""
    config = json.loads(AutoConfig.from_pretrained(model_path("mini")).to_json_string())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(Path(model_path("mini")) / name)
    prompt = SoftPrompt(random_prompt(AnyModel).vectors)
    for use in (
        lambda: SPTLM(pretrained=str(tmp_path), prompt=prompt, device="cpu"),
        lambda: load_embedding(str(tmp_path)),
    ):
        with pytest.raises(UserError, match="contains custom code"):
            use()
    assert not (tmp_path / "ran").exists()


def test_an_error_can_not_steer_the_terminal():
    assert str(UserError("a\x1b[2Jb\nc\u202ed")) == "a\\x1b[2Jb\\nc\\u202ed"
    assert len(str(UserError("x" * 10**6))) < 2000
