"""The prompt file: what is written, what is read back, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import resource
import struct
import tempfile
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.prompt.ensemble import Ensemble
from lm_eval_spt.prompt.soft_prompt import SoftPrompt

BASICS = {"format_version", "prompt_kind", "hidden_size", "num_virtual_tokens", "placement"}


def raw_file(tensors: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file, put together by hand: header length, JSON header, bytes."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata is not None else {}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def raw_prompt(metadata: dict[str, str] | None = None) -> bytes:
    vectors = np.arange(6, dtype="<f4").reshape(2, 3)
    return raw_file({"prompt_embeddings": ("F32", [2, 3], vectors.tobytes())}, metadata)


def with_json(text: str) -> bytes:
    return raw_prompt({"format": "pt", "lm_eval_spt": text})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def prompts(draw: st.DrawFn) -> SoftPrompt:
    length, size = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    values = draw(st.lists(numbers, min_size=length * size, max_size=length * size))
    own_keys = BASICS | {"base_model", "base_model_revision", "embedding_fingerprint"}
    metadata = draw(st.dictionaries(st.text().filter(lambda key: key not in own_keys), json_values, max_size=4))
    metadata |= {"placement": draw(st.sampled_from(["prefix", "suffix"])), "base_model": draw(st.text())}
    if length > 1 and draw(st.booleans()):
        metadata |= {"placement": "both", "num_prefix_tokens": draw(st.integers(1, length - 1))}
    return SoftPrompt(torch.tensor(values).reshape(length, size), metadata)


# -- writing and reading -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(prompt=prompts())
def test_round_trip_keeps_vectors_metadata_and_digest(prompt: SoftPrompt) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "new" / "eng.v2.safetensors"
        prompt.save(path)
        again = SoftPrompt.load(path)
    assert again.vectors.numpy().tobytes() == prompt.vectors.numpy().tobytes()
    assert again.vectors.shape == prompt.vectors.shape
    assert {key: again.metadata[key] for key in prompt.metadata} == prompt.metadata
    assert set(again.metadata) == set(prompt.metadata) | BASICS
    assert (again.name, again.placement, again.digest) == ("eng.v2", prompt.placement, prompt.digest)


def test_the_same_prompt_is_the_same_file(tmp_path: Path) -> None:
    """safetensors by itself puts the metadata in another order each time."""
    contents = set()
    for _ in range(50):
        SoftPrompt(torch.ones(2, 3), {"seed": 3}).save(tmp_path / "p.safetensors")
        contents.add((tmp_path / "p.safetensors").read_bytes())
    assert len(contents) == 1


def test_file_is_what_the_format_says(tmp_path: Path) -> None:
    """Read the bytes without any library that knows the format."""
    vectors = torch.randn(4, 6).t()  # not contiguous
    SoftPrompt(vectors, {"placement": "suffix", "seed": 3}).save(tmp_path / "p.safetensors")
    data = (tmp_path / "p.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    strings = header.pop("__metadata__")
    assert strings.keys() == {"format", "lm_eval_spt"} and strings["format"] == "pt"
    assert json.loads(strings["lm_eval_spt"]) == {
        "format_version": 1, "prompt_kind": "embeddings", "hidden_size": 4, "num_virtual_tokens": 6,
        "placement": "suffix", "seed": 3,
    }  # fmt: skip
    assert header.keys() == {"prompt_embeddings"}
    assert header["prompt_embeddings"]["dtype"] == "F32" and header["prompt_embeddings"]["shape"] == [6, 4]
    stored = np.frombuffer(data[8 + size :], dtype="<f4").reshape(6, 4)
    assert np.array_equal(stored, vectors.numpy())


@pytest.mark.parametrize(("name", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16), ("F32", torch.float32)])
def test_every_usual_dtype_becomes_float32(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    vectors = torch.randn(2, 3).to(dtype)
    content = vectors.view(torch.uint8).numpy().tobytes()
    (tmp_path / "p.safetensors").write_bytes(raw_file({"prompt_embeddings": (name, [2, 3], content)}))
    prompt = SoftPrompt.load(tmp_path / "p.safetensors")
    assert prompt.vectors.dtype == torch.float32 and torch.equal(prompt.vectors, vectors.float())
    assert prompt.metadata == {} and prompt.placement == "prefix"


def test_prompt_does_not_change_with_what_it_was_made_of() -> None:
    parameter, metadata = torch.nn.Parameter(torch.zeros(2, 3)), {"hyperparameters": {"lr": 1}}
    prompt = SoftPrompt(parameter, metadata)
    with torch.no_grad():
        parameter += 1
    metadata["hyperparameters"]["lr"] = 2
    assert prompt.vectors.sum() == 0 and not prompt.vectors.requires_grad
    assert prompt.metadata["hyperparameters"] == {"lr": 1}


def test_digest_depends_on_what_changes_a_score_and_on_nothing_else() -> None:
    vectors = torch.arange(6.0).reshape(2, 3)
    digest = SoftPrompt(vectors).digest
    assert digest == hashlib.sha256(b'["prefix", 2, 3]' + struct.pack("<6f", *range(6))).hexdigest()
    assert digest == SoftPrompt(vectors, {"seed": 1, "placement": "prefix"}, name="other").digest
    others = [SoftPrompt(vectors, {"placement": "suffix"}), SoftPrompt(vectors.reshape(3, 2)), SoftPrompt(vectors + 1)]
    longer = vectors.reshape(3, 2)
    others += [SoftPrompt(longer, {"placement": "both", "num_prefix_tokens": before}) for before in (1, 2)]
    assert len({digest, *(other.digest for other in others)}) == 6


def test_how_many_vectors_stand_before_the_text() -> None:
    vectors = torch.zeros(3, 2)
    assert SoftPrompt(vectors).num_prefix_tokens == 3
    assert SoftPrompt(vectors, {"placement": "suffix"}).num_prefix_tokens == 0
    assert SoftPrompt(vectors, {"placement": "both", "num_prefix_tokens": 2}).num_prefix_tokens == 2
    with pytest.raises(UserError, match="expected two vectors at least"):
        SoftPrompt(torch.zeros(1, 2), {"placement": "both", "num_prefix_tokens": 1})


def test_the_file_of_a_deep_prefix_is_what_the_format_says(tmp_path: Path) -> None:
    key_values = torch.randn(3, 2, 1, 5, 4)
    SoftPrompt(key_values, {"seed": 3}).save(tmp_path / "p.safetensors")
    data = (tmp_path / "p.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    assert json.loads(header.pop("__metadata__")["lm_eval_spt"]) == {
        "format_version": 1, "prompt_kind": "kv", "num_layers": 3, "num_kv_heads": 1, "head_dim": 4,
        "num_virtual_tokens": 5, "placement": "prefix", "seed": 3,
    }  # fmt: skip
    assert header.keys() == {"key_values"} and header["key_values"]["shape"] == [3, 2, 1, 5, 4]
    assert data[8 + size :] == key_values.numpy().tobytes()
    again = SoftPrompt.load(tmp_path / "p.safetensors")
    assert torch.equal(again.vectors, key_values) and (again.kind, again.length) == ("kv", 5)
    assert again.digest != SoftPrompt(key_values.view(3, 2, 1, 4, 5)).digest
    for name, shape in (("key_values", [2, 3]), ("prompt_embeddings", [1, 2, 1, 1, 3])):
        content = raw_file({name: ("F32", shape, bytes(24))})
        (tmp_path / "wrong.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=f"wrong.safetensors: {name} has shape .*not a soft prompt"):
            SoftPrompt.load(tmp_path / "wrong.safetensors")


def test_prompt_of_another_model_does_not_fit() -> None:
    prompt = SoftPrompt(torch.zeros(2, 8), {"base_model": "a/first", "embedding_fingerprint": "0" * 16}, name="eng")
    prompt.check_fits((8,), "0" * 16, "copy/of-first")
    with pytest.raises(UserError, match="'eng' has vectors of size 8, but 'b/second' takes vectors of size 16"):
        prompt.check_fits((16,), "0" * 16, "b/second")
    with pytest.raises(UserError, match="trained for 'a/first' .* not for 'b/second'"):
        prompt.check_fits((8,), "f" * 16, "b/second")
    SoftPrompt(torch.zeros(2, 8)).check_fits(
        (8,), "f" * 16, "b/second"
    )  # says nothing of its model: nothing to compare


# -- a write happens whole or not at all -------------------------------------------------------------------------------


def test_failing_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    SoftPrompt(torch.zeros(1, 2)).save(path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # a disk that is full after 4 KB
    try:
        with pytest.raises(UserError, match="can not be written"):
            SoftPrompt(torch.zeros(100, 100)).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.safetensors"
    SoftPrompt(torch.zeros(1, 2)).save(path)
    before = path.read_bytes()

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        SoftPrompt(torch.ones(1, 2)).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("target", ["file/p.safetensors", "folder", "."])
def test_unwritable_target_is_one_line(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="can not be written") as caught:
        SoftPrompt(torch.zeros(1, 2)).save(tmp_path / target)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


# -- what is refused ---------------------------------------------------------------------------------------------------

VECTOR = ("F32", [1, 2], struct.pack("<2f", 1, 2))
BAD_FILES = {
    "empty": (b"", "is empty"),
    "text": (b"just a text file", "is not a safetensors file"),
    "pickle": (pickle.dumps([1.0]), "is not a safetensors file"),
    "cut in the header": (raw_prompt()[:40], "is truncated"),
    "cut in the data": (raw_prompt()[:-1], "truncated or damaged"),
    "bytes after the end": (raw_prompt() + b"\0", "truncated or damaged"),
    "huge header": (struct.pack("<Q", 2**60) + raw_prompt()[8:], "1,152,921,504,606,846,976"),
    "huge tensor": (raw_file({"prompt_embeddings": ("F32", [2**40, 2**40], b"")}), "truncated or damaged"),
    "no tensor": (raw_file({}), "found none"),
    "another tensor": (raw_file({"weight": VECTOR, "bias": VECTOR}), "'bias'.*not a soft prompt"),
    "one tensor too many": (raw_file({"prompt_embeddings": VECTOR, "head": VECTOR}), "'head'.*not a soft prompt"),
    "rank 1": (raw_file({"prompt_embeddings": ("F32", [2], VECTOR[2])}), r"shape \[2\]"),
    "rank 3": (raw_file({"prompt_embeddings": ("F32", [1, 1, 2], VECTOR[2])}), r"shape \[1, 1, 2\]"),
    "no vectors": (raw_file({"prompt_embeddings": ("F32", [0, 2], b"")}), r"shape \[0, 2\]"),
    "vectors of nothing": (raw_file({"prompt_embeddings": ("F32", [2, 0], b"")}), r"shape \[2, 0\]"),
    "float64": (raw_file({"prompt_embeddings": ("F64", [1, 1], b"\0" * 8)}), "dtype F64"),
    "integers": (raw_file({"prompt_embeddings": ("I32", [1, 2], b"\0" * 8)}), "dtype I32"),
    "NaN": (raw_file({"prompt_embeddings": ("F32", [2, 1], struct.pack("<2f", 0, math.nan))}), "vector 1 .*1 of 2"),
    "infinity": (
        raw_file({"prompt_embeddings": ("F32", [2, 1], struct.pack("<2f", -math.inf, 0))}),
        "vector 0 .*1 of 2",
    ),
    "half NaN": (raw_file({"prompt_embeddings": ("BF16", [1, 1], b"\xff\xff")}), "vector 0 "),
    "metadata not JSON": (with_json("{"), "not JSON"),
    "metadata nested without end": (with_json("[" * 100_000), "not JSON"),
    "metadata with NaN": (with_json('{"seed": NaN}'), "not valid JSON"),
    "metadata no object": (with_json("[1]"), "JSON list, expected an object"),
    "another hidden size": (with_json('{"hidden_size": 4}'), "hidden_size 4, but the tensor has 3"),
    "another length": (with_json('{"num_virtual_tokens": 3}'), "num_virtual_tokens 3, but the tensor has 2"),
    "unknown placement": (with_json('{"placement": "infix"}'), "'infix', expected 'prefix' or 'suffix' or 'both'"),
    "placement no text": (with_json('{"placement": ["prefix"]}'), "expected 'prefix' or 'suffix' or 'both'"),
    "both sides without a number": (with_json('{"placement": "both"}'), "num_prefix_tokens is None for 2 vectors"),
    "all before and none after": (
        with_json('{"placement": "both", "num_prefix_tokens": 2}'),
        "is 2 for 2 .*expected a whole number from 1 to 1",
    ),
    "number no number": (with_json('{"placement": "both", "num_prefix_tokens": true}'), "num_prefix_tokens is True"),
    "suffix with a part before": (with_json('{"placement": "suffix", "num_prefix_tokens": 1}'), "expected 0"),
    "base model no text": (with_json('{"base_model": 3}'), "base_model 3, expected a string"),
    "newer version": (with_json('{"format_version": 2}'), "is 2, .*upgrade"),
    "odd version": (with_json('{"format_version": "1"}'), "format_version is '1'"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_is_refused_in_one_line_that_names_it(tmp_path: Path, case: str) -> None:
    content, message = BAD_FILES[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        SoftPrompt.from_pretrained(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(
    position=st.floats(0, 1, exclude_max=True),
    value=st.integers(0, 255),
    cut=st.none() | st.floats(0, 1, exclude_max=True),
)
def test_damaged_file_is_read_or_refused_but_never_crashes(position: float, value: int, cut: float | None) -> None:
    data = bytearray(with_json('{"format_version": 1, "placement": "suffix", "base_model": "x/y"}'))
    data[int(position * len(data))] = value
    if cut is not None:
        del data[int(cut * len(data)) :]
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(data)
        file.flush()
        try:
            prompt = SoftPrompt.load(file.name)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert cut is None and prompt.vectors.isfinite().all()


@pytest.mark.parametrize(
    "name", ["gone.safetensors", "./gone", "../gone/prompt", "gone", "/gone/x", "~/gone/x", "~gone/x", "a/b/c"]
)
def test_missing_path_is_never_taken_for_a_repository(name: str) -> None:
    with pytest.raises(UserError, match="no such file: give a"):
        SoftPrompt.from_pretrained(name)


def test_construction_refuses_what_could_not_be_written() -> None:
    with pytest.raises(UserError, match="vector 1"):
        SoftPrompt(torch.tensor([[0.0], [math.nan]]))
    with pytest.raises(UserError, match="not valid JSON"):
        SoftPrompt(torch.zeros(1, 1), {"validation": {"loss": math.nan}})
    with pytest.raises(UserError, match="not valid JSON"):
        SoftPrompt(torch.zeros(1, 1), {"dtype": torch.float32})


# -- folders and the Hub -----------------------------------------------------------------------------------------------


def test_folder_with_one_prompt_file_is_that_prompt(tmp_path: Path) -> None:
    folder = tmp_path / "my-prompt"
    prompt = SoftPrompt(torch.ones(2, 3), {"seed": 5})
    prompt.save(folder / "anything.safetensors")
    loaded = SoftPrompt.from_pretrained(folder)
    assert loaded.digest == prompt.digest and loaded.name == "my-prompt" and loaded.metadata["seed"] == 5
    prompt.save(folder / "another.safetensors")
    with pytest.raises(UserError, match="holds 2 .safetensors files"):
        SoftPrompt.from_pretrained(folder)


def test_unreachable_hub_names_both_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="'owner/name': no such file, and the Hub.* could not be reached") as caught:
        SoftPrompt.from_pretrained("owner/name")
    assert "\n" not in str(caught.value)


def test_unreachable_hub_is_no_obstacle_to_what_was_fetched_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "models--owner--name"
    SoftPrompt(torch.ones(2, 3), {"seed": 5}).save(cache / "snapshots" / "abc" / "p.safetensors")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    loaded = SoftPrompt.from_pretrained("owner/name")
    assert loaded.name == "name" and loaded.metadata["seed"] == 5


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the repository ``owner/name``; whatever is fetched from it must be meant to be."""
    repository = tmp_path / "repository"
    repository.mkdir()

    def model_info(_: Any, name: str, revision: str | None = None, timeout: float | None = None) -> Any:
        files = [huggingface_hub.hf_api.RepoSibling(rfilename=path.name) for path in repository.iterdir()]
        return type("Info", (), {"siblings": files})

    def snapshot_download(name: str, revision: str | None = None, allow_patterns: list[str] | None = None) -> str:
        assert name == "owner/name" and revision == "v1" and allow_patterns
        copy = tmp_path / "cache"
        copy.mkdir()
        for pattern in allow_patterns:
            for path in repository.glob(pattern):
                (copy / path.name).write_bytes(path.read_bytes())
        return str(copy)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return repository


@pytest.mark.parametrize("form", ["file", "peft"])
def test_repository_is_read_without_fetching_anything_else(hub: Path, tmp_path: Path, form: str) -> None:
    prompt = SoftPrompt(torch.ones(2, 3), {"seed": 5})
    prompt.to_peft(hub) if form == "peft" else prompt.save(hub / "p.safetensors")
    (hub / "adapter_model.bin").write_bytes(b"a pickle")
    loaded = SoftPrompt.from_pretrained("owner/name", revision="v1")
    assert loaded.name == "name" and loaded.digest == prompt.digest and loaded.metadata["seed"] == 5
    expected = {"adapter_config.json", "adapter_model.safetensors"} if form == "peft" else {"p.safetensors"}
    assert {path.name for path in (tmp_path / "cache").iterdir()} == expected


def test_repository_of_a_whole_model_is_refused_before_any_download(hub: Path, tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (hub / name).write_bytes(b"many gigabytes")
    with pytest.raises(UserError, match="holds 2 .safetensors files"):
        SoftPrompt.from_pretrained("owner/name", revision="v1")
    assert not (tmp_path / "cache").exists()


def test_a_base_model_that_is_given_takes_the_place_of_the_recorded_one() -> None:
    """Its revision and file are the recorded model's own; how texts begin belongs to the prompt."""
    record = {"base_model": "a/b", "base_model_revision": "v1", "gguf_file": "x.gguf"}
    first = SoftPrompt(torch.zeros(1, 4), record | {"hyperparameters": {"add_bos_token": False}})
    recorded = {"pretrained": "a/b", "revision": "v1", "gguf_file": "x.gguf", "add_bos_token": False}
    assert first.loading() == recorded
    assert first.loading("c/d") == {"pretrained": "c/d", "add_bos_token": False}
    assert SoftPrompt(torch.zeros(1, 4)).loading() == {}

    other = SoftPrompt(torch.ones(1, 4), first.metadata | {"gguf_file": "y.gguf"})
    nameless = SoftPrompt(torch.ones(1, 4), {"hyperparameters": {"add_bos_token": False}})
    with pytest.raises(UserError, match="different settings of loading"):
        Ensemble((first, other)).loading()
    for members in ((first, other), (first, nameless)):
        assert Ensemble(members).loading("c/d") == first.loading("c/d")
