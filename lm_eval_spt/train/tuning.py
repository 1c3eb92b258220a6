"""The model that is tuned beside the prompt: nothing of it, the whole base model, or a LoRA adapter on it.

A tuned model is saved as transformers does (a folder with the tokenizer), an adapter as PEFT does, so that
``pretrained=<folder>`` and ``peft=<folder>`` load them in the harness.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.prompt.metadata import MODEL_RECORD
from lm_eval_spt.train.config import TrainingConfig


class TunableModel:
    """The base model of a run, of which nothing, everything or an adapter is tuned.

    Weights in half precision are tuned as float32 copies, their master weights: most steps are smaller than what half
    precision can tell apart.

    Attributes:
        tuned: the parameters that are tuned, by name; none where the model is frozen. Call :meth:`write_back` after
            they have changed.

    Args:
        lm: holds the model; with ``--tune lora`` its model gets the adapter.
        config: says what is tuned.

    Raises:
        UserError: the modules to adapt are not in the model.
    """

    def __init__(self, lm: SPTLM, config: TrainingConfig) -> None:
        self.lm = lm
        self._tune = config.tune
        self.lr = config.model_lr or 0.0
        lm.model.requires_grad_(config.tune in ("all", "model"))
        if config.tune == "lora":
            _add_adapter(lm, config)
        self._weights = {name: weight for name, weight in lm.model.named_parameters() if weight.requires_grad}
        self.tuned = {name: _master_weight(weight) for name, weight in self._weights.items()}

    def write_back(self) -> None:
        """Bring the model up to date with its master weights."""
        with torch.no_grad():
            for name, weight in self._weights.items():
                if weight is not self.tuned[name]:
                    weight.copy_(self.tuned[name])

    def size(self) -> int:
        """Return the number of the model's parameters, an adapter's included."""
        return sum(weight.numel() for weight in self.lm.model.parameters())

    def train(self, mode: bool = True) -> None:
        """Turn dropout on, for a step of a tuned model, or off."""
        if self._tune != "prompt":
            self.lm.model.train(mode)

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the tuned parameters, on the CPU."""
        return {name: weight.detach().cpu().clone() for name, weight in self.tuned.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Put back what :meth:`state` returned."""
        for name, weight in self.tuned.items():
            weight.data.copy_(state[name])
        self.write_back()

    def save(self, folder: Path, record: dict[str, Any]) -> None:
        """Write the tuned model or the adapter; a folder that is already there is replaced whole or not at all.

        Args:
            folder: is made or replaced.
            record: the provenance, which becomes a JSON file in it.

        Raises:
            UserError: the folder can not be written, or holds something that is not a saved model.
        """
        check_replaceable(folder)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
                new, old = Path(temporary) / "new", Path(temporary) / "old"
                # The vocabulary is the base model's; left to itself, PEFT looks for that model's settings on the Hub.
                options = {"save_embedding_layers": False} if self._tune == "lora" else {}
                self.lm.model.save_pretrained(new, **options)
                if self._tune != "lora":
                    self.lm.tokenizer.save_pretrained(new)
                (new / MODEL_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
                for file in new.rglob("*"):
                    _make_durable(file)
                if folder.exists():
                    folder.rename(old)
                new.rename(folder)
        except OSError as error:
            raise UserError(f"{folder}: can not be written ({error.strerror or error}): choose another place") from None


def check_replaceable(folder: Path) -> None:
    """Raise UserError where `folder` exists and is nothing that :meth:`TunableModel.save` has written."""
    if folder.exists() and not (folder / MODEL_RECORD).is_file():
        raise UserError(f"{folder} is there and holds no model that was tuned here: choose another --output")


def _make_durable(file: Path) -> None:
    if file.is_file():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _master_weight(weight: nn.Parameter) -> nn.Parameter:
    """Return a float32 copy of a weight in half precision, which gets the weight's gradients; others as they are."""
    if weight.dtype == torch.float32:
        return weight
    master = nn.Parameter(weight.detach().float())

    def hand_over(weight: Tensor) -> None:
        if weight.grad is None:
            return
        if master.grad is None:
            master.grad = weight.grad.float()
        else:
            master.grad += weight.grad  # in place: new memory would take longer than the addition
        weight.grad = None

    weight.register_post_accumulate_grad_hook(hand_over)
    return master


def _add_adapter(lm: SPTLM, config: TrainingConfig) -> None:
    """Wrap the model with a LoRA adapter whose initial weights depend on the seed alone."""
    from peft import LoraConfig
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    targets: str | list[str] | None = None
    if config.lora_target_modules:
        targets = [name.strip() for name in config.lora_target_modules.split(",") if name.strip()]
    elif lm.model.config.model_type not in KNOWN:
        targets = "all-linear"
    settings = LoraConfig(
        task_type="SEQ_2_SEQ_LM" if lm.model.config.is_encoder_decoder else "CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=targets,
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        try:
            lm.attach_adapter(settings)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--tune lora does not work with {config.model!r}: {reason}") from None
    settings.base_model_name_or_path = config.model  # PEFT has put a local path there
