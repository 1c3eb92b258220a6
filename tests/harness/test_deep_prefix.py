"""Deep prefixes in the harness and in training, against PEFT's own: HFLM with a PeftModel, and its gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from packaging.version import Version
from transformers import PreTrainedModel

from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference.capabilities import Capabilities, capabilities, set_capabilities
from lm_eval_spt.inference.transformers_internals import keys_and_values
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train.examples import Example
from lm_eval_spt.train.objective import LossRequest, evaluate
from tests.helpers.models import build_model, random_deep_prefix
from tests.helpers.requests import rolling_loglikelihoods
from tests.helpers.scoring import CLOSE, LONG, requests, values

PAIRS = [
    (text, choice)
    for text in ("The river flows to the sea.", "A cup final", LONG[:200], "x")
    for choice in (" sports", " science and technology", " science", " politics", "")
]


def peft_adapter(model: PreTrainedModel, prompt: SoftPrompt, folder: Path) -> peft.PeftModel:
    """The prompt as PEFT loads it."""
    prompt.to_peft(folder)
    return with_layers_in_order(peft.PeftModel.from_pretrained(model, folder).eval(), prompt)


def with_layers_in_order(adapter: peft.PeftModel, prompt: SoftPrompt) -> peft.PeftModel:
    """The adapter; its test is skipped where an old PEFT mixes up the layers of a model with local windows."""
    layers = [torch.stack(states)[:, 0] for states in keys_and_values(adapter.get_prompt(1))]
    if Version(peft.__version__) < Version("0.19") and not torch.equal(torch.stack(layers).detach(), prompt.vectors):
        pytest.skip(f"PEFT {peft.__version__} mixes up the layers of {type(adapter.get_base_model()).__name__}")
    return adapter


@pytest.fixture
def both(tiny_model, tokenizer, tmp_path) -> tuple[SPTLM, HFLM, SoftPrompt]:
    """A deep prefix in this package, and in PEFT under the harness's own class."""
    prompt = random_deep_prefix(tiny_model, 5)
    theirs = HFLM(pretrained=peft_adapter(tiny_model, prompt, tmp_path), tokenizer=tokenizer, batch_size=1)
    return SPTLM(pretrained=tiny_model, tokenizer=tokenizer, prompt=prompt, batch_size=4), theirs, prompt


def test_log_likelihoods_are_those_of_peft_in_hflm(both):
    ours, theirs, _ = both
    asked = requests("loglikelihood", [pair for pair in PAIRS if pair[1]])
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    plain = SPTLM(pretrained=ours.model, tokenizer=ours.tokenizer).loglikelihood(asked, disable_tqdm=True)
    assert max(abs(a - b) for a, b in zip(values(plain), values(expected), strict=True)) > 0.1
    for fast in (True, False):
        ours._fast = fast
        found = ours.loglikelihood(asked, disable_tqdm=True)
        assert values(found) == pytest.approx(values(expected), **CLOSE)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_rolling_log_likelihoods_are_those_of_peft_in_hflm(both):
    ours, theirs, prompt = both
    for text in ("A cup final", LONG[:300]):
        asked = requests("loglikelihood_rolling", [(text,)])
        assert rolling_loglikelihoods(ours, asked) == pytest.approx(rolling_loglikelihoods(theirs, asked), **CLOSE)


def plain_loop(model: PreTrainedModel, prompt: SoftPrompt, text: list[int], steps: int) -> list[int]:
    """Greedy decoding of one text, by passes over all of it behind the prefix."""
    tokens: list[int] = []
    with torch.no_grad():
        for _ in range(steps):
            cache = prompt.past_key_values(model)
            logits = model(input_ids=torch.tensor([text + tokens]), past_key_values=cache).logits
            tokens.append(int(logits[0, -1].argmax()))
    return tokens


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}])
def test_generation_is_that_of_plain_passes(both, settings):
    """PEFT's own generation gives other positions to texts that are padded; ours has plain passes as its measure."""
    ours, _, prompt = both
    texts = ["The river flows to the sea.", "A cup final", "x"]
    asked = requests("generate_until", [(text, {"until": [], "max_gen_toks": 5, **settings}) for text in texts])
    found = ours.generate_until(asked, disable_tqdm=True)
    if settings:
        alone = [ours.generate_until([request], disable_tqdm=True)[0] for request in asked]
        assert found == alone
        return
    expected = [plain_loop(ours.model, prompt, ours.tok_encode(text), 5) for text in texts]
    assert found == [ours.tok_decode(tokens) for tokens in expected]


def test_transformers_generates_with_it(tiny_model):
    prompt, texts = random_deep_prefix(tiny_model, 5), [[11, 12, 13, 14], [200], [3000, 40]]
    ids = torch.tensor([[0] * (4 - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (4 - len(text)) + [1] * len(text) for text in texts])
    cache = prompt.past_key_values(tiny_model, batch=3)
    limits = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    output = tiny_model.generate(ids, attention_mask=prompt.attention_mask(mask), past_key_values=cache, **limits)
    assert output[:, 4:].tolist() == [plain_loop(tiny_model, prompt, text, 4) for text in texts]


@pytest.mark.parametrize("settings", [{}, {"prefix_projection": True, "encoder_hidden_size": 16}, {"cartridge": True}])
def test_what_peft_wrote_is_read_and_serves_the_same(settings: dict[str, Any], tokenizer, tmp_path):
    model = build_model("gemma3_text")
    if settings.pop("cartridge", False):
        if not hasattr(peft, "CartridgeConfig"):
            pytest.skip(f"PEFT {peft.__version__} knows no cartridges")
        config: Any = peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, num_frozen_tokens=1)
    else:
        config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, **settings)
    peft.get_peft_model(model, config).save_pretrained(str(tmp_path))
    prompt = SoftPrompt.from_pretrained(tmp_path)
    assert (prompt.kind, prompt.length, prompt.size) == ("kv", 4, (2, 2, 2, 8))
    asked = requests("loglikelihood", PAIRS[:4])
    ours = SPTLM(pretrained=build_model("gemma3_text"), tokenizer=tokenizer, prompt=prompt)
    loaded = peft.PeftModel.from_pretrained(build_model("gemma3_text"), tmp_path).eval()
    theirs = HFLM(pretrained=with_layers_in_order(loaded, prompt), tokenizer=tokenizer)
    expected = values(theirs.loglikelihood(asked, disable_tqdm=True))
    assert values(ours.loglikelihood(asked, disable_tqdm=True)) == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("known", [Capabilities(), Capabilities("tree", cache=True, split=True)])
def test_the_gradient_is_that_of_peft(tiny_model, tmp_path, known):
    """Cross-entropy of the answer's tokens, which PEFT leaves to the model; in the slowest way and in the fastest."""
    prompt = random_deep_prefix(tiny_model, 5)
    context, answer = (11, 12, 13, 14, 15, 16), (200, 300)
    key_values = prompt.vectors.clone().requires_grad_()
    ours = LossRequest([Example(((context, answer),), 0)], key_values, 0, "target")
    before = capabilities(tiny_model)
    set_capabilities(tiny_model.requires_grad_(False), known)
    (outcome,) = evaluate(tiny_model, [ours])
    set_capabilities(tiny_model, before)
    loss = outcome.loss / outcome.weight
    loss.backward()

    adapter = peft_adapter(tiny_model, prompt, tmp_path)
    adapter.peft_config["default"].inference_mode = False
    weight = adapter.prompt_encoder["default"].embedding.weight.requires_grad_()
    ids = torch.tensor([[*context, *answer]])
    theirs = adapter(input_ids=ids, labels=torch.tensor([[-100] * len(context) + list(answer)])).loss
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    expected = weight.grad.view(5, *prompt.size).movedim(0, -2)
    assert (key_values.grad - expected).norm() <= 1e-4 * expected.norm()
