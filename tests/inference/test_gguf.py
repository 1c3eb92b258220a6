"""GGUF files as base models: the same numbers as from a folder, unpacked once, and what is said of bad ones."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from lm_eval.models.huggingface import HFLM
from packaging.version import Version
from transformers import AutoTokenizer

from lm_eval_spt import cli
from lm_eval_spt.cli.train import main as train_main
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference.base_model import ensure_available
from lm_eval_spt.inference.gguf import GGUFFile, cache_folder
from lm_eval_spt.prompt.compose import compose
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.gguf import Pair, byte_level_tokenizer, tensors_of, write_gguf, write_pair
from tests.helpers.paths import ROOT
from tests.helpers.requests import request

pytest.importorskip("gguf")

TASK = "mini_topics_eng_Latn"
PAIRS = [("The river", " sports"), ("A goal in the final", " the old town hall"), ("", "Don't stop")]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """An empty cache directory for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    return write_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture
def own(pair, tmp_path, monkeypatch) -> Path:
    """The GGUF file under a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return pair.file


def answers(lm: HFLM) -> list[float]:
    requests = [request("loglikelihood", pair, number) for number, pair in enumerate(PAIRS)]
    return [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]


def ways(pair: Pair) -> dict[str, dict]:
    """The ways to name the file, as arguments of the model class."""
    in_folder = {"pretrained": str(pair.file.parent), "gguf_file": pair.file.name}
    return {"path": {"pretrained": str(pair.file)}, "name": in_folder, "packed": in_folder | {"dequantize": False}}


# -- the same model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["path", "name", "packed"])
def test_a_gguf_file_gives_the_numbers_of_the_same_model_as_a_folder(pair, way):
    lm = SPTLM(device="cpu", dtype="float32", **ways(pair)[way])
    expected = answers(HFLM(pretrained=str(pair.folder), device="cpu", dtype="float32"))
    assert answers(lm) == pytest.approx(expected, abs=1e-4)
    assert lm.fingerprint == SPTLM(pretrained=str(pair.folder), device="cpu").fingerprint
    assert lm.get_model_info()["gguf_sha256"] == lm.gguf.sha256


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
def test_the_weights_are_those_of_the_folder_in_every_dtype(pair, dtype):
    packed = SPTLM(pretrained=str(pair.file), device="cpu", dtype=dtype).model
    plain = HFLM(pretrained=str(pair.folder), device="cpu", dtype="float32" if dtype == "auto" else dtype).model
    values, expected = packed.state_dict(), plain.state_dict()
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert value.dtype == expected[name].dtype and torch.equal(value, expected[name]), name


@pytest.mark.parametrize(("architecture", "split"), [("llama", "default"), ("llama", "llama-bpe"), ("gpt2", "gpt-4o")])
def test_the_tokenizer_splits_texts_as_the_file_says(pair, tmp_path, architecture, split):
    if architecture == "gpt2" and Version(transformers.__version__) < Version("5.20"):
        pytest.skip("transformers gives a GPT-2 file special tokens that it does not name")
    write_gguf(tmp_path / "x.gguf", {}, byte_level_tokenizer(), architecture=architecture, split=split)
    direct = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    file = GGUFFile(tmp_path / "x.gguf")
    model = SPTLM(pretrained=str(pair.folder), device="cpu").model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GGUFFile, "_read", lambda self, dtype: (model, direct))
        kept = AutoTokenizer.from_pretrained(file.unpacked("float32"))
    for text in ("  Don't DON'T stop\n\n at 123456 !!", "The river<s>", "Fußball สวัสดี"):
        assert kept(text)["input_ids"] == direct(text)["input_ids"]
    assert kept.special_tokens_map == direct.special_tokens_map
    assert len(kept) == byte_level_tokenizer().get_vocab_size()  # some of transformers' classes add a token


def test_a_prompt_is_refused_where_the_embeddings_stay_packed(pair):
    """transformers keeps them so for architectures of which it has a kernel at hand; here the module is put in."""
    utils = pytest.importorskip("transformers.integrations.gguf.utils")
    lm = SPTLM(device="cpu", **ways(pair)["packed"])
    prompt = SoftPrompt(torch.ones(1, 64), {"base_model": "x"})
    lm.use(prompt)
    lm.model.set_input_embeddings(utils.GgufEmbedding(316, 64, 8))
    with pytest.raises(UserError, match="dequantize=False"):
        lm.use(prompt)


# -- the same everywhere -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["path", "name"])
def trained(request, pair, tmp_path_factory) -> tuple[Path, str]:
    """The folder in which a prompt was trained, with the model file in `models/`, and how the file was named."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(pair.file.parent, folder / "models")
    base = {"path": ["--model", "models/tiny.gguf"], "name": ["--model", "models", "--gguf-file", "tiny.gguf"]}
    few = ["--shots", "2", "--validation-shots", "1", "--epochs", "2", "--prompt-length", "3", "--lr", "0.05"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        flags = ["--task", TASK, *few, "--device", "cpu"]
        assert train_main([*base[request.param], *flags, "--output", "p.safetensors"]) == 0
        assert train_main(["--model", str(pair.folder), *flags, "--output", "plain.safetensors"]) == 0
    return folder, request.param


def test_a_prompt_records_file_and_digest_and_is_the_one_that_the_folder_gives(trained, pair):
    folder, way = trained
    prompt, plain = (SoftPrompt.load(folder / name) for name in ("p.safetensors", "plain.safetensors"))
    assert torch.allclose(prompt.vectors, plain.vectors, atol=1e-5)
    assert prompt.metadata["gguf_sha256"] == GGUFFile(pair.file).sha256
    named = {"path": ("models/tiny.gguf", None), "name": ("models", "tiny.gguf")}[way]
    assert (prompt.metadata["base_model"], prompt.metadata["gguf_file"]) == named
    assert "gguf_file" not in plain.metadata
    both = compose([prompt, prompt], "mean").metadata
    assert (both["base_model"], both.get("gguf_file")) == named
    assert both["gguf_sha256"] == prompt.metadata["gguf_sha256"]


def test_every_command_finds_the_model_by_the_record(trained, pair, monkeypatch, capsys, tmp_path):
    folder, way = trained
    monkeypatch.chdir(folder)
    expected = SPTLM(pretrained=str(pair.folder), prompt="plain.safetensors", device="cpu", dtype="float32")
    assert answers(SPTLM(prompt="p.safetensors", device="cpu")) == pytest.approx(answers(expected), abs=1e-3)

    for prompt in ("p.safetensors", "plain.safetensors"):
        more = [] if prompt == "p.safetensors" else ["--model-args", f"pretrained={pair.folder}"]
        monkeypatch.setattr(sys, "stdin", io.StringIO("The river ran.\nA goal in the final!\n"))
        assert cli.main(["classify", prompt, "--device", "cpu", "--format", "jsonl", *more]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    for packed, plain in zip(lines[:2], lines[2:], strict=True):
        assert packed["probabilities"] == pytest.approx(plain["probabilities"], abs=1e-3)

    options = ["--tasks", TASK, "--limit", "6", "--device", "cpu"]
    assert cli.main(["evaluate", "--prompts", "p.safetensors", *options, "--output", str(tmp_path / "packed")]) == 0
    same = ["--model-args", f"pretrained={pair.folder}"]
    plain_flags = ["--prompts", "plain.safetensors", *options, *same, "--output", str(tmp_path / "plain")]
    assert cli.main(["evaluate", *plain_flags]) == 0
    packed, plain = (
        json.loads(next((tmp_path / name).rglob("results_*.json")).read_text()) for name in ("packed", "plain")
    )
    assert packed["results"][TASK]["acc,none"] == plain["results"][TASK]["acc,none"]
    assert packed["config"]["gguf_sha256"] == GGUFFile(pair.file).sha256 and "gguf_sha256" not in plain["config"]


def test_every_command_takes_the_file_by_its_name(trained, pair, monkeypatch, capsys, tmp_path):
    folder, _ = trained
    monkeypatch.chdir(tmp_path)  # where the recorded paths lead nowhere
    prompt, place = str(folder / "p.safetensors"), str(pair.file.parent)
    reports = []
    for base in (["--base-model", place, "--gguf-file", "tiny.gguf"], ["--base-model", str(pair.folder)]):
        assert cli.main(["inspect", prompt, *base, "--json"]) == 0
        reports.append(json.loads(capsys.readouterr().out)["nearest_tokens"])
    assert reports[0] == reports[1]
    monkeypatch.setattr(sys, "stdin", io.StringIO("The river ran.\n"))
    named = ["--model", place, "--gguf-file", "tiny.gguf", "--device", "cpu"]
    assert cli.main(["classify", prompt, *named]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    options = ["--tasks", TASK, "--limit", "2", "--device", "cpu", "--output", "out"]
    named = ["--model-args", f"pretrained={place}", "--gguf-file", "tiny.gguf"]
    assert cli.main(["evaluate", "--prompts", prompt, *options, *named]) == 0
    assert len(list(Path("out").rglob("results_*.json"))) == 1
    assert cli.main(["inspect", prompt, "--gguf-file", "tiny.gguf"]) == 1
    assert "--base-model" in capsys.readouterr().err.splitlines()[-1]


def sweep_file(path: Path, model: str, **settings: str) -> Path:
    small = {"epochs": 1, "shots": 1, "validation_shots": 1, "prompt_length": 2, "device": "cpu"}
    content = {
        "output": str(path.parent / "out"), "targets": [TASK], "baselines": {"none": [TASK]}, "evaluate": {"limit": 3},
        "settings": small | {"model": model, "task": TASK} | settings,
        "arms": {"frozen": {}, "all": {"tune": "all"}, "lora": {"tune": "lora"}},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_sweep_runs_on_a_gguf_file(pair, tmp_path, monkeypatch, capsys):
    shutil.copytree(pair.file.parent, tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    file = sweep_file(tmp_path / "s.yaml", "models", gguf_file="tiny.gguf")
    assert cli.main(["sweep", str(file), "--dry-run"]) == 0
    assert cli.main(["sweep", str(file)]) == 0, capsys.readouterr().err
    results = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "out/results").rglob("results*")}
    assert set(results) == {"frozen", "all", "lora", "none"}
    digests = {name: content["config"].get("gguf_sha256") for name, content in results.items()}
    digest = GGUFFile(pair.file).sha256
    assert digests == {"frozen": digest, "lora": digest, "none": digest, "all": None}
    assert SoftPrompt.load(tmp_path / "out/prompts/all.safetensors").metadata.get("gguf_file") is None


def test_another_file_than_the_recorded_one_is_noticed(trained, monkeypatch, caplog):
    folder, _ = trained
    monkeypatch.chdir(folder)
    tensors = tensors_of(folder / "models/tiny.gguf")
    tensors["output_norm.weight"] = tensors["output_norm.weight"] + 1  # not what the prompt's fingerprint looks at
    write_gguf(folder / "other.gguf", tensors, byte_level_tokenizer())
    with caplog.at_level(logging.WARNING):
        SPTLM(pretrained="models/tiny.gguf", prompt="p.safetensors", device="cpu")
        assert "another GGUF file" not in caplog.text
        SPTLM(pretrained="other.gguf", prompt="p.safetensors", device="cpu")
    assert "another GGUF file" in caplog.text


def test_a_prompt_opens_no_file_elsewhere(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for base, gguf_file in (("models", str(pair.file)), ("models", "../../x.gguf"), (str(pair.file), None)):
        prompt = SoftPrompt(torch.ones(1, 64), {"base_model": base, "gguf_file": gguf_file})
        with pytest.raises(UserError, match="outside of the current"):
            SPTLM(prompt=prompt, device="cpu")


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_a_file_is_unpacked_once_for_each_dtype(own, monkeypatch):
    calls = []
    read = GGUFFile._read
    monkeypatch.setattr(GGUFFile, "_read", lambda self, dtype: calls.append(dtype) or read(self, dtype))
    for dtype in ("float32", "auto", None, torch.float32, "bfloat16", "bfloat16"):
        folder = GGUFFile(own).unpacked(dtype)
        assert folder.parent == cache_folder() and (folder / "model.safetensors").is_file()
    assert calls == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("damage", ["torn", "flipped", "missing", "no manifest", "nonsense", "a file"])
def test_a_damaged_cache_is_made_anew(own, damage):
    folder = GGUFFile(own).unpacked()
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "torn":
        weights.write_bytes(whole[:-100])
    elif damage == "flipped":
        weights.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    elif damage == "missing":
        (folder / "tokenizer.json").unlink()
    elif damage == "a file":
        shutil.rmtree(folder)
        folder.write_text("no folder")
    else:
        (folder / "manifest.json").unlink()
        if damage == "nonsense":
            (folder / "manifest.json").write_text('{"files": {"model.safetensors": 3}}')
    assert GGUFFile(own).unpacked() == folder
    assert weights.read_bytes() == whole and (folder / "tokenizer.json").is_file()
    assert not [path for path in folder.parent.iterdir() if path.suffix != ".lock" and path != folder]


def test_two_processes_at_once_get_the_same_folder(own, pair):
    code = (
        "import sys; from pathlib import Path; from lm_eval_spt.inference.gguf import GGUFFile\n"
        "read = GGUFFile._read\n"
        "GGUFFile._read = lambda self, dtype: print('reads', flush=True) or read(self, dtype)\n"
        "folder = GGUFFile(Path(sys.argv[1])).unpacked()\n"
        "from transformers import AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained(folder); print(folder)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(own)]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert printed[0][-1] == printed[1][-1]
    assert sum("reads" in lines for lines in printed) == 1


def test_what_can_not_be_written_leaves_nothing(own, monkeypatch):
    def full(self, folder, **options):
        Path(folder).mkdir()
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedModel.save_pretrained", full)
        with pytest.raises(UserError, match="No space left.*XDG_CACHE_HOME") as caught:
            GGUFFile(own).unpacked()
    assert "\n" not in str(caught.value)
    assert not [path for path in cache_folder().iterdir() if path.suffix != ".lock"]
    (cache_folder().parent.parent / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_folder().parent.parent / "file"))
    with pytest.raises(UserError, match="can not be unpacked into"):
        GGUFFile(own).unpacked()


# -- bad input ---------------------------------------------------------------------------------------------------------


def without(tensors: dict, name: str) -> dict:
    return {key: value for key, value in tensors.items() if key != name}


BAD = {
    "torn header": (lambda pair, path: path.write_bytes(pair.file.read_bytes()[:200]), "can not be read"),
    "torn tokens": (lambda pair, path: path.write_bytes(pair.file.read_bytes()[:3000]), "can not be read"),
    "torn weights": (lambda pair, path: path.write_bytes(pair.file.read_bytes()[:-5000]), "can not be read"),
    "empty": (lambda pair, path: path.write_bytes(b""), "can not be read"),
    "no GGUF": (lambda pair, path: path.write_bytes(b"PK\x03\x04" * 100), "can not be read"),
    "architecture": (
        lambda pair, path: write_gguf(path, tensors_of(pair.file), byte_level_tokenizer(), architecture="zebra"),
        "zebra",
    ),
    "tokenizer": (lambda pair, path: write_gguf(path, tensors_of(pair.file), None), "the tokenizer in"),
    "weight": (
        lambda pair, path: write_gguf(
            path, without(tensors_of(pair.file), "blk.1.ffn_up.weight"), byte_level_tokenizer()
        ),
        "lacks 1 weights",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_line_says_what_is_wrong_with_a_file(pair, kind, tmp_path, capsys):
    make, expected = BAD[kind]
    file = tmp_path / "bad.gguf"
    make(pair, file)
    before = set(cache_folder().iterdir()) if cache_folder().is_dir() else set()
    out = tmp_path / "out"
    flags = ["--task", TASK, "--device", "cpu", "--output", str(out / "p.safetensors")]
    assert train_main(["--model", str(file), *flags]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ") and expected in message and str(file) in message
    assert not list(out.glob("*.safetensors"))
    assert {path for path in set(cache_folder().iterdir()) - before if path.suffix != ".lock"} == set()


@pytest.mark.parametrize(
    ("model", "gguf_file", "expected"),
    [
        ("{folder}", "tiny.gguf", "there is no GGUF file"),
        ("{packed}", "other.gguf", "there is no GGUF file"),
        ("{packed}/other.gguf", None, "there is no GGUF file"),
        ("{packed}/tiny.gguf", "tiny.gguf", "is a GGUF file itself"),
        ("no/model", "tiny.gguf", "can not be had"),
        ("{packed}/gone", "tiny.gguf", "can not be had"),
    ],
)
def test_one_line_says_that_there_is_no_such_file(pair, model, gguf_file, expected, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = model.format(folder=pair.folder, packed=pair.file.parent)
    flags = ["--model", model, *(["--gguf-file", gguf_file] if gguf_file else [])]
    flags += ["--task", TASK, "--device", "cpu", "--output", str(tmp_path / "p.safetensors")]
    assert train_main(flags) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ") and expected in message
    with pytest.raises(UserError, match=expected):
        ensure_available(model, gguf_file=gguf_file)


def test_a_sweep_whose_base_is_gone_says_so_in_one_line_for_each_run(tmp_path, capsys):
    file = sweep_file(tmp_path / "s.yaml", str(tmp_path / "gone.gguf"))
    assert cli.main(["sweep", str(file), "--throughput", "1"]) == 1
    printed = capsys.readouterr()
    failed = [line for line in printed.out.splitlines() if line.startswith("failed ")]
    assert len(failed) == 4 and all("there is no GGUF file" in line and "gone.gguf" in line for line in failed)
    assert printed.err.startswith("error: 4 of 4 runs failed") and printed.err.count("\n") == 1


def test_without_the_package_one_line_says_what_to_install(pair, tmp_path, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "gguf" else found(name, *more))
    flags = ["--model", str(pair.file), "--task", TASK, "--output", str(tmp_path / "p.safetensors")]
    assert train_main(flags) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {pair.file} needs the package gguf, which is not installed: pip install 'lm_eval_spt[gguf]'"
    )
