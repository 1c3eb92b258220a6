"""A soft prompt: trained vectors and the record of where they come from.

Neighbours: :mod:`~lm_eval_spt.prompt.metadata` (the record), :mod:`~lm_eval_spt.prompt.file_format` (the prompt file),
:mod:`~lm_eval_spt.prompt.peft` (PEFT's adapter folders), :mod:`~lm_eval_spt.prompt.hub_download` (the Hub).
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lm_eval_spt.common.errors import UserError, error_context
from lm_eval_spt.common.files import is_below_current_folder, write
from lm_eval_spt.common.offloading import input_device
from lm_eval_spt.prompt import file_format, peft
from lm_eval_spt.prompt.fingerprint import embedding_fingerprint
from lm_eval_spt.prompt.hub_download import download, is_repository
from lm_eval_spt.prompt.metadata import TASK_TYPES, Placement, PromptKind, TaskType, checked_metadata

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """P trained virtual tokens of a base model, and their record.

    Most prompts are vectors in the model's input-embedding space. A deep prefix (prefix tuning, Li and Liang 2021,
    arXiv 2101.00190; P-tuning v2) is keys and values of every layer before the text: a KV cache that was learned.

    Vectors and metadata are copied and checked on construction: a soft prompt that exists is one that can be written.

    Attributes:
        vectors: `[P, d]`, or of a deep prefix `[layers, 2, kv_heads, P, head_dim]` (keys, then values); stored as
            float32, contiguous, on the CPU.
        metadata: the record, see :mod:`lm_eval_spt.prompt.metadata`; empty for a file of another tool.
        name: stem of the file, or name of the folder or Hub repository it was read from; empty when new.

    Raises:
        UserError: vectors of another shape, or that hold NaN or infinity; metadata that is not JSON,
            contradicts the vectors, names an unknown placement or is of a newer format version.
    """

    vectors: Tensor = field(repr=False)
    metadata: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        # The clone matters: a trainer hands over its parameter and goes on changing it.
        vectors = self.vectors.detach().to("cpu", torch.float32).contiguous().clone()
        file_format.check_vectors(vectors)
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "metadata", checked_metadata(self.metadata, file_format.sizes(vectors)))

    @property
    def length(self) -> int:
        """Number of virtual tokens, P."""
        return self.vectors.shape[-2]

    @property
    def hidden_size(self) -> int:
        """Size of each vector: d, the width of the base model's input embeddings; of a deep prefix that of a head."""
        return self.vectors.shape[-1]

    @property
    def kind(self) -> PromptKind:
        """``"embeddings"``, or ``"kv"`` for a deep prefix."""
        return file_format.kind_of(self.vectors)

    @property
    def size(self) -> tuple[int, ...]:
        """What belongs to a virtual token: `(d,)`, or `(layers, 2, kv_heads, head_dim)` of a deep prefix."""
        return (*self.vectors.shape[:-2], self.vectors.shape[-1])

    @property
    def placement(self) -> Placement:
        """``"prefix"``, ``"suffix"`` or ``"both"``; prefix, what PEFT does, where the metadata does not say."""
        return self.metadata.get("placement", "prefix")

    @property
    def base_model(self) -> str | None:
        """The base model that the metadata names, to be loaded where the user names none; None if there is none.

        Raises:
            UserError: it is a folder elsewhere: what a file names must not decide what is opened on this machine.
        """
        name, file = self.metadata.get("base_model"), self.metadata.get("gguf_file")
        place = os.path.join(name, file) if name and file else name
        if place is not None and not is_below_current_folder(place):
            raise UserError(
                f"the prompt {self.name!r} names {place[:200]!r} as its base model, a folder outside of the current "
                "one, which is not opened because a file says so: if you trust it, give it with pretrained=<folder>"
            )
        return name

    @property
    def num_prefix_tokens(self) -> int:
        """How many of the vectors, the first ones, stand before the text; the others stand after it."""
        if self.placement == "both":
            return self.metadata["num_prefix_tokens"]
        return self.length if self.placement == "prefix" else 0

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of all that can change a score: vectors, shape and placement, not the rest of the record."""
        before = [self.num_prefix_tokens] if self.placement == "both" else []
        kind = json.dumps([self.placement, *self.vectors.shape, *before])
        return hashlib.sha256(kind.encode() + self.vectors.numpy().tobytes()).hexdigest()

    def loading(self, pretrained: Any = None) -> dict[str, Any]:
        """Return arguments of the model class that load the base model as it was for training, where they are known.

        Args:
            pretrained: a base model in the place of the recorded one, whose revision and GGUF file then do not count.

        Raises:
            UserError: as :attr:`base_model` does, where that is needed.
        """
        hyperparameters = self.metadata.get("hyperparameters") or {}
        known = {"pretrained": pretrained, "add_bos_token": hyperparameters.get("add_bos_token")}
        if pretrained is None:
            known["pretrained"] = self.base_model
            known["revision"] = self.metadata.get("base_model_revision")
            known["gguf_file"] = self.metadata.get("gguf_file")
        return {name: value for name, value in known.items() if value is not None}

    def check_fits(self, size: tuple[int, ...], fingerprint: str, base_model: str) -> None:
        """Make sure that this prompt was trained for the model that is about to receive it.

        A prompt that records no fingerprint is only checked for its size; the caller decides whether to warn.

        Args:
            size: what the model takes for a virtual token of this kind, as :attr:`size` has it.
            fingerprint: :func:`~lm_eval_spt.prompt.fingerprint.embedding_fingerprint` of them.
            base_model: the model's name, for the message.

        Raises:
            UserError: another size or another fingerprint.
        """
        trained_for = self.metadata.get("base_model")
        advice = f"use {trained_for!r}" if trained_for else "use the base model it was trained for"
        if self.size != size:
            raise UserError(
                f"prompt {self.name!r} has {size_in_words(self.size)}, but {base_model!r} takes "
                f"{size_in_words(size)}: {advice}, or train a prompt for this model"
            )
        recorded = self.metadata.get("embedding_fingerprint")
        if recorded is not None and recorded != fingerprint:
            raise UserError(
                f"prompt {self.name!r} was trained for {trained_for!r} (embedding fingerprint {recorded}), not for "
                f"{base_model!r} (fingerprint {fingerprint}): {advice} in the revision it was trained for, or train a "
                "prompt for this model"
            )

    def inputs_embeds(self, model: PreTrainedModel, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Embed texts and put this prompt where it belongs: what ``model.generate(inputs_embeds=...)`` takes.

        Padding stays left of everything, so that it never falls between prompt and text. The mask that goes with the
        result is :meth:`attention_mask`'s.

        Args:
            model: the base model. Its input embedding is called as a module, because some (XGLM, Gemma) scale in it.
            ids: `[batch, time]`, token ids of the texts.
            attention_mask: `[batch, time]`, 0 at the padding and 1 at the text, for texts that are padded on the left.
                None: there is no padding.

        Returns:
            `[batch, P + time, d]`, in the dtype and on the device of the model's embeddings. Gradients flow to the
            embeddings, and to :attr:`vectors` where they require them.

        Raises:
            UserError: the prompt was trained for another model; ids or mask of another shape; padding that is not on
                the left.
        """
        embedding: Any = model.get_input_embeddings()
        base_model = getattr(model, "name_or_path", "") or type(model).__name__
        if self.kind == "kv":
            raise UserError(
                f"prompt {self.name!r} is a deep prefix, which is no embeddings: give the model what its method "
                "past_key_values returns"
            )
        self.check_fits((embedding.weight.shape[1],), embedding_fingerprint(embedding), base_model)
        if ids.dim() != 2:
            raise UserError(f"ids have shape {list(ids.shape)}, expected [batch, time]: give one row for each text")
        padding = [0] * len(ids)
        if attention_mask is not None:
            if attention_mask.shape != ids.shape:
                raise UserError(
                    f"the attention mask has shape {list(attention_mask.shape)} and the ids have {list(ids.shape)}, "
                    "expected the same: give the mask that the tokenizer returned with the ids"
                )
            _check_padded_on_the_left(attention_mask)
            padding = (attention_mask == 0).sum(dim=1).tolist()
        texts = embedding(ids.to(input_device(embedding)))
        vectors = self.vectors.to(texts.device, texts.dtype)
        before, after = vectors[: self.num_prefix_tokens], vectors[self.num_prefix_tokens :]
        return torch.stack(
            [torch.cat([text[:start], before, text[start:], after]) for text, start in zip(texts, padding, strict=True)]
        )

    def attention_mask(self, attention_mask: Tensor) -> Tensor:
        """Return the mask of a prompted text: the texts' mask, and a one for each virtual token.

        Args:
            attention_mask: `[batch, time]`, of texts that are padded on the left or not at all.

        Returns:
            `[batch, time + P]`. The placement of embeddings does not matter: prompt and text are one run of ones after
            the padding. A deep prefix stands before the padding.

        Raises:
            UserError: padding that is not on the left.
        """
        _check_padded_on_the_left(attention_mask)
        sides = (self.length, 0) if self.kind == "kv" else (0, self.length)
        return torch.nn.functional.pad(attention_mask, sides, value=1)

    def past_key_values(self, model: PreTrainedModel, batch: int = 1) -> DynamicCache:
        """Return this deep prefix as the cache that ``model.generate(past_key_values=...)`` and ``forward`` take.

        The mask that goes with it is :meth:`attention_mask`'s.

        Args:
            model: the base model.
            batch: number of texts.

        Raises:
            UserError: this is no deep prefix.
        """
        from transformers import DynamicCache  # takes seconds, which most readers of prompts need not wait

        if self.kind != "kv":
            raise UserError(f"prompt {self.name!r} is embeddings, no deep prefix: give inputs_embeds to the model")
        cache = DynamicCache()
        states = self.vectors.to(model.device, model.dtype)[:, :, None].expand(-1, -1, batch, -1, -1, -1)
        for layer, (keys, values) in enumerate(states):
            cache.update(keys, values, layer)
        return cache

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], revision: str | None = None) -> SoftPrompt:
        """Read a prompt from wherever it is: a file, a folder or a repository on the Hugging Face Hub.

        Args:
            name_or_path: what :meth:`load` takes, or a repository id ``owner/name``. What exists locally, ends in
                ``.safetensors`` or starts with ``./``, ``../``, ``/`` or ``~`` is a path and never a repository id.
            revision: branch, tag or commit; for repositories only.

        Raises:
            UserError: nothing there, or nothing that is a soft prompt; the Hub could not be reached.
        """
        name = os.fspath(name_or_path)
        if not is_repository(name):
            return cls.load(name)
        return replace(cls.load(download(name, revision)), name=name.split("/")[1])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SoftPrompt:
        """Read a prompt file, a PEFT adapter folder, or a folder that holds exactly one prompt file.

        Raises:
            UserError: nothing there, or nothing that is a soft prompt.
        """
        path = Path(os.path.expanduser(path))
        if not os.path.isdir(path):
            return cls._read(path)
        if (path / peft.PEFT_CONFIG).is_file():
            return cls.from_peft(path)
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise UserError(
                f"prompt folder {path}: holds {len(files)} .safetensors files and no {peft.PEFT_CONFIG}, so it is not "
                "clear which prompt is meant: name one file"
            )
        return replace(cls._read(files[0]), name=_folder_name(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a prompt file; a file that is already there is replaced whole or not at all.

        Args:
            path: the file; folders that are missing are created.

        Raises:
            UserError: the file can not be written.
        """
        write(Path(os.path.expanduser(path)), file_format.to_bytes(self.vectors, self.metadata))

    @classmethod
    def from_peft(cls, folder: str | os.PathLike[str]) -> SoftPrompt:
        """Read a PEFT adapter folder of type ``PROMPT_TUNING``, ``P_TUNING``, ``PREFIX_TUNING`` or ``CARTRIDGE``.

        Args:
            folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``. The base model and its revision are
                taken from the configuration where the weights' metadata does not name them.

        Raises:
            UserError: no such folder, another type of adapter, vectors before a decoder's tokens, pickled weights, or
                damaged files.
        """
        folder = Path(os.path.expanduser(folder))
        with error_context(f"PEFT folder {folder}"):
            return cls(*peft.read_adapter(folder), _folder_name(folder))

    def to_peft(self, folder: str | os.PathLike[str], task_type: TaskType | None = None) -> None:
        """Write an adapter folder that ``peft.PeftModel.from_pretrained(base_model, folder)`` loads.

        The record travels in the weights' metadata, which PEFT ignores and :meth:`from_peft` reads back.

        Args:
            folder: created where missing; the adapter's files in it are replaced.
            task_type: ``SEQ_2_SEQ_LM`` for an encoder-decoder base model, else ``CAUSAL_LM``. None: as recorded, or as
                the base model's configuration has it; where neither is known ``CAUSAL_LM``, with a warning.

        Raises:
            UserError: a part of the prompt stands after the text, which PEFT can not express; an unknown task type; the
                folder can not be written.
        """
        if self.placement != "prefix":
            raise UserError(
                f"prompt {self.name!r} has placement {self.placement!r}, which PEFT can not express (it puts every "
                "prompt before the text): use the prompt file itself, or train with placement 'prefix'"
            )
        if task_type not in (None, *TASK_TYPES):
            raise UserError(f"task_type is {task_type!r}, expected {' or '.join(map(repr, TASK_TYPES))}")
        peft.write_adapter(Path(os.path.expanduser(folder)), self.vectors, self.metadata, task_type)

    @classmethod
    def _read(cls, path: Path) -> SoftPrompt:
        with error_context(f"prompt file {path}"):
            return cls(*file_format.read(path), path.stem)


def _check_padded_on_the_left(attention_mask: Tensor) -> None:
    """Raise UserError unless every row of the mask `[batch, time]` is zeros, then ones."""
    if (attention_mask[:, 1:] < attention_mask[:, :-1]).any():
        raise UserError(
            "the attention mask has zeros after ones, expected padding on the left of every text: tokenize with "
            "padding_side='left'"
        )


def size_in_words(size: tuple[int, ...]) -> str:
    """Say what a virtual token is, from :attr:`SoftPrompt.size`."""
    if len(size) == 1:
        return f"vectors of size {size[0]}"
    layers, _, heads, width = size
    return f"keys and values of {layers} layers with {heads} heads of size {width}"


def _folder_name(folder: Path) -> str:
    return Path(os.path.abspath(folder)).name
