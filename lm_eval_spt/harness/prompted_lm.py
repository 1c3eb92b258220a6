"""A model of the harness with a soft prompt in its context.

Token lists carry the prompt as marks (see :mod:`lm_eval_spt.inference.virtual_tokens`). So everything that the
harness does with lists of tokens (sorting, batching, padding, rolling windows, sharding over processes) works
unchanged, and only :meth:`PromptedLM._model_call` and :meth:`PromptedLM._model_generate` know about vectors.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import stop_sequences_criteria
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.calibration import as_calibration, calibrator, label_counts
from lm_eval_spt.harness.contexts import differences
from lm_eval_spt.harness.encoding import PairEncoder, whole_characters
from lm_eval_spt.harness.model_arguments import check_model_arguments, names_as_texts, unknown_argument
from lm_eval_spt.inference import encoder_decoder, probe, scoring, transformers_internals
from lm_eval_spt.inference.base_model import available_device, bitsandbytes_config, cannot_load, ensure_available
from lm_eval_spt.inference.capabilities import Capabilities
from lm_eval_spt.inference.deep_prefix import check_deep_prefix, deep_prefix_size
from lm_eval_spt.inference.fingerprint import model_fingerprint, tokenizer_fingerprint
from lm_eval_spt.inference.generation import generate
from lm_eval_spt.inference.gguf import GGUFFile, find_gguf, gguf_options
from lm_eval_spt.inference.products import is_slower_in_bfloat16
from lm_eval_spt.inference.virtual_tokens import model_inputs, place
from lm_eval_spt.prompt.ensemble import Ensemble
from lm_eval_spt.prompt.fingerprint import embedding_fingerprint
from lm_eval_spt.prompt.metadata import PromptKind, record_in
from lm_eval_spt.prompt.soft_prompt import SoftPrompt

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from peft import LoraConfig
    from typing_extensions import Self

    from lm_eval_spt.harness.options import ContextOptions

logger = logging.getLogger(__name__)

TokenisedRequest = tuple[tuple[str, str] | None, list[int], list[int]]
"""A request's (context, continuation) text, if it has one, and their token ids: what HFLM calls a request."""

QUANTISATION = ("load_in_4bit", "load_in_8bit", "bnb_4bit_", "llm_int8_")
"""How the names of bitsandbytes' settings begin."""

BATCH_SIZE = re.compile(r"auto(:[1-9]\d*)?|[1-9]\d*")

TYPICAL_LENGTH = 128
"""Tokens that a sequence is taken to have where ``auto`` is made a number of sequences without trying."""

CACHE_OWNER = "lm_eval_spt: written with"


def _difference(recorded: Any, owner: dict[str, str]) -> str:
    """Return in words how the owner of a cache that was recorded differs from this one; '' where it does not."""
    try:
        before = json.loads(recorded)
        names = [name for name in dict.fromkeys([*before, *owner]) if before.get(name) != owner.get(name)]
        return ", ".join(f"another {name} ({before.get(name)} there, {owner.get(name)} now)" for name in names)
    except (AttributeError, TypeError, ValueError):  # of a plain `--model hf`, or of an earlier version
        return "something else"


@functools.cache  # once
def _warn_of_token_at_the_end(token: str, placement: str) -> None:
    effect = "it stands between every text and the prompt"
    if placement == "prefix":
        effect = f"every answer loses its first token and ends with {token}, as in the harness"
    logger.warning(
        "the tokenizer puts %s behind every text: %s; give add_bos_token=False, or a tokenizer that does not",
        token,
        effect,
    )


@functools.cache  # once
def _warn_of_slow_bfloat16() -> None:
    if is_slower_in_bfloat16():
        logger.warning("this processor is slower in bfloat16 than in float32, and less exact: give dtype=float32")


def prompt_info(prompt: SoftPrompt | Ensemble) -> dict[str, Any]:
    """Return what results say of the prompt that they were made with."""
    return {
        "prompt_name": prompt.name,
        "prompt_digest": prompt.digest,
        "prompt_length": prompt.length,
        "prompt_placement": prompt.placement,
        "prompt_metadata": prompt.metadata,
    }


class PromptedLM(HFLM):
    """A Hugging Face causal LM that scores and generates with a soft prompt.

    Args:
        pretrained: base model: a Hub id, a folder, a GGUF file, ``mini``, or a loaded model. Default: the one the
            prompt names.
        prompt: the soft prompt: a ``.safetensors`` file, a PEFT prompt-tuning folder or a Hub repository. Without it
            this is the plain frozen model, the baseline.
        fast: read every context once (see :mod:`lm_eval_spt.inference.scoring`); False scores with the harness's own
            loop.
        revision: of the base model. Default: the one the prompt was trained on, else ``main``.
        gguf_file: name of a GGUF file in the folder or repository `pretrained`. Default: the one the prompt names.
        calibration: ``probability`` or ``log_probability``: take the mean preference for each choice off the answers to
            a task's documents; ``label_prior``, or label counts such as ``20+30+50``: make the choices as frequent as
            that (see :mod:`lm_eval_spt.harness.calibration`). Default: answers as they are.
        dequantize: unpack a GGUF file's weights to `dtype`, into a cached folder; False keeps them packed for the
            architectures and devices for which transformers can.
        batch_size: ``auto``, as many tokens as fit and pay; or a number, which can only make batches smaller: so many
            sequences of the model's full length. Shorter texts share the room, so that a batch can hold more contexts.
        **hflm: everything else that :class:`~lm_eval.models.huggingface.HFLM` takes.

    Raises:
        UserError: the base model can not be loaded; the prompt can not be read, does not fit the base model, or leaves
            no room for text; the batch size is neither ``auto`` nor a positive number.
    """

    def __init__(
        self,
        pretrained: Any = None,
        prompt: str | SoftPrompt | None = None,
        *,
        fast: bool = True,
        revision: str | None = None,
        gguf_file: str | None = None,
        dequantize: bool = True,
        calibration: str | None = None,
        **hflm: Any,
    ) -> None:
        own = {"pretrained": pretrained, "prompt": prompt, "revision": revision, "gguf_file": gguf_file}
        hflm = names_as_texts(hflm | own)
        pretrained, prompt, revision, gguf_file = (hflm.pop(name) for name in own)
        check_model_arguments({**hflm, "fast": fast, "dequantize": dequantize})
        self._most_sequences: int | None = hflm.get("max_batch_size")
        self._room_taken = 0
        self.calibration = as_calibration(calibration)
        if not BATCH_SIZE.fullmatch(size := str(hflm.setdefault("batch_size", 1))):
            raise UserError(f"the batch size is {size!r}, expected auto, auto:<number> or a whole number from 1 on")
        self.prompt = SoftPrompt.from_pretrained(prompt) if isinstance(prompt, str | Path) else prompt
        known = self.prompt.loading(pretrained) if self.prompt else {"pretrained": pretrained}
        pretrained = known.get("pretrained")
        revision, gguf_file = revision or known.get("revision"), gguf_file or known.get("gguf_file")
        if pretrained is None:
            raise UserError(
                f"the prompt {self.prompt.name!r} does not name its base model: give it with pretrained=<model>"
                if self.prompt
                else "no model was given: expected pretrained=<model> (for example pretrained=mini) or prompt=<file>"
            )
        hflm.setdefault("add_bos_token", known.get("add_bos_token"))
        hflm["device"] = available_device(hflm.get("device"))
        named = isinstance(pretrained, str)
        self.gguf: GGUFFile | None = find_gguf(pretrained, gguf_file, revision) if named else None
        if self.gguf is None:
            source = ensure_available(pretrained, revision) if named else pretrained
        elif dequantize:
            source = str(self.gguf.unpacked(hflm.get("dtype")))
        else:
            source, hflm["gguf_file"] = str(self.gguf.path.parent), self.gguf.path.name
        for role in ("tokenizer", "delta"):
            if isinstance(part := hflm.get(role), str):
                hflm[role] = ensure_available(part, revision, role=role)
        try:
            super().__init__(source, revision=revision or "main", **hflm)
        except UserError:
            raise  # says already what is wrong
        except TypeError as error:
            if (mistake := unknown_argument(error, hflm)) is not None:
                raise mistake from error
            raise
        except (OSError, ValueError) as error:
            raise cannot_load(pretrained, error) from error
        self.base_model_name = pretrained if named else self.model.name_or_path
        self._fast = fast
        if self.device.type == "meta":  # a loaded model whose weights are offloaded
            self._device = transformers_internals.device_of(self.model)
        if (self.device.type, self.model.dtype) == ("cpu", torch.bfloat16):
            _warn_of_slow_bfloat16()
        if self.backend == "causal":
            transformers_internals.prepare(self.model)
        self._take_place_among_processes()
        if self.calibration and self.world_size > 1:
            raise UserError("calibration needs the answers to all documents in one process: start one alone")
        if self.prompt is not None:
            self.use(self.prompt)

    @classmethod
    def from_loaded(cls, loaded: PromptedLM, **settings: Any) -> Self:
        """Return a model of this class around a base model that is loaded already.

        Args:
            loaded: holds the base model and the tokenizer.
            **settings: as for the class.
        """
        lm = cls(pretrained=loaded.model, tokenizer=loaded.tokenizer, **settings)
        lm.pretrained, lm.revision = loaded.pretrained, loaded.revision  # what the harness looks up
        lm.base_model_name, lm.peft, lm.delta = loaded.base_model_name, loaded.peft, loaded.delta
        lm.gguf = loaded.gguf
        return lm

    def attach_adapter(self, settings: LoraConfig) -> None:
        """Wrap the base model with a new adapter.

        Args:
            settings: PEFT's.

        Raises:
            ValueError: the modules to adapt are not in the model.
        """
        from peft import get_peft_model  # takes a second, which most runs need not wait

        self._model: Any = get_peft_model(self.model, settings)
        probe.forget(self.model)

    def _create_model(self, pretrained: str, *, peft: str | None = None, **options: Any) -> None:
        """Load the base model, quantised if that was asked for, and the PEFT adapter if there is one.

        ``load_in_4bit`` and ``load_in_8bit``, which HFLM hands on, are no arguments of transformers 5 any more.

        HFLM cuts the embeddings down to the tokenizer's size under an adapter. Rows that no token uses are in the
        softmax that the adapter and the prompt were trained with. Where the tokenizer is larger, they do grow.
        """
        quantised = {name: options.pop(name) for name in list(options) if name.startswith(QUANTISATION)}
        if any(quantised.get(name) for name in ("load_in_4bit", "load_in_8bit")):
            options["quantization_config"] = bitsandbytes_config(quantised, options.get("dtype"))
        if options.get("gguf_file"):
            options |= gguf_options(dequantize=False)
        super()._create_model(pretrained, **options)
        if peft is None:
            return
        from peft import PeftModel  # takes a second, which most runs need not wait

        if options.get("delta"):
            raise UserError("peft= and delta= were given: an adapter or delta weights, one of them")
        model = self.model
        if len(self.tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(self.tokenizer))
        try:
            self._model = PeftModel.from_pretrained(model, peft)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"peft={peft} can not be loaded ({reason}): expected a PEFT adapter's folder") from error

    # -- what the prompt is ------------------------------------------------------------------------------------------

    @property
    def vectors(self) -> Tensor | None:
        """The prompt's vectors `[P, d]`, fp32, or a deep prefix (:mod:`lm_eval_spt.inference.deep_prefix`); or None."""
        return self.prompt.vectors if self.prompt else None

    @property
    def fingerprint(self) -> str:
        """The base model's identity: see :func:`lm_eval_spt.prompt.fingerprint.embedding_fingerprint`."""
        return embedding_fingerprint(self.model.get_input_embeddings())

    def use(self, prompt: SoftPrompt) -> None:
        """Make `prompt` the one that contexts get.

        Raises:
            UserError: it does not fit the base model, leaves no room for text, or does not say what calibration needs.
        """
        self._check_prompt(prompt)
        label_counts(self.calibration, prompt.metadata)
        self.prompt, self._room_taken = prompt, prompt.length

    def size_of_a_virtual_token(self, kind: PromptKind) -> tuple[int, ...]:
        """Return what the model takes for a virtual token: see :attr:`SoftPrompt.size`.

        Raises:
            UserError: it takes no deep prefix.
        """
        if kind == "kv":
            return deep_prefix_size(self.model)
        return (self.model.get_input_embeddings().weight.shape[1],)

    def _check_prompt(self, prompt: SoftPrompt) -> None:
        if self.backend != "causal" and prompt.placement != "prefix":
            raise UserError(
                f"{self.base_model_name!r} is an encoder-decoder model, whose prompts stand before the text: "
                f"the prompt {prompt.name!r} has placement {prompt.placement!r}"
            )
        embedding = self.model.get_input_embeddings()
        if not embedding.weight.is_floating_point():
            raise UserError(
                f"{self.base_model_name!r} keeps its input embeddings packed, and a prompt belongs to them: leave "
                "dequantize=False out"
            )
        prompt.check_fits(self.size_of_a_virtual_token(prompt.kind), self.fingerprint, self.base_model_name)
        if prompt.kind == "kv":
            check_deep_prefix(self.model, prompt.length)
        if prompt.metadata.get("embedding_fingerprint") is None:
            logger.warning("the prompt %r does not say which base model it was trained on: not checked", prompt.name)
        if self.gguf is not None and prompt.metadata.get("gguf_sha256") not in (None, self.gguf.sha256):
            logger.warning(
                "the prompt %r was trained on another GGUF file (SHA-256 %.16s...) than %s (%.16s...)",
                prompt.name,
                prompt.metadata["gguf_sha256"],
                self.gguf.path,
                self.gguf.sha256,
            )
        if prompt.metadata.get("adapter") and not getattr(self, "peft", None):
            logger.warning(
                "the prompt %r was trained together with the adapter %s: give it as peft=",
                prompt.name,
                prompt.metadata["adapter"],
            )
        if prompt.length >= self.whole_length:
            raise UserError(
                f"the prompt {prompt.name!r} has {prompt.length} virtual tokens, but {self.base_model_name!r} reads "
                f"at most {self.whole_length} tokens: nothing is left for the text; use a shorter prompt"
            )
        if not prompt.vectors.to(embedding.weight.dtype).isfinite().all():
            dtype = str(embedding.weight.dtype).removeprefix("torch.")
            raise UserError(
                f"the prompt {prompt.name!r} holds numbers up to {float(prompt.vectors.abs().max()):.3g}, which is too "
                f"much for {dtype}: load the model with dtype=bfloat16 or float32"
            )

    def check_contexts(self, tasks: Iterable[ConfigurableTask], options: ContextOptions) -> None:
        """Warn if the prompt was trained in other contexts than those that it is about to be scored in.

        Args:
            tasks: what is scored, with the numbers of shots that they get.
            options: what else the contexts hold.
        """
        if self.prompt and (differing := differences(self.prompt.metadata, tasks, options)):
            logger.warning(
                "the prompt %r is scored in other contexts than it was trained in: %s",
                self.prompt.name,
                "; ".join(differing),
            )

    def get_model_info(self) -> dict[str, Any]:
        """Return what HFLM reports of the model, which prompt it had, and how it was tuned if this package did."""
        info = super().get_model_info()
        info["base_model_fingerprint"] = self.fingerprint
        if self.gguf is not None:
            info["gguf_sha256"] = self.gguf.sha256
        if self.calibration is not None:
            info["calibration"] = self.calibration
        if self.prompt is not None:
            info |= prompt_info(self.prompt)
        if record := self._model_record():
            info["model_metadata"] = record
        return info

    def _model_record(self) -> dict[str, Any]:
        """Return how the adapter or model was tuned, if this package did; else an empty record."""
        folders = (Path(folder) for folder in (self.peft, self.base_model_name) if folder)
        return next(filter(None, map(record_in, folders)), {})

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Accept the harness's answer cache, unless another model, prompt or setting wrote it.

        The harness keys its cache (``--use_cache``) on the request's text alone, so answers would be mixed up silently.

        Raises:
            UserError: the cache holds answers of something else; or answers are calibrated, for which those to all
                documents are needed.
        """
        store = cache_hook.dbdict
        if store is not None and self.calibration:
            raise UserError("calibrated answers depend on all documents that are scored: leave --use_cache out")
        if store is not None:
            owner = self._cache_owner()
            recorded = store.get(CACHE_OWNER)
            has_answers = len(store) > (recorded is not None)
            if has_answers and (difference := _difference(recorded, owner)):
                raise UserError(
                    f"the cache {store.filename} was written with {difference}: give another --use_cache path, or "
                    "delete that file"
                )
            store[CACHE_OWNER] = json.dumps(owner)
        super().set_cache_hook(cache_hook)

    def _cache_owner(self) -> dict[str, str]:
        """Return everything that decides this model's answers to the text of a request."""
        settings = ("add_bos_token", "prefix_token_id", "truncation", "backend", "think_end_token")
        dtypes = ("softmax_dtype", "mixed_precision_dtype")
        owner = {name: str(getattr(self, name)) for name in (*settings, "chat_template_args", "logits_cache", *dtypes)}
        return owner | {
            "base model": model_fingerprint(self.model),
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "prompt": self.prompt.digest[:16] if self.prompt else "none",
            "dtype": str(self.model.dtype),
            "max_length": str(self.whole_length),
            "fast": str(self._fast),
        }

    # -- tokens ------------------------------------------------------------------------------------------------------

    @property
    def whole_length(self) -> int:
        """How many tokens the model can read, the prompt's among them."""
        length: int = super().max_length
        return length if length > 0 else self._DEFAULT_MAX_LENGTH  # XLNet names -1: there is no limit

    @property
    def max_length(self) -> int:
        """How many tokens of text fit beside the prompt."""
        return self.whole_length - self._room_taken

    def encode_pairs(self, pairs: Sequence[tuple[str, str]], placement: str) -> list[tuple[list[int], list[int]]]:
        """Return the token ids of (context, continuation) pairs: see :class:`PairEncoder`.

        A tokenizer that puts EOS behind a text spoils what the harness does with pairs: that is said, and done.
        """
        causal = self.backend == "causal"
        encoder = PairEncoder(self.tokenizer, self.prefix_token_id, self.add_bos_token, causal)
        if causal and (token := encoder.token_at_the_end()) is not None:
            _warn_of_token_at_the_end(token, placement)
        return encoder.encode(pairs, placement)

    def tok_encode(self, string: str, *args: Any, **options: Any) -> list[int]:
        """Return the token ids of a text, as HFLM does; halves of surrogate pairs are read as U+FFFD."""
        return super().tok_encode(whole_characters(string), *args, **options)

    def tok_batch_encode(self, strings: list[str], *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Return ids and mask `[batch, time]` of texts to go on from; an empty one becomes the BOS token."""
        ids, mask = super().tok_batch_encode([whole_characters(string) for string in strings], *args, **options)
        if not ids.shape[1]:
            ids, mask = (torch.zeros(len(strings), 1, dtype=torch.long) for _ in range(2))
        empty = mask.sum(dim=1) == 0
        ids[empty, -1], mask[empty, -1] = self.prefix_token_id, 1
        return ids, mask

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of every request's continuation, and whether greedy decoding would produce it.

        Raises:
            UserError: they are to be calibrated, and the documents of a task have different choices, or others than
                those whose frequencies are known.
        """
        return self.calibrated(requests, lambda: self._as_they_are(requests, disable_tqdm))

    def calibrated(
        self, requests: Sequence[Instance], answer: Callable[[], list[scoring.Answer]]
    ) -> list[scoring.Answer]:
        """Return the answers to all requests, calibrated if that was asked for: whether they can be is seen first."""
        if self.calibration is None:
            return answer()
        record = self.prompt.metadata if self.prompt else self._model_record()
        calibrate = calibrator(requests, self.calibration, label_counts(self.calibration, record))
        answers = answer()
        values = calibrate(np.array([value for value, _ in answers]))
        return [(value, greedy) for value, (_, greedy) in zip(values.tolist(), answers, strict=True)]

    def _as_they_are(self, requests: list[Instance], disable_tqdm: bool) -> list[scoring.Answer]:
        self._refuse_thinking()
        if self.backend != "causal":
            return super().loglikelihood(requests, disable_tqdm)
        texts = [request.args for request in requests]
        placement = self.prompt.placement if self.prompt else "prefix"
        encoded = self.encode_pairs(texts, placement)
        tokenised = [(text, *pair) for text, pair in zip(texts, encoded, strict=True)]
        return self._loglikelihood_tokens(tokenised, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Any]:
        """Return the log-likelihood of every request's whole text.

        Raises:
            UserError: answers are to be calibrated.
        """
        self._refuse_calibration("whole texts")
        return super().loglikelihood_rolling(requests, disable_tqdm)

    def _refuse_thinking(self) -> None:
        if getattr(self, "enable_thinking", False):
            raise UserError("enable_thinking=True is for tasks that generate text, this one scores it: leave it out")

    def _refuse_calibration(self, what: str) -> None:
        if self.calibration is not None:
            raise UserError(f"calibration={self.calibration} is for choices, the task asks for {what}: leave it out")

    def with_prompt(self, context: list[int]) -> list[int]:
        """Return a context's token ids with the marks of this model's prompt, if it has one."""
        if self.prompt is None or self.prompt.kind == "kv":
            return context
        before = self.prompt.num_prefix_tokens
        return place(context, before, self.prompt.length - before)

    # -- log-likelihoods ---------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: list[TokenisedRequest], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        most = self.max_length  # lm_eval looks it up in the model's configuration, which is slow
        if self.backend != "causal":
            # The answer takes none of the encoder's room.
            inputs = [(text, self.with_prompt(context[-most:]), rest) for text, context, rest in requests]
            if encoder_decoder.reads_padded(self.model):
                return self._hflm_loop(inputs, disable_tqdm, override_bs)
            with self._progress(len(inputs), disable_tqdm) as bar:
                alone = []
                for request in inputs:
                    alone += self._hflm_loop([request], True, 1)
                    bar.update()
            return alone
        prompted: list[TokenisedRequest] = []
        cut = 0
        for text, context, continuation in requests:
            fitting = scoring.truncate(context, continuation, most)
            cut += len(fitting) < len(context)
            prompted.append((text, self.with_prompt(fitting), continuation))
        if cut:
            logger.warning(
                "%d of %d contexts were too long for the model, the prompt and the answer: their beginnings were cut",
                cut,
                len(requests),
            )
        if not self._fast:
            return self._hflm_loop(prompted, disable_tqdm, override_bs)

        pairs = [(context, continuation) for _, context, continuation in prompted]
        self.try_out(pairs, self.vectors)
        answers: list[scoring.Answer] = [(0.0, True)] * len(prompted)
        with self._autocast():
            scored = scoring.score(self.model, pairs, self.vectors, self._max_batch_tokens())
        with self._progress(len(prompted), disable_tqdm) as bar, self._autocast():
            for number, answer in scored:
                if not math.isfinite(answer[0]):
                    raise probe.not_finite(self.model)
                answers[number] = answer
                if (text := prompted[number][0]) is not None:
                    self.cache_hook.add_partial("loglikelihood", text, answer)
                bar.update()
        return answers

    def _hflm_loop(
        self, prompted: list[TokenisedRequest], disable_tqdm: bool, override_bs: int | None
    ) -> list[scoring.Answer]:
        """Return the answers of the harness's own loop to requests that carry the prompt's marks."""
        with self._prompt_in_requests():
            answers: list[scoring.Answer] = super()._loglikelihood_tokens(prompted, disable_tqdm, override_bs)
        if not all(math.isfinite(value) for value, _ in answers):
            raise probe.not_finite(self.model)
        return answers

    def try_out(
        self, pairs: Sequence[scoring.TokenPair], vectors: Tensor | None, *, gradient: bool = False
    ) -> Capabilities:
        """Find out what the model can do with these texts: see :func:`lm_eval_spt.inference.probe.probe`."""
        with self._autocast():
            return probe.probe(self.model, pairs, vectors, gradient=gradient)

    def _progress(self, requests: int, disable: bool = False) -> tqdm:
        return tqdm(total=requests, disable=disable or self.rank != 0, desc="Running loglikelihood requests")

    def _detect_batch_size(self, requests: Sequence[Any] | None = None, pos: int = 0) -> int:
        """Return how many sequences ``auto`` stands for in the harness's own loops: generation and rolling windows.

        HFLM finds out by reading more and more sequences of the full length until memory runs out, which takes hours on
        a processor.
        """
        if self.device.type == "cuda":
            found: int = super()._detect_batch_size(requests, pos)
            return found
        found = scoring.tokens_that_fit(self.model, self.device) // TYPICAL_LENGTH
        return max(1, min(found, self._most_sequences or found))

    def _max_batch_tokens(self) -> int:
        fitting = scoring.tokens_that_fit(self.model, self.device)
        most = self._most_sequences if self.batch_size == "auto" else int(self.batch_size)
        return fitting if most is None else min(fitting, most * self.whole_length)

    @contextmanager
    def _prompt_in_requests(self) -> Iterator[None]:
        """While requests carry the prompt's marks, the whole length is theirs."""
        taken, self._room_taken = self._room_taken, 0
        try:
            yield
        finally:
            self._room_taken = taken

    def _autocast(self) -> torch.autocast:
        dtype = self.mixed_precision_dtype
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Return the logits `[batch, time, vocabulary]` of `inps` `[batch, time]`, whose marks become the prompt."""
        # Only for encoder-decoder models the harness gives the encoder's mask, and the decoder's tokens as labels.
        more = {} if labels is None else {"attention_mask": attn_mask, "labels": labels}
        with torch.no_grad(), self._autocast():
            logits: Tensor = self.model(**model_inputs(self.model, inps, self.vectors), **more).logits
        return probe.check_logits(self.model, logits)  # before the loop gives answers to the cache

    # -- generation --------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what the model says after every request's context, up to the first stop sequence.

        Raises:
            UserError: the settings of a request leave no room for its text; answers are to be calibrated; what
                :meth:`_model_generate` raises.
        """
        self._refuse_calibration("new text")
        try:
            return super().generate_until(requests, disable_tqdm)
        except AssertionError as error:
            if "maximum sequence length" not in str(error):
                raise
            raise UserError(
                f"max_gen_toks leaves no room for text: {self.base_model_name!r} reads at most {self.max_length} tokens"
                f"{' beside the prompt' if self.prompt else ''}; give a smaller max_gen_toks"
            ) from error

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation: Any) -> Tensor:
        """Generate after `context` `[batch, time]`, padded on the left; returns it with the new tokens behind it.

        `max_length` counts the tokens of `context` and the new ones, with an encoder-decoder model, too, whose tokens
        are returned alone.

        Raises:
            UserError: see :func:`lm_eval_spt.inference.generation.generate`; or nothing is left to generate.
        """
        mask = generation.pop("attention_mask", torch.ones_like(context))
        max_new_tokens = max_length - context.shape[1]
        if max_new_tokens < 1:
            raise UserError(
                f"max_length={max_length} leaves nothing to generate after a text of {context.shape[1]} tokens, which "
                "count towards it: give max_gen_toks instead"
            )
        if generation.get("do_sample") is not True and not generation.get("temperature"):
            generation.pop("temperature", None)
            generation["do_sample"] = False
        rows = [self.with_prompt(row[kept.bool()].tolist()) for row, kept in zip(context, mask, strict=True)]
        with self._autocast():
            answers = generate(
                self.model,
                rows,
                self.vectors,
                max_new_tokens=max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
                stopping=lambda seen, batch: stop_sequences_criteria(self.tokenizer, stop, seen, batch),
                **generation,
            )
        padded = pad_sequence(answers, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        return torch.cat([context, padded], dim=1) if self.backend == "causal" else padded

    # -- processes ---------------------------------------------------------------------------------------------------

    def _take_place_among_processes(self) -> None:
        """Under ``accelerate launch`` every process scores its share; HFLM sees to it only on several GPUs."""
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None and self.world_size == 1:
            self._rank: int = accelerator.process_index
            self._world_size: int = accelerator.num_processes
