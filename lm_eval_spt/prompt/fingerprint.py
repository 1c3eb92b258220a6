"""The identity of a base model, as far as a soft prompt is concerned: its input embeddings."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch

from lm_eval_spt.common.offloading import loaded

FINGERPRINT_ROWS = 512


def embedding_fingerprint(embedding: torch.nn.Module) -> str:
    """Identify a base model by its input embeddings, whatever dtype they are loaded in.

    Only the signs of the weights are looked at, of up to 512 rows spread evenly over the vocabulary: a sign survives
    every cast, underflow to a signed zero included, and fine-tuning flips some of them.

    Args:
        embedding: the module from ``get_input_embeddings()``, with a floating-point ``weight`` `[V, d]`.

    Returns:
        16 hexadecimal digits.
    """
    with loaded(embedding):
        weight = embedding.weight
        assert isinstance(weight, torch.Tensor)
        vocabulary, hidden_size = weight.shape
        count = min(vocabulary, FINGERPRINT_ROWS)
        rows = torch.arange(count, device=weight.device) * vocabulary // count
        signs = torch.signbit(weight.detach()[rows]).cpu().numpy()
    shape = json.dumps([vocabulary, hidden_size])
    return hashlib.sha256(shape.encode() + np.packbits(signs).tobytes()).hexdigest()[:16]
