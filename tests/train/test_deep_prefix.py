"""Learning a deep prefix: what it starts from, what moves, what is refused; its gradient is in the harness's tests."""

from __future__ import annotations

import peft
import pytest
import torch

from lm_eval_spt.cli.train import main
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference.transformers_internals import keys_and_values
from lm_eval_spt.prompt.compose import compose
from lm_eval_spt.prompt.ensemble import Ensemble
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train.config import TrainingConfig
from tests.helpers.models import build_encoder_decoder, build_model, random_deep_prefix, random_prompt
from tests.helpers.training import TASK, Stopped, accuracy, run, settings_for, stopped_after

KV = {"prompt_kind": "kv", "placement": "prefix"}


def cache_of_text(mini: SPTLM, ids: list[int]) -> torch.Tensor:
    """Keys and values that the model itself makes of a text, `[layers, 2, heads, time, head_dim]`."""
    with torch.no_grad():
        cache = mini.model(torch.tensor([ids]), use_cache=True).past_key_values
    return torch.stack([torch.stack([keys[0], values[0]]) for keys, values in keys_and_values(cache)])


def test_a_text_is_a_start_and_learning_goes_on_from_it(mini, tmp_path):
    text = "Which topic is this text about?"
    ids = mini.tok_encode(text, add_special_tokens=False)
    settings = {**KV, "init_text": text, "prompt_length": len(ids)}
    start, _ = run(tmp_path / "start.safetensors", epochs=0, **settings)
    torch.testing.assert_close(start.vectors, cache_of_text(mini, ids), atol=1e-5, rtol=1e-5)
    learned, rows = run(tmp_path / "kv.safetensors", **settings)
    assert learned.metadata["validation"]["loss"] < rows[0]["validation"]["loss"]
    assert learned.metadata["tuned_parameters"] == start.vectors.numel()
    assert accuracy(prompt=str(tmp_path / "kv.safetensors")) == pytest.approx(
        learned.metadata["validation"]["accuracy"]
    )
    again = SoftPrompt.load(tmp_path / "kv.safetensors")
    assert (again.digest, again.kind, again.placement) == (learned.digest, "kv", "prefix")


def test_other_starts(mini, tmp_path):
    prefix, _ = run(tmp_path / "prefix.safetensors", placement="prefix", epochs=1)
    from_prefix, _ = run(tmp_path / "a.safetensors", **KV, epochs=0, init=str(tmp_path / "prefix.safetensors"))
    with torch.no_grad():
        cache = mini.model(inputs_embeds=prefix.vectors[None], use_cache=True).past_key_values
    expected = torch.stack([torch.stack([keys[0], values[0]]) for keys, values in keys_and_values(cache)])
    torch.testing.assert_close(from_prefix.vectors, expected, atol=1e-5, rtol=1e-5)
    assert from_prefix.metadata["started_from"]["name"] == "prefix"
    from_itself, _ = run(tmp_path / "b.safetensors", **KV, epochs=0, init=str(tmp_path / "a.safetensors"))
    assert torch.equal(from_itself.vectors, from_prefix.vectors)
    drawn = [
        run(tmp_path / "c.safetensors", **KV, epochs=0, init="uniform", seed=seed)[0].vectors for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert drawn[0].abs().max() <= 0.5 and drawn[0].std() == pytest.approx(12**-0.5, abs=0.02)


@pytest.mark.parametrize("kind", ["embeddings", "kv"])
def test_frozen_tokens_stay_as_they_are(tmp_path, kind):
    settings = {"prompt_kind": kind, "placement": "prefix", "num_frozen_tokens": 1}
    start, _ = run(tmp_path / "start.safetensors", epochs=0, **settings)
    learned, _ = run(tmp_path / "learned.safetensors", epochs=1, **settings)
    moved = (learned.vectors - start.vectors).movedim(-2, 0).flatten(1).norm(dim=1)
    assert moved[0] < 1e-5 and (moved[1:] > 0.01).all()
    assert learned.metadata["tuned_parameters"] == learned.vectors.numel() * 3 // 4


@pytest.mark.parametrize("changes", [{}, {"reparameterization": "residual"}, {"tune": "lora"}, {"tune": "all"}])
def test_a_run_that_was_stopped_ends_in_the_same_bytes(tmp_path, monkeypatch, changes):
    changes = KV | changes
    whole, rows = run(tmp_path / "whole" / "p.safetensors", **changes)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stopped_after(9, patch)
        run(tmp_path / "parts" / "p.safetensors", **changes)
    resumed, _ = run(tmp_path / "parts" / "p.safetensors", resume=True, **changes)
    assert resumed.digest == whole.digest
    assert rows[-1]["validation"]["loss"] < rows[0]["validation"]["loss"]
    score = {"lora": {"pretrained": "mini", "peft": str(tmp_path / "whole" / "p")}}.get(changes.get("tune", ""), {})
    if changes.get("tune") == "all":
        score = {"pretrained": str(tmp_path / "whole" / "p")}
    found = accuracy(prompt=str(tmp_path / "whole" / "p.safetensors"), **score)
    assert found == pytest.approx(whole.metadata["validation"]["accuracy"])


def test_several_runs_side_by_side_are_as_each_by_itself(tmp_path):
    alone, _ = run(tmp_path / "alone.safetensors", **KV, seed=1)
    common = {"model": "mini", "task": TASK, "seed": 1, "placement": "prefix", "epochs": 3, "shots": 4, "lr": 0.02}
    common |= {"validation-shots": 3, "prompt-length": 4, "batch-size": 7, "output": tmp_path / "grid.safetensors"}
    flags = [part for name, value in common.items() for part in (f"--{name}", str(value))]
    assert main([*flags, "--prompt-kind", "kv", "embeddings"]) == 0
    beside = SoftPrompt.load(tmp_path / "grid-prompt_kind_kv.safetensors")
    assert beside.digest == alone.digest


def test_averages_and_ensembles_of_deep_prefixes(mini, tmp_path):
    first, second = (random_deep_prefix(mini.model, 4, seed) for seed in (0, 1))
    mean = compose([first, second], "mean")
    torch.testing.assert_close(mean.vectors, (first.vectors + second.vectors) / 2)
    mean.save(tmp_path / "mean.safetensors")
    assert SoftPrompt.load(tmp_path / "mean.safetensors").size == first.size
    weighted = compose([first, second], "interpolate", 0.25)
    torch.testing.assert_close(weighted.vectors, 0.75 * first.vectors + 0.25 * second.vectors)
    with pytest.raises(UserError, match="'concat' does not go with deep prefixes"):
        compose([first, second], "concat")
    embeddings = random_prompt(mini.model, 4)
    with pytest.raises(UserError, match="has the kind 'kv' and .* has 'embeddings'"):
        compose([first, embeddings], "mean")
    with pytest.raises(UserError, match="an ensemble have keys and values of .* and vectors of size"):
        Ensemble((first, embeddings))
    assert Ensemble((first, second)).length == 8


BAD = {
    "placement": ({"placement": "suffix"}, "--placement is 'suffix': expected prefix: a deep prefix"),
    "checkpointing": ({"activation_checkpointing": True}, "--activation-checkpointing is True: expected no"),
    "all frozen": ({"num_frozen_tokens": 4}, "--num-frozen-tokens is 4: expected a number from 0 to below"),
    "a network": (
        {"num_frozen_tokens": 1, "reparameterization": "mlp"},
        "--reparameterization is 'mlp': expected none",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_settings_that_do_not_go_together(tmp_path, case):
    changes, message = BAD[case]
    with pytest.raises(UserError, match=message):
        settings_for(tmp_path / "p.safetensors", **{**KV, **changes})


def test_placement_and_rate_follow_from_the_kind_where_nothing_says_another(tmp_path):
    given = {"model": "mini", "task": TASK, "output": str(tmp_path / "p.safetensors"), "prompt_kind": "kv"}
    config = TrainingConfig.from_settings(given)
    assert (config.placement, config.lr) == ("prefix", 2e-2)
    assert TrainingConfig.from_settings({**given, "lr": 1e-3}).lr == 1e-3
    with pytest.raises(UserError, match="expected prefix"):
        TrainingConfig.from_settings({**given, "preset": "paper"})


def one_line(caught: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_starts_that_do_not_fit(mini, tmp_path):
    random_deep_prefix(mini.model, 4).save(tmp_path / "kv.safetensors")
    random_prompt(mini.model, 4, "suffix").save(tmp_path / "suffix.safetensors")
    cases = [
        ({"placement": "prefix", "init": "kv"}, "a deep prefix, from which only --prompt-kind kv starts"),
        ({**KV, "init": "suffix"}, "its placement is suffix, and a deep prefix stands before the text"),
        ({**KV, "init": "kv", "prompt_length": 6}, "it has 4 positions, give --prompt-length 4"),
    ]
    for changes, message in cases:
        changes["init"] = str(tmp_path / f"{changes['init']}.safetensors")
        with pytest.raises(UserError, match=message) as caught:
            run(tmp_path / "new.safetensors", **changes)
        one_line(caught)


def test_models_and_prompts_that_do_not_fit(tiny_models, tokenizer, tmp_path):
    gemma, llama = tiny_models["gemma3_text"], tiny_models["llama"]
    with pytest.raises(
        UserError, match="13 positions is longer than what some layers .* look back .12 tokens"
    ) as caught:
        SPTLM(pretrained=gemma, tokenizer=tokenizer, prompt=random_deep_prefix(gemma, 13))
    one_line(caught)
    with pytest.raises(UserError, match="2 layers with 4 heads of size 8, but .* takes .* with 2 heads") as caught:
        SPTLM(pretrained=llama, tokenizer=tokenizer, prompt=random_deep_prefix(tiny_models["gpt2"]))
    one_line(caught)
    t5 = build_encoder_decoder("t5", vocab_size=len(tokenizer))
    unsaid = SoftPrompt(random_deep_prefix(llama).vectors)
    with pytest.raises(UserError, match="takes no deep prefix .it is an encoder-decoder model.") as caught:
        SPTLM(pretrained=t5, tokenizer=tokenizer, prompt=unsaid)
    one_line(caught)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    peft.get_peft_model(build_model("llama"), config).save_pretrained(str(tmp_path))  # it changes the model
    with pytest.raises(UserError, match="type is 'LORA', expected 'PROMPT_TUNING' or .* or 'CARTRIDGE'") as caught:
        SoftPrompt.from_pretrained(tmp_path)
    one_line(caught)


def test_vectors_of_another_shape(tmp_path):
    with pytest.raises(UserError, match=r"shape \[4, 3, 2, 5, 8\], expected \[layers, 2,"):
        SoftPrompt(torch.zeros(4, 3, 2, 5, 8))
    broken = torch.zeros(4, 2, 2, 5, 8)
    broken[1, 0, 1, 3, 2] = torch.nan
    with pytest.raises(UserError, match="vector 3 .counted from 0. holds NaN"):
        SoftPrompt(broken)
    with pytest.raises(UserError, match="placement is 'suffix', a deep prefix stands before the text"):
        SoftPrompt(torch.zeros(4, 2, 2, 5, 8), {"placement": "suffix"})
