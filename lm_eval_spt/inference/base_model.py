"""Base models by name: ``mini`` ships with the package, everything else is a folder, a GGUF file or a Hub id."""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import TYPE_CHECKING, Any, cast

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.paths import model_path
from lm_eval_spt.inference.gguf import find_gguf

if TYPE_CHECKING:
    from torch.nn import Embedding
    from transformers import PreTrainedTokenizerBase


def ensure_available(
    name: str,
    revision: str | None = None,
    gguf_file: str | None = None,
    dtype: Any = None,
    *,
    role: str = "base model",
) -> str:
    """Return what ``from_pretrained`` understands after making sure that there is such a model.

    Only the model's configuration is fetched: that fails at once, where loading would retry an unreachable Hub for a
    minute. A GGUF file is fetched and unpacked.

    Args:
        name: ``mini``, a folder, a GGUF file, or a Hub id.
        revision: of the Hub's repository.
        gguf_file: the GGUF file's name in the folder or repository.
        dtype: of the weights that are unpacked from a GGUF file.
        role: what it is, in words.

    Raises:
        UserError: neither a folder nor a model that the Hub, or the local cache of it, has; a GGUF file that is not
            there or can not be read.
    """
    from huggingface_hub import snapshot_download

    if (gguf := find_gguf(name, gguf_file, revision)) is not None:
        return str(gguf.unpacked(dtype))
    path = model_path(name)
    if not os.path.isdir(path):
        try:
            snapshot_download(path, revision=revision, allow_patterns="config.json")
        except (OSError, ValueError) as error:
            raise cannot_load(name, error, role) from error
    return path


def usual_dtype(
    name: str, revision: str | None = None, device: str | None = None, *, trust_remote_code: bool = False
) -> str:
    """Return what a base model is computed in where nothing else is asked for.

    That is bfloat16 for a checkpoint that is stored so, unless the device is slower with it; else float32. Gradients
    of a checkpoint that is stored in float16 would vanish in it.

    Args:
        name: ``mini``, a folder, a GGUF file (whose weights are unpacked to float32), or a Hub id.
        revision: of the Hub's repository.
        device: such as ``cpu`` or ``cuda:1``; default: the best that is here.
        trust_remote_code: whether the model's configuration may be code that it brings along.

    Raises:
        UserError: there is no such model, or its configuration can not be read.
    """
    from lm_eval_spt.inference.products import is_slower_in_bfloat16

    if name.endswith(".gguf") or not _is_stored_in_bfloat16(name, revision, trust_remote_code):
        return "float32"
    on_cpu = meant_device(device).partition(":")[0] == "cpu"
    return "float32" if on_cpu and is_slower_in_bfloat16() else "bfloat16"


@functools.cache  # many runs of a sweep have one base model
def _is_stored_in_bfloat16(name: str, revision: str | None, trust_remote_code: bool) -> bool:
    import torch
    from transformers import AutoConfig

    path = ensure_available(name, revision)
    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise cannot_load(name, error) from error
    return (config.dtype or config.get_text_config().dtype) in (torch.bfloat16, "bfloat16")


def available_device(device: str | None) -> str:
    """Return the wanted device, or what :func:`meant_device` has for it.

    Raises:
        UserError: there is no such device; HFLM would take another one.
    """
    import torch

    device = meant_device(device)
    here = ["cpu"]
    if torch.accelerator.is_available() and (best := torch.accelerator.current_accelerator()) is not None:
        here += [best.type, *(f"{best.type}:{index}" for index in range(torch.accelerator.device_count()))]
    if device not in here:
        raise UserError(f"the device is {device!r}, which is not here: expected {' or '.join(here)}")
    return device


def meant_device(device: str | None) -> str:
    """Return the device, here or not, that is meant: none and ``cuda``, HFLM's default, mean the best that is here.

    ``cuda:0``, the default of ``lm_eval``, means the processor where there is no GPU, as in HFLM.
    """
    import torch

    if torch.cuda.is_available():
        return device or "cuda"
    if device in (None, "cuda"):
        return "mps" if torch.backends.mps.is_available() else "cpu"
    return "cpu" if device == "cuda:0" else str(device)


def load_embedding(
    name: str, gguf_file: str | None = None, *, trust_remote_code: bool = False
) -> tuple[Embedding, PreTrainedTokenizerBase]:
    """Load what a prompt's vectors are compared with.

    Args:
        name, gguf_file: the base model, as for :func:`ensure_available`.
        trust_remote_code: whether to run the code that the model brings along, if it does.

    Returns:
        Its input-embedding module `[V, d]`, on the CPU, and its tokenizer.

    Raises:
        UserError: there is no such model, or it can not be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    path = ensure_available(name, gguf_file=gguf_file)
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise cannot_load(name, error) from error
    return cast("Embedding", model.get_input_embeddings()), tokenizer


def bitsandbytes_config(settings: dict[str, Any], dtype: Any = None) -> Any:
    """Return what makes transformers load a model with quantised weights.

    Args:
        settings: arguments of ``BitsAndBytesConfig``, such as ``{"load_in_4bit": True}``. NormalFloat, as QLoRA has it
            (Dettmers et al. 2023), is the default kind of 4 bits.
        dtype: what is computed in, if it is named.

    Raises:
        UserError: bitsandbytes is not here, or the settings are not understood.
    """
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("a quantised base model needs bitsandbytes, which is not installed: pip install bitsandbytes")
    if settings.get("load_in_4bit"):
        settings = {"bnb_4bit_quant_type": "nf4", **settings}
        if dtype not in (None, "auto"):
            settings = {"bnb_4bit_compute_dtype": dtype, **settings}
    try:
        return BitsAndBytesConfig(**settings)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"the base model can not be quantised with {settings}: {error}") from error


def cannot_load(name: str, error: Exception, role: str = "base model") -> UserError:
    """Return the error to raise where base model `name` can not be loaded because of `error`."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return UserError(
        f"the {role} {name!r} can not be loaded ({reason}): expected 'mini', a folder, a .gguf file, or a Hub id "
        "that can be reached or is in the local cache"
    )
