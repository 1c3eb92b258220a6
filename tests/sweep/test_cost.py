"""What a sweep takes, against PyTorch's own count and the models' and texts' real sizes."""

from __future__ import annotations

import shutil

import pytest
import yaml
from lm_eval.tasks import TaskManager
from torch.utils.flop_counter import FlopCounterMode

from lm_eval_spt.cli.sweep import sweep
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.harness.options import ContextOptions
from lm_eval_spt.inference import products
from lm_eval_spt.sweep import cost
from lm_eval_spt.sweep.plan import read_plan
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.loop import train
from tests.helpers.models import as_fast, build_encoder_decoder
from tests.helpers.sweeps import LIMIT, TARGETS, score, sweep_file


@pytest.fixture(scope="module")
def mini_model():
    return SPTLM(pretrained="mini", device="cpu").model


@pytest.mark.parametrize(
    "changes",
    [{}, {"placement": "prefix", "loss": "target"}, {"context_cache": "off"}],
    ids=str,
)
def test_the_estimate_is_what_torch_counts(tmp_path, changes, monkeypatch):
    """PyTorch's own count of matrix products while the run trains and is scored, on a model whose head weighs most."""
    monkeypatch.setattr(products, "decisions", lambda *_: ())
    monkeypatch.setattr(products, "is_faster", lambda *_: False)  # those of oneDNN it does not count
    settings = yaml.safe_load(sweep_file(tmp_path).read_text())["settings"]
    settings |= {"epochs": 2, "shots": 4, "validation_shots": 1, "prompt_length": 10, "batch_size": 4} | changes
    plan = read_plan(sweep_file(tmp_path, settings=settings, axes={}))
    (run,) = plan.runs
    estimate = cost.plan_work(plan, cost.TextSizes(limit=LIMIT), "run")[run.name]
    # What is tried beforehand is not the run's.
    monkeypatch.setattr(SPTLM, "try_out", lambda lm, *_, **__: as_fast(lm.model, plain_head=True))
    with FlopCounterMode(display=False) as counter:
        train(run.config)
        lm = SPTLM(prompt=run.config.output, device="cpu", batch_size="auto")
        score(lm)
    assert estimate == pytest.approx(counter.get_total_flops(), rel=0.25)


def test_sharing_saves_what_is_read_more_than_once(tmp_path):
    """Three suffix prompts of one shard read the texts once, a prefix prompt gains nothing."""
    sizes = cost.TextSizes()
    plan = read_plan(sweep_file(tmp_path, axes={"prompt_length": [1, 2, 4]}))
    totals = [sum(cost.plan_work(plan, sizes, way).values()) for way in ("shard", "run", "none")]
    assert totals[0] < totals[1] < totals[2]
    config = plan.runs[0].config
    model = cost.model_size("mini")
    texts = [sizes.test(config, TARGETS), *sizes.training(config)]
    once = 2 * model.body * sum(text.documents * text.tokens for text in texts)
    assert totals[1] - totals[0] == pytest.approx(2 * once)
    plan = read_plan(sweep_file(tmp_path, axes={"prompt_length": [1, 2]}, arms={"a": {"placement": "prefix"}}))
    assert len({sum(cost.plan_work(plan, sizes, way).values()) for way in ("shard", "run", "none")}) == 1


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_sweep_over_an_encoder_decoder_model(tmp_path, tokenizer, family, capsys):
    model = build_encoder_decoder(family)
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / family)
    assert cost.model_size(str(tmp_path / family)).total == sum(weight.numel() for weight in model.parameters())
    settings = {"model": str(tmp_path / family), "task": "mini_topics_eng_Latn", "placement": "prefix", "shots": 1}
    settings |= {"epochs": 0, "device": "cpu", "prompt_length": 2, "max_length": 60}
    sweep(str(sweep_file(tmp_path, settings=settings, axes={"seed": [0]}, evaluate={"limit": 2})), throughput=1)
    assert "[1 done, 0 failed, 0 left]" in capsys.readouterr().out


def test_sizes_are_those_of_the_model_and_its_texts(mini_model, tokenizer):
    size = cost.model_size("mini")
    assert size.total == sum(weight.numel() for weight in mini_model.parameters())
    assert size.hidden == mini_model.config.hidden_size
    assert cost.model_size("bigscience/bloom-560m").total == 559_214_592  # as its model card says
    assert cost.model_size("facebook/xglm-564M").total == pytest.approx(564e6, rel=0.01)
    config = TrainingConfig(model="mini", task="mini_topics_eng_Latn", output="x.safetensors", shots=3)
    sizes = cost.TextSizes()
    assert [texts.documents for texts in sizes.training(config)] == [21, 21]
    test = sizes.test(config, ["mini_topics"])
    assert (test.documents, test.choices) == (84 * 21, 7)
    rows = (tasks_folder() / "mini_topics/data/eng_Latn/test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    lengths = [len(tokenizer(row.split("\t")[2].strip('"'))["input_ids"]) for row in rows[: cost.SAMPLED_DOCUMENTS]]
    assert sizes.test(config, TARGETS[:1]).tokens == pytest.approx(sum(lengths) / len(lengths), rel=0.05)


def test_shots_and_chats_are_part_of_the_texts(tokenizer, tmp_path, monkeypatch):
    """The mean number of tokens in the requests that the harness itself builds, with these options."""
    monkeypatch.setattr(tokenizer, "chat_template", "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    monkeypatch.setattr("lm_eval_spt.sweep.cost._tokenizer", lambda *_: tokenizer)
    options = ContextOptions(num_fewshot=2, apply_chat_template=True, system_instruction="Say what it is about.")
    config = TrainingConfig(
        model="mini", task="mini_topics_eng_Latn", output="x.safetensors", num_fewshot=2, apply_chat_template="default"
    )
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    (task,) = manager.load(TARGETS[:1])["tasks"].values()
    task.config.num_fewshot = 2
    task.set_fewshot_seed(1234)

    def chat(history, add_generation_prompt):
        return tokenizer.apply_chat_template(history, tokenize=False)

    task.build_all_requests(
        limit=cost.SAMPLED_DOCUMENTS, system_instruction="Say what it is about.", apply_chat_template=True,
        fewshot_as_multiturn=True, chat_template=chat,
    )  # fmt: skip
    lengths = [len(tokenizer(request.args[0])["input_ids"]) for request in task.instances if request.idx == 0]
    sizes = cost.TextSizes(scoring=options)
    assert sizes.test(config, TARGETS[:1]).tokens == pytest.approx(sum(lengths) / len(lengths))
    training, _ = sizes.training(config)
    plain, _ = cost.TextSizes().training(
        TrainingConfig(model="mini", task="mini_topics_eng_Latn", output="x.safetensors")
    )
    assert training.tokens > 2.5 * plain.tokens


def test_what_is_not_here_is_assumed_and_said(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("SIB200_DIR", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("lm_eval_spt.sweep.cost._tokenizer", _only_mini)
    monkeypatch.setattr("lm_eval_spt.sweep.cost._look", _nothing_there)
    settings = {"model": "bigscience/bloom-560m", "task": "sib200_eng_Latn"}
    sweep(str(sweep_file(tmp_path, settings=settings, targets=["sib200_paper"])), dry_run=True, throughput=10)
    printed = capsys.readouterr().out
    assert "the embedded model's tokens stand for those of bigscience/bloom-560m" in printed
    assert "sib200_paper: texts of 103 tokens" in printed
    assert "2 runs, 2 to do, in 1 shards" in printed
    monkeypatch.setattr("lm_eval_spt.sweep.cost.speed_here", lambda dtype: 1e12)  # nor is how its weights are stored
    sweep(str(sweep_file(tmp_path, settings=settings, targets=["sib200_paper"])), dry_run=True)
    assert "of what float32 matrix products reach here" in capsys.readouterr().out


def _only_mini(model: str, revision: str | None, trust_remote_code: bool):
    if model != "mini":
        raise UserError("no such model here")
    return None


def _nothing_there(*arguments: object) -> cost.Texts:
    raise UserError("no network")


def test_too_little_disk_is_said_before_anything_is_done(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=20_000)
    monkeypatch.setattr("lm_eval_spt.sweep.cost.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="needs about 0.07 MB in .*, where 0.02 MB are free"):
        sweep(str(sweep_file(tmp_path)), throughput=1)
    assert not (tmp_path / "out").exists()
    sweep(str(sweep_file(tmp_path)), throughput=1, dry_run=True)
