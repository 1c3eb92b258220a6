"""The prompts that ship must reach the scores that their README promises."""

from __future__ import annotations

import re

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.paths import ROOT

README = (ROOT / "prompts" / "README.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("| ")]
HEADER, SCORES = ROWS[0], {row[0].strip("`"): row[1:] for row in ROWS[1:]}
LANGUAGES = [name for name in HEADER if re.fullmatch(r"[a-z]{3}_[A-Z][a-z]{3}", name)]
TEST_DOCUMENTS = 84


def test_every_prompt_has_a_row():
    assert set(SCORES) == {file.name for file in (ROOT / "prompts").glob("*.safetensors")}
    placements = {(SoftPrompt.load(ROOT / "prompts" / name).placement) for name in SCORES}
    assert placements == {"prefix", "suffix"}
    assert len(LANGUAGES) >= 5


@pytest.mark.parametrize("name", SCORES)
def test_prompts_reach_their_scores(name):
    """Exactly but for one document, which rounding on another machine may tip."""
    lm = SPTLM(prompt=str(ROOT / "prompts" / name), device="cpu", batch_size="auto")
    row = dict(zip(HEADER[1:], SCORES[name], strict=True))
    assert (row["placement"], int(row["P"])) == (lm.prompt.placement, lm.prompt.length)
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    tasks = [f"mini_topics_{language}" for language in LANGUAGES]
    results = simple_evaluate(model=lm, tasks=tasks, task_manager=manager, bootstrap_iters=0)["results"]
    for language in LANGUAGES:
        found = results[f"mini_topics_{language}"]["acc,none"]
        assert found == pytest.approx(float(row[language]) / 100, abs=1.5 / TEST_DOCUMENTS), language
