"""Log-likelihoods under encoder-decoder models (T5, mT5), the original setting of prompt tuning (Lester et al. 2021).

The encoder reads the prompt and the context, the decoder the continuation. Everything is differentiable in the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from lm_eval_spt.inference.token_tree import ScoringRequest
from lm_eval_spt.inference.transformers_internals import decoder_inputs, device_of
from lm_eval_spt.inference.virtual_tokens import model_inputs, pad_right

# Logits of one call of the decoder: 2**27 values are half a gigabyte in fp32.
MAX_LOGITS = 2**27


def loglikelihoods(
    model: PreTrainedModel, requests: Sequence[ScoringRequest], vectors: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-likelihood of every continuation, whether greedy decoding would produce it, and the
    mean log-probability.

    Each context is encoded once, whatever the number of its continuations.

    Args:
        model: an encoder-decoder LM.
        requests: contexts with their continuations.
        vectors: `[P, d]`, the soft prompt.

    Returns:
        Three tensors `[number of continuations]`, request by request: fp32 log-likelihoods, booleans, and what label
        smoothing mixes in, the mean log-probability of all tokens of the vocabulary where the continuation is scored.
    """
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
