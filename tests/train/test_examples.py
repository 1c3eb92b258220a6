"""From documents to the token ids that are scored, and few shots."""

from __future__ import annotations

from collections import Counter

import pytest

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.train import main
from lm_eval_spt.train.examples import Document, choose, encode, load_tasks
from tests.helpers.models import random_prompt
from tests.helpers.training import TASK

LONG = " ".join(f"day {day} of rain," for day in range(30)) + " and sun."


@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_examples_are_the_tokens_that_are_scored(mini, documents, placement, monkeypatch):
    """What training reads is what the model class hands to its scorer for the harness's requests."""
    task = load_tasks([TASK])[0]
    prompt = random_prompt(mini.model, length=3, placement=placement)
    scorer = SPTLM(pretrained=mini.model, tokenizer=mini.tokenizer, prompt=prompt)
    row = task.training_docs()[0]
    scored = []
    monkeypatch.setattr(scorer, "_loglikelihood_tokens", lambda requests, **_: scored.extend(requests))
    scorer.loglikelihood(task.construct_requests(row, task.fewshot_context(row, 0)), disable_tqdm=True)
    (example,) = encode(documents[:1], mini, placement, 3, mini.max_length, "left")
    assert [(list(c), list(a)) for c, a in example.pairs] == [(c, a) for _, c, a in scored]
    assert example.gold == task.doc_to_target(row)


def test_few_shots_are_balanced_seeded_and_from_the_documents(documents):
    chosen = choose(documents, 5, 0, "training")
    assert set(Counter(document.label for document in chosen).values()) == {5}
    assert len({document.label for document in chosen}) == 7
    assert set(chosen) <= set(documents) and len(set(chosen)) == 35
    assert chosen == choose(documents, 5, 0, "training")
    assert chosen != choose(documents, 5, 1, "training")
    assert choose(documents, None, 0, "training") == documents


def test_a_class_with_too_few_documents_is_named(documents):
    with pytest.raises(UserError, match=r"13 training documents per class.*'entertainment' has 12"):
        choose(documents, 13, 0, "training")


def test_texts_are_cut_to_make_room_for_the_prompt(mini):
    document = Document(((LONG, " sports"), (LONG, " geography")), 0)
    whole = encode([document], mini, "suffix", 4, 512, "left")[0].pairs[0][0]
    left = encode([document], mini, "suffix", 4, 20, "left")[0].pairs[0][0]
    right = encode([document], mini, "suffix", 4, 20, "right")[0].pairs[0][0]
    # The answer's one token is predicted, not read: 16 tokens of text and 4 of the prompt are 20.
    assert left == whole[-16:] and right == whole[:16]


def test_a_task_without_training_documents(tmp_path, capsys):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "t.yaml").write_text(
        "task: only_test\nclass: !function lm_eval_spt.harness.topics.MiniTopicsTask\ndataset_name: eng_Latn\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: text\ndoc_to_target: label\n"
        "doc_to_choice: [a, b, c, d, e, f, g]\n"
    )
    flags = ["--model", "mini", "--task", "only_test", "--include-path", str(tmp_path / "tasks")]
    assert main([*flags, "--output", str(tmp_path / "p.safetensors")]) == 1
    assert "error: the task 'only_test' has no training split" in capsys.readouterr().err
