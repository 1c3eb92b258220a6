"""Every architecture of transformers gives the numbers of its own plain pass, or one line that says why not."""

from __future__ import annotations

import pytest
import torch
import transformers

from lm_eval_spt.inference.transformers_internals import decoder_of, logits
from tests.models import plain, trials
from tests.models.table import written
from tests.models.tiny import ARCHITECTURES, tiny_model
from tests.models.trials import EXACT, SLOWER, try_architecture

# Warnings of transformers' models are not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

SAMPLE = {
    "bart": "positions that follow slots of the batch",
    "bloom": "ALiBi",
    "cpmant": "no inputs_embeds",
    "deepseek_v3": "latent attention and experts",
    "falcon_h1": "attention and state in one layer",
    "gemma3n_text": "inputs for every layer, shared keys and values",
    "gemma4_text": "keys of other widths from layer to layer",
    "gpt_oss": "attention sinks, windows and experts",
    "jamba": "attention, state and experts",
    "llama4_text": "attention in chunks, and a decoder that get_decoder does not name",
    "mamba2": "state",
    "mixtral": "experts",
    "moshi": "a cache that is read on from behind a deep prefix, and not behind embeddings",
    "qwen3_next": "linear attention",
    "rwkv": "state that ignores padding",
    "xlm-roberta": "positions that begin behind that of padding",
}


def check(kind: str) -> None:
    row = try_architecture(kind)
    assert not row.wrong
    made_with, rows = written()
    if made_with == transformers.__version__:
        cells = [cell if cell in (EXACT, SLOWER) else "no" for cell in row.cells.values()]
        assert not row.cells or [cell.partition(" [")[0] for cell in rows[kind]] == cells


@pytest.mark.parametrize("kind", [kind for kind in SAMPLE if kind in ARCHITECTURES])
def test_an_architecture(kind):
    check(kind)


@pytest.mark.models
@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind not in SAMPLE])
def test_any_other_architecture(kind):
    check(kind)


def test_the_page_has_every_architecture():
    made_with, rows = written()
    if made_with != transformers.__version__:
        pytest.skip(f"docs/models.md was made with transformers {made_with}")
    assert set(rows) == set(ARCHITECTURES)


def test_what_differs_from_the_plain_pass_is_noticed(monkeypatch):
    """The trials are no formality: where the plain pass says something else, every cell is wrong."""
    monkeypatch.setattr(trials, "loglikelihood", lambda *text: 1.001 * plain.loglikelihood(*text))
    monkeypatch.setattr(trials, "greedy", lambda *text: plain.greedy(*text)[::-1])
    row = try_architecture("llama")
    assert not row.cells and list(row.wrong) == list(trials.COLUMNS)


@pytest.mark.parametrize(
    "kind", [kind for kind in ("llama4_text", "mllama", "modernbert-decoder") if kind in ARCHITECTURES]
)
def test_the_decoder_is_the_part_with_the_embeddings(kind):
    """Where ``get_decoder`` names the whole model or its head."""
    model = tiny_model(kind)
    decoder = decoder_of(model)
    assert decoder is not model and decoder.get_input_embeddings() is model.get_input_embeddings()
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(
        logits(model, decoder(input_ids=ids).last_hidden_state[0]), model(input_ids=ids).logits[0]
    )
