"""Log-likelihoods under encoder-decoder models (T5, mT5), the original setting of prompt tuning (Lester et al. 2021).

The encoder reads the prompt and the context, the decoder the continuation. Everything is differentiable in the prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from lm_eval_spt.inference.capabilities import evaluation_mode
from lm_eval_spt.inference.token_tree import ScoringRequest
from lm_eval_spt.inference.transformers_internals import decoder_inputs, device_of
from lm_eval_spt.inference.virtual_tokens import model_inputs, pad_right

# Logits of one call of the decoder: 2**27 values are half a gigabyte in fp32.
MAX_LOGITS = 2**27

_KEY = "lm_eval_spt_reads_padded"
logger = logging.getLogger(__name__)


def reads_padded(model: PreTrainedModel) -> bool:
    """Tell whether a text and its answer give the same logits beside longer ones, which pad both, as by themselves.

    It is tried once for a model: ProphetNet, whose positions come from the mask, does not.

    Args:
        model: an encoder-decoder LM.
    """
    stored: bool | None = vars(model).get(_KEY)
    if stored is not None:
        return stored
    first = model.config.vocab_size // 2
    texts = [list(range(first, first + length)) for length in (3, 9, 5)]
    answers = [list(range(first, first + length)) for length in (4, 1, 2)]

    def logits(texts: list[list[int]], answers: list[list[int]]) -> Tensor:
        (ids, mask), (labels, _) = ([tensor.to(device_of(model)) for tensor in pad_right(x)] for x in (texts, answers))
        found: Tensor = model(
            input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, return_dict=True
        ).logits
        return found.float()

    with evaluation_mode(model), torch.no_grad():
        together = logits(texts, answers)
        alone = [logits([text], [answer])[0] for text, answer in zip(texts, answers, strict=True)]
    difference = max(float((row[: len(one)] - one).abs().max()) for row, one in zip(together, alone, strict=True))
    rounding = 4 * torch.finfo(model.dtype).eps * float(together.abs().max())
    vars(model)[_KEY] = padded = difference <= 1e-4 + rounding
    if not padded:
        logger.info(
            "%s reads each text alone: beside longer ones its logits differ by %.2g", type(model).__name__, difference
        )
    return padded


def loglikelihoods(
    model: PreTrainedModel, requests: Sequence[ScoringRequest], vectors: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-likelihood of every continuation, whether greedy decoding would produce it, and the
    mean log-probability.

    Each context is encoded once, whatever the number of its continuations, where the model :func:`reads_padded`.

    Args:
        model: an encoder-decoder LM.
        requests: contexts with their continuations.
        vectors: `[P, d]`, the soft prompt; or `[requests, P, d]`, one for each request.

    Returns:
        Three tensors `[number of continuations]`, request by request: fp32 log-likelihoods, booleans, and what label
        smoothing mixes in, the mean log-probability of all tokens of the vocabulary where the continuation is scored.
    """
    if reads_padded(model):
        return _batch(model, requests, vectors)
    each = [vectors] * len(requests) if vectors is None or vectors.dim() == 2 else vectors.split(1)
    answers = [
        _batch(model, [replace(request, continuations=[continuation])], own)
        for request, own in zip(requests, each, strict=True)
        for continuation in request.continuations
    ]
    values, greedy, mean_logprobs = (torch.cat(column) for column in zip(*answers, strict=True))
    return values, greedy, mean_logprobs


def _batch(
    model: PreTrainedModel, requests: Sequence[ScoringRequest], vectors: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    device = device_of(model)
    ids, mask = (tensor.to(device) for tensor in pad_right([request.context for request in requests]))
    encoded = model.get_encoder()(**model_inputs(model, ids, vectors), attention_mask=mask).last_hidden_state

    pairs = [(row, continuation) for row, request in enumerate(requests) for continuation in request.continuations]
    longest = max(1, max(len(continuation) for _, continuation in pairs))
    size = max(1, MAX_LOGITS // (model.config.vocab_size * longest))
    sums, greedy, mean_logprobs = [], [], []
    for start in range(0, len(pairs), size):
        chunk = pairs[start : start + size]
        rows = torch.tensor([row for row, _ in chunk], device=device)
        targets, scored = (tensor.to(device) for tensor in pad_right([continuation for _, continuation in chunk]))
        logits = model(
            encoder_outputs=BaseModelOutput(encoded.index_select(0, rows)),
            attention_mask=mask.index_select(0, rows),
            decoder_input_ids=decoder_inputs(model, targets),
            use_cache=False,
            return_dict=True,
        ).logits
        logprobs = logits.float().log_softmax(dim=-1)
        sums.append((logprobs.gather(2, targets[:, :, None])[:, :, 0] * scored).sum(dim=1))
        mean_logprobs.append((logprobs.mean(dim=-1) * scored).sum(dim=1))
        greedy.append(((logits.argmax(dim=-1) == targets) | (scored == 0)).all(dim=1))
    return torch.cat(sums), torch.cat(greedy), torch.cat(mean_logprobs)
