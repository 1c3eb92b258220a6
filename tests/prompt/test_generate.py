"""A prompt under transformers' ``generate``, against PEFT, a plain loop of argmax steps, and the page that shows it."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import peft
import pytest
import torch
from transformers import PreTrainedModel

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.prompt.metadata import PLACEMENTS
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.models import build_model, random_prompt
from tests.helpers.paths import ROOT

TEXTS = [[11, 12, 13, 14, 15], [200], [3000, 40, 5000]]
NEW_TOKENS = 6
PAGE = ROOT / "docs" / "generate.md"


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    time = max(map(len, TEXTS))
    ids = torch.tensor([[0] * (time - len(text)) + text for text in TEXTS])
    return ids, torch.tensor([[0] * (time - len(text)) + [1] * len(text) for text in TEXTS])


def placed(model: PreTrainedModel, prompt: SoftPrompt, text: list[int]) -> torch.Tensor:
    """The embeddings `[1, P + time, d]` of one unpadded text, as the placement's definition has it."""
    words = model.get_input_embeddings()(torch.tensor(text))
    half = (prompt.length + 1) // 2  # what `random_prompt` puts before the text
    parts = {
        "prefix": [prompt.vectors, words],
        "suffix": [words, prompt.vectors],
        "both": [prompt.vectors[:half], words, prompt.vectors[half:]],
    }
    return torch.cat(parts[prompt.placement])[None]


def greedy(model: PreTrainedModel, embeds: torch.Tensor) -> list[int]:
    """Greedy decoding of one text by plain passes over everything so far."""
    tokens: list[int] = []
    with torch.no_grad():
        while len(tokens) < NEW_TOKENS and tokens[-1:] != [model.config.eos_token_id]:
            tokens.append(int(model(inputs_embeds=embeds, use_cache=False).logits[0, -1].argmax()))
            embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([tokens[-1:]]))], dim=1)
    return tokens


def generated(model: PreTrainedModel, prompt: SoftPrompt) -> list[list[int]]:
    """New tokens of every text, all in one padded batch, without what `generate` fills up finished rows with."""
    ids, mask = padded()
    output = model.generate(
        inputs_embeds=prompt.inputs_embeds(model, ids, mask),
        attention_mask=prompt.attention_mask(mask),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
    )
    eos = model.config.eos_token_id
    return [row[: row.index(eos) + 1] if eos in row else row for row in output.tolist()]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_padded_batch_gives_the_tokens_of_a_plain_loop(tiny_model: PreTrainedModel, placement: str) -> None:
    prompt = random_prompt(tiny_model, length=5, placement=placement)
    expected = [greedy(tiny_model, placed(tiny_model, prompt, text)) for text in TEXTS]
    assert generated(tiny_model, prompt) == expected
    assert len({tuple(tokens) for tokens in expected}) > 1


def greedy_in_peft(adapted: peft.PeftModel, text: list[int]) -> list[int]:
    """New tokens of a text, all of it read anew at every step: with its cache PEFT 0.21 errs in transformers 5.24."""
    tokens: list[int] = []
    while len(tokens) < NEW_TOKENS and adapted.config.eos_token_id not in tokens:
        with torch.no_grad():
            logits = adapted(input_ids=torch.tensor([text + tokens]), use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens


@pytest.mark.parametrize("family", ["gpt2", "llama", "xglm", "gemma3_text"])
def test_a_prefix_gives_the_tokens_that_peft_gives(family: str, tmp_path: Path) -> None:
    model = build_model(family)
    prompt = random_prompt(model)
    own = generated(model, prompt)
    prompt.to_peft(tmp_path)
    adapted = peft.PeftModel.from_pretrained(model, tmp_path)
    for text, tokens in zip(TEXTS, own, strict=True):
        assert greedy_in_peft(adapted, text) == tokens


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("family", ["llama", "xglm"])
def test_prompt_and_padding_stand_where_they_should(family: str, placement: str) -> None:
    """XGLM scales its embeddings: the text's are scaled, the prompt's vectors are not."""
    model = build_model(family)
    prompt = random_prompt(model, placement=placement)
    ids, mask = padded()
    embeds, both_mask = prompt.inputs_embeds(model, ids, mask), prompt.attention_mask(mask)
    assert embeds.shape == (3, 4 + 5, prompt.hidden_size) and both_mask.shape == (3, 4 + 5)
    for row, row_mask, text in zip(embeds, both_mask, TEXTS, strict=True):
        assert row_mask.tolist() == [0] * (5 - len(text)) + [1] * (4 + len(text))
        assert torch.equal(row[row_mask.bool()], placed(model, prompt, text)[0])
    alone = prompt.inputs_embeds(model, torch.tensor(TEXTS[:1]))
    assert torch.equal(alone, placed(model, prompt, TEXTS[0]))


def test_they_have_the_models_dtype_and_gradients_reach_the_vectors() -> None:
    model = build_model("llama").to(torch.bfloat16)
    prompt = random_prompt(model, placement="both")
    prompt.vectors.requires_grad_()
    embeds = prompt.inputs_embeds(model, torch.tensor(TEXTS[:1]))
    assert embeds.dtype == torch.bfloat16
    (embeds[0, 1] * 2 + embeds[0, -1] * 3).sum().backward()  # vectors 1 (before the text) and 3 (the last one after)
    assert prompt.vectors.grad is not None
    assert prompt.vectors.grad.mean(dim=1).tolist() == [0, 2, 0, 3]


def test_what_does_not_fit_is_refused_in_one_line(tiny_models: dict[str, PreTrainedModel]) -> None:
    llama, gpt2 = tiny_models["llama"], tiny_models["gpt2"]
    prompt = random_prompt(llama)
    ids, mask = padded()
    for arguments, message in (
        ((gpt2, ids), "was trained for"),
        ((llama, ids[0]), r"ids have shape \[5\], expected \[batch, time\]"),
        ((llama, ids, mask[:, :3]), r"mask has shape \[3, 3\] and the ids have \[3, 5\]"),
        ((llama, ids, mask.flip(1)), "expected padding on the left .* padding_side='left'"),
    ):
        with pytest.raises(UserError, match=message):
            prompt.inputs_embeds(*arguments)
    with pytest.raises(UserError, match="expected padding on the left"):
        prompt.attention_mask(mask.flip(1))


def test_the_page_shows_what_its_code_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for code, expected in blocks:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(code, names)
        assert output.getvalue() == expected
