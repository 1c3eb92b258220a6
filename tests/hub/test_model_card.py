"""Model cards, and repositories on the Hub: what is uploaded is what is loaded again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from peft import PeftModel

from lm_eval_spt.analysis.arms import read_arms
from lm_eval_spt.cli import main
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.hub.eval_results import eval_results
from lm_eval_spt.hub.model_card import BEGIN, END, model_card, runs_of
from lm_eval_spt.hub.push import push
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.hub import Hub, running_hub
from tests.helpers.models import build_model
from tests.helpers.results import write_prompt, write_results

SCORES = {"eng_Latn": 0.8, "deu_Latn": 0.5, "swh_Latn": 0.3}


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    return write_prompt(tmp_path / "suffix.safetensors")


@pytest.fixture
def results(tmp_path: Path, prompt_file: Path) -> Path:
    write_results(tmp_path / "results" / "prompt", SCORES, prompt=prompt_file)
    write_results(tmp_path / "results" / "none", dict.fromkeys(SCORES, 0.25))
    return tmp_path / "results"


# -- the card ----------------------------------------------------------------------------------------------------------


def test_the_hub_reads_the_front_matter(prompt_file: Path, results: Path) -> None:
    arms, _ = read_arms([(None, results)])
    card = ModelCard(model_card(SoftPrompt.load(prompt_file), str(prompt_file), arms))
    assert card.data.base_model == "org/bloom-560m"
    assert card.data.datasets == ["Davlan/sib200"]
    assert card.data.language == ["deu", "eng", "swh"]
    assert card.data.metrics == ["accuracy", "f1"]
    found = {(result.dataset_config, result.metric_name): result.metric_value for result in card.data.eval_results}
    assert found == {
        ("eng_Latn", "acc"): 0.8,
        ("mean of 2 target languages", "acc"): pytest.approx(0.4),
        ("eng_Latn", "macro_f1"): 0.75,
        ("mean of 2 target languages", "macro_f1"): pytest.approx(0.35),
    }


def test_a_card_says_that_test_documents_were_seen(prompt_file: Path) -> None:
    prompt = SoftPrompt.load(prompt_file)
    assert "test documents**" not in model_card(prompt, "here")
    seen = SoftPrompt(prompt.vectors, prompt.metadata | {"scored_documents": {"training": 40, "validation": 0}}, "seen")
    assert "**It has seen test documents**: 40 of the training documents are also scored" in model_card(seen, "here")


def test_the_table_shows_this_prompt_and_what_it_is_compared_with(prompt_file: Path, results: Path) -> None:
    arms, _ = read_arms([("the | bar", results / "prompt"), ("no prompt", results / "none")])
    lines = model_card(SoftPrompt.load(prompt_file), str(prompt_file), arms).splitlines()
    assert "| language | suffix, acc | suffix, macro_f1 | no prompt, acc |" in lines
    assert "| swh_Latn | 30.0 ± 3.0 | 25.0 ± 3.1 | 25.0 ± 3.0 |" in lines


def test_odd_names_stay_text(tmp_path: Path, results: Path) -> None:
    file = tmp_path / "my <b>*prompt*.safetensors"
    SoftPrompt(torch.ones(2, 8), {"base_model": "models/base.gguf", "placement": "suffix"}).save(file)
    write_results(tmp_path / "mine", SCORES, prompt=file)
    name = "no <b>prompt</b> | [x](http://example.org) `a`"
    arms, _ = read_arms([(None, tmp_path / "mine"), (name, results / "none")])
    text = model_card(SoftPrompt.load(file), str(file), arms)
    html = MarkdownIt("commonmark").enable("table").render(text.partition(BEGIN)[2])
    assert f"<h1>{escapeHtml(file.stem)}</h1>" in html and f"{escapeHtml(name)}, acc</th>" in html
    (line,) = [line for line in text.splitlines() if line.startswith("lm_eval ")]
    assert f"prompt={file}" in shlex.split(line)
    assert "base_model" not in ModelCard(text).data.to_dict()
    prefix = replace(SoftPrompt.load(file), metadata={"base_model": "org/base", "placement": "prefix"})
    card = model_card(prefix, str(file))
    (command,) = re.findall(r"after `(lm-eval-spt convert .*)`:", card)
    assert shlex.split(command) == ["lm-eval-spt", "convert", str(file), file.stem]
    assert f'PeftModel.from_pretrained(model, "{file.stem}")' in card


def test_a_prompt_without_a_record_learned_on_nothing_known(tmp_path: Path) -> None:
    file = tmp_path / "p.safetensors"
    SoftPrompt(torch.ones(2, 8)).save(file)
    write_results(tmp_path / "mine", SCORES, prompt=file)
    text = model_card(SoftPrompt.load(file), str(file), read_arms([(None, tmp_path / "mine")])[0])
    assert "In percent. Of a language" in text


def test_any_task_with_any_metric_has_a_card(tmp_path: Path) -> None:
    vectors = SoftPrompt.load(write_prompt(tmp_path / "p.safetensors")).vectors
    prompt = SoftPrompt(vectors, {"placement": "suffix", "tasks": ["xnli_sw"]}, name="p")
    write_results(tmp_path / "results", {"sw": 0.8, "de": 0.5, "zh": 0.3}, family="xnli")
    file = next((tmp_path / "results").glob("*.json"))
    content = json.loads(file.read_text().replace("acc", "chrf").replace("macro_f1", "ter"))
    content["config"] |= {"prompt_name": "p", "prompt_digest": prompt.digest, "prompt_metadata": prompt.metadata}
    file.write_text(json.dumps(content))
    arms, _ = read_arms([(None, file)])
    text = model_card(prompt, "p.safetensors", arms)
    assert "| language | p, chrf |" in text
    assert "| **swh_Latn** (source) | 80.0 ± 3.0 |" in text  # what it was trained on
    data = ModelCard(text).data
    assert (data.language, data.metrics) == (["deu", "swh", "zho"], ["chrf"])
    assert {(result.dataset_config, result.metric_value) for result in data.eval_results} == {
        ("swh_Latn", 0.8),
        ("mean of 2 target languages", 0.4),
    }


def test_only_this_prompt_counts_among_seeds_of_one_arm(tmp_path: Path, prompt_file: Path, results: Path) -> None:
    other = write_prompt(tmp_path / "seed1.safetensors", seed=1)
    write_results(tmp_path / "results" / "seed1", {code: value - 0.2 for code, value in SCORES.items()}, prompt=other)
    arms, _ = read_arms([("arm", results / "prompt"), ("arm", results / "seed1")])
    lines = model_card(SoftPrompt.load(prompt_file), str(prompt_file), arms).splitlines()
    assert "| language | suffix, acc | suffix, macro_f1 | arm (mean of 2 runs), acc |" in lines
    assert any(line.startswith("| swh_Latn | 30.0 ± 3.0 | 25.0 ± 3.1 | 20.0 ± ") for line in lines)


def test_a_card_keeps_what_people_wrote(prompt_file: Path, results: Path) -> None:
    prompt = SoftPrompt.load(prompt_file)
    first = model_card(prompt, str(prompt_file))
    edited = (
        first.replace("---\n", "---\nlicense: mit\n", 1).replace(BEGIN, f"Mine, above.\n\n{BEGIN}") + "\nMine, below.\n"
    )
    arms, _ = read_arms([(None, results)])
    second = model_card(prompt, str(prompt_file), arms, edited)
    assert yaml.safe_load(second.split("---")[1])["license"] == "mit"
    assert second.index("Mine, above.") < second.index(BEGIN) < second.index(END) < second.index("Mine, below.")
    assert second.count(BEGIN) == 1 and "## Results" in second
    assert model_card(prompt, str(prompt_file), arms, second) == second


def test_results_of_other_prompts_are_refused(tmp_path: Path, results: Path) -> None:
    other = SoftPrompt.load(write_prompt(tmp_path / "other.safetensors", seed=5))
    arms, _ = read_arms([(None, results)])
    with pytest.raises(UserError, match="none of the results are of the prompt 'other'"):
        model_card(other, "other.safetensors", arms)


@pytest.mark.parametrize("front_matter", ["a: [", "- a\n- b"])
def test_a_card_that_is_not_one_is_refused(prompt_file: Path, front_matter: str) -> None:
    with pytest.raises(UserError, match="front matter is not") as caught:
        model_card(SoftPrompt.load(prompt_file), "x", existing=f"---\n{front_matter}\n---\ntext")
    assert "\n" not in str(caught.value)


def test_the_command_writes_beside_the_prompt(prompt_file: Path, results: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["card", str(prompt_file), "--results", str(results / "prompt"), f"no prompt={results / 'none'}"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(prompt_file.with_suffix(".md"))
    assert "no prompt, acc" in prompt_file.with_suffix(".md").read_text()


# -- the Hub -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


def test_what_is_pushed_is_loaded_by_the_repositorys_name(
    hub: Hub, prompt_file: Path, results: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["push", str(prompt_file), "me/topics", "--private", "--results", str(results)]) == 0
    assert f"{hub.address}/me/topics/commit/" in capsys.readouterr().out
    files = hub.repositories["me/topics"]
    top = [name.split("/")[0] for name in files]
    assert sorted(top) == [".eval_results", "README.md", "results", "results", "suffix.safetensors"]
    assert hub.private == {"me/topics"} and len(hub.commits) == 1
    uploaded = [json.loads(content) for name, content in files.items() if name.startswith("results/")]
    assert sorted(content["config"].get("prompt_name", "") for content in uploaded) == ["", "suffix"]
    assert "prompt=me/topics" in files["README.md"].decode()

    loaded = SoftPrompt.from_pretrained("me/topics")
    original = SoftPrompt.load(prompt_file)
    assert loaded.digest == original.digest and loaded.metadata["tasks"] == original.metadata["tasks"]
    assert main(["inspect", "me/topics"]) == 0
    assert original.digest in capsys.readouterr().out


def test_the_scores_are_pushed_as_the_hub_reads_them(hub: Hub, prompt_file: Path, results: Path) -> None:
    write_results(results / "instruct", {"eng_Latn": 0.75}, family="sib200_instruct", prompt=prompt_file)
    write_results(results / "elsewhere", {"eng_Latn": 0.75}, family="mini_topics", prompt=prompt_file)
    write_results(results / "part", {"eng_Latn": 0.75}, family="sib200_bloom", prompt=prompt_file, limit=20)
    arms, _ = read_arms([("sib200", results / "prompt"), ("no prompt", results / "none"), ("i", results / "instruct")])
    push(
        SoftPrompt.load(prompt_file),
        "me/topics",
        [*arms, *read_arms([(None, results / "elsewhere")])[0], *read_arms([(None, results / "part")])[0]],
    )
    files = {name: yaml.safe_load(text) for name, text in hub.repositories["me/topics"].items() if name[0] == "."}
    assert files.keys() == {".eval_results/sib200.yaml", ".eval_results/sib200_instruct.yaml"}
    for entry in [entry for entries in files.values() for entry in entries]:
        # The specification: https://github.com/huggingface/hub-docs/blob/main/docs/hub/eval-results.md
        assert entry["dataset"].keys() == {"id", "task_id"} and entry.keys() == {
            "dataset",
            "value",
            "date",
            "source",
            "notes",
        }
        assert datetime.fromisoformat(entry["date"]).tzinfo and entry["source"]["url"].startswith(
            "https://huggingface.co/me/"
        )
    parse = pytest.importorskip("huggingface_hub", "1.5").parse_eval_result_entries
    read = {entry.task_id: entry for entry in parse(files[".eval_results/sib200.yaml"])}
    assert {code: entry.value for code, entry in read.items()} == SCORES
    assert {entry.dataset_id for entry in read.values()} == {"Davlan/sib200"}
    assert SoftPrompt.load(prompt_file).digest[:8] in read["eng_Latn"].notes


def test_two_runs_of_a_family_are_both_pushed(prompt_file: Path, results: Path) -> None:
    arguments = {"pretrained": "org/bloom-560m", "calibration": "probability"}
    write_results(results / "calibrated", {"eng_Latn": 0.9}, prompt=prompt_file, model_args=arguments)
    arms, _ = read_arms([(None, results)])
    (text,) = eval_results(runs_of(SoftPrompt.load(prompt_file), arms), "me/topics").values()
    english = [entry for entry in yaml.safe_load(text) if entry["dataset"]["task_id"] == "eng_Latn"]
    assert {(entry["value"], "(calibrated)" in entry["notes"]) for entry in english} == {(0.8, False), (0.9, True)}


def test_a_prefix_prompt_becomes_an_adapter_that_peft_loads(hub: Hub, tmp_path: Path) -> None:
    model = build_model("llama")
    vectors = torch.randn(3, model.config.hidden_size)
    prompt = SoftPrompt(vectors, {"placement": "prefix", "base_model": "me/base"}, name="prefix")
    push(prompt, "me/prefix")
    loaded = PeftModel.from_pretrained(model, huggingface_hub.snapshot_download("me/prefix"))
    assert torch.equal(loaded.get_prompt(batch_size=1)[0], vectors)
    assert SoftPrompt.from_pretrained("me/prefix").digest == prompt.digest
    assert 'PeftModel.from_pretrained(model, "me/prefix")' in hub.repositories["me/prefix"]["README.md"].decode()


def test_a_second_push_keeps_the_cards_text(hub: Hub, prompt_file: Path) -> None:
    prompt = SoftPrompt.load(prompt_file)
    push(prompt, "me/topics")
    hub.repositories["me/topics"]["README.md"] += b"\nMine.\n"
    push(prompt, "me/topics")
    assert hub.repositories["me/topics"]["README.md"].decode().endswith("Mine.\n")
    assert len(hub.commits) == 2


def test_a_repository_holds_one_prompt(hub: Hub, prompt_file: Path, tmp_path: Path) -> None:
    push(SoftPrompt.load(prompt_file), "me/topics")
    before = dict(hub.repositories["me/topics"])
    other = SoftPrompt.load(write_prompt(tmp_path / "other.safetensors", seed=5))
    with pytest.raises(UserError, match="me/topics already holds suffix.safetensors"):
        push(other, "me/topics")
    assert hub.repositories["me/topics"] == before


def test_without_a_valid_token_one_line_says_so(
    hub: Hub, prompt_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main(["push", str(prompt_file), "me/topics"]) == 1
    error = capsys.readouterr().err
    assert "does not let you write to me/topics: log in" in error and error.count("\n") == 1


def test_an_unreachable_hub_is_one_line(
    prompt_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert main(["push", str(prompt_file), "me/topics"]) == 1
    error = capsys.readouterr().err
    assert "me/topics could not be uploaded" in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["topics", "a/b/c", "me/--x..y"])
def test_a_name_that_no_repository_can_have_is_refused(prompt_file: Path, name: str) -> None:
    with pytest.raises(UserError, match="is not a repository on the Hub"):
        push(SoftPrompt.load(prompt_file), name)


def test_the_card_says_what_stands_where() -> None:
    prompt = SoftPrompt(torch.randn(5, 4), {"placement": "both", "num_prefix_tokens": 2, "base_model": "mini"}, "both")
    text = model_card(prompt, "me/both")
    assert "placed 2 before and 3 after the text" in text
    assert "PEFT can not load it" in text and "library_name: lm_eval_spt" in text


def test_the_card_of_a_prompt_that_was_not_learned_alone() -> None:
    record = {"placement": "prefix", "base_model": "runs/all", "tuned_from": "me/base", "tasks": ["t"]}
    text = model_card(SoftPrompt(torch.randn(2, 4), record, "p"), "me/p")
    assert "of the model `runs/all`, which was tuned from `me/base` together with it." in text
    assert "--model_args pretrained=runs/all,prompt=me/p --tasks t" in text
    record = {"placement": "prefix", "base_model": "me/base", "adapter": "runs/lora", "tasks": ["t"]}
    text = model_card(SoftPrompt(torch.randn(2, 4), record, "p"), "me/p")
    assert "of the model `me/base` with the LoRA adapter `runs/lora`, which was learned together with it." in text
    assert "--model_args pretrained=me/base,peft=runs/lora,prompt=me/p --tasks t" in text
    assert "PeftModel" not in text


def test_the_card_of_a_prompt_of_two_source_languages(tmp_path: Path) -> None:
    """Neither is a target language."""
    file = write_prompt(tmp_path / "two.safetensors", sources=["eng_Latn", "deu_Latn"])
    write_results(tmp_path / "r", {"eng_Latn": 0.9, "deu_Latn": 0.8, "fra_Latn": 0.6, "swh_Latn": 0.3}, prompt=file)
    text = model_card(SoftPrompt.load(file), "p", read_arms([("", tmp_path / "r")])[0])
    assert "learned on deu_Latn, eng_Latn alone" in text
    assert "| deu_Latn | 80.0" in text and "| **mean of 2 target languages** | 45.0" in text
    assert "mean of 2 target languages\n" in text.partition("\n---\n")[0]


def test_the_card_loads_an_encoder_decoder_model_as_one() -> None:
    record = {"placement": "prefix", "base_model": "me/t5", "task_type": "SEQ_2_SEQ_LM"}
    text = model_card(SoftPrompt(torch.randn(2, 4), record, "p"), "me/p")
    assert "AutoModelForSeq2SeqLM.from_pretrained('me/t5')" in text and "CausalLM" not in text


def test_the_card_of_a_deep_prefix(tmp_path: Path) -> None:
    """PEFT loads it as a prefix-tuning adapter."""
    prompt = SoftPrompt(torch.zeros(3, 2, 1, 5, 4), {"base_model": "owner/base"}, name="deep")
    text = model_card(prompt, "deep.safetensors")
    assert "A deep prefix (prefix tuning): keys and values of 3 layers with 1 heads of size 4" in text
    assert "for each of 5 positions before the text" in text and "convert deep.safetensors deep" in text
    assert "library_name: peft" in text
