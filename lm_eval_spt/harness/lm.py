"""What ``--model spt`` is in the harness: a frozen causal LM with a soft prompt in its context, or an ensemble of such.

lm_eval --model spt --model_args prompt=eng.safetensors --tasks sib200
lm_eval --model spt --model_args pretrained=bigscience/bloom-560m --tasks sib200     # the baseline: no prompt
lm_eval --model spt --model_args prompt=seed0.safetensors+seed1.safetensors --tasks sib200
"""

from __future__ import annotations

from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.utils import simple_parse_args_string

from lm_eval_spt.harness.many_prompts import ManyPromptsLM
from lm_eval_spt.harness.prompted_lm import PromptedLM
from lm_eval_spt.prompt.ensemble import names_several, read_prompt


@register_model("spt")
class SPTLM(PromptedLM):
    """A Hugging Face causal LM that scores and generates with a soft prompt.

    Its arguments are those of :class:`~lm_eval_spt.harness.prompted_lm.PromptedLM`.
    """

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> PromptedLM:
        """Do what :meth:`create_from_arg_obj` does, from ``--model_args`` as text."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> PromptedLM:
        """Return the model that ``lm_eval --model spt --model_args`` asks for, also one with an ensemble of prompts.

        Args:
            arg_dict: arguments of the class. `prompt` may name several prompts, joined by ``+`` or by a pattern;
                `ensemble` says how their answers are averaged (see :mod:`lm_eval_spt.prompt.ensemble`).
            additional_config: further ones.

        Raises:
            UserError: as the class does; the prompts make no ensemble.
        """
        given = {**arg_dict, **{key: value for key, value in (additional_config or {}).items() if value is not None}}
        average = given.pop("ensemble", None)
        if average is None and not names_several(given.get("prompt")):
            return cls(**given)
        ensemble = read_prompt(str(given.pop("prompt", "")), average)
        return ManyPromptsLM([ensemble], **ensemble.loading(given.get("pretrained")) | given)
