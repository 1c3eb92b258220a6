"""The paragraph for a paper says what the records say, and LaTeX takes it and the tables."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from lm_eval_spt.cli import main
from tests.helpers.results import some_scores, write_prompt, write_results

HAS_TEX = bool(shutil.which("pdflatex")) and bool(
    subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).stdout
)
NAME = "50% | a_b & {c}\\$ #~^< é"


@pytest.fixture
def arms(tmp_path: Path) -> list[str]:
    """Arguments: a base model, and a prompt with two seeds, in all languages."""
    scores = some_scores(0.5)
    write_results(tmp_path / "none", scores, model_sha="0123abcd")
    for seed in (3, 4):
        settings = {"tune": "prompt", "batch_size": 16, "dtype": "float32", "reparameterization": "none"}
        prompt = write_prompt(tmp_path / f"seed{seed}.safetensors", length=16, seed=seed, **settings)
        write_results(tmp_path / f"seed{seed}", some_scores(0.6, seed=seed), prompt=prompt)
    return [f"no prompt={tmp_path / 'none'}", *(f"{NAME}={tmp_path / f'seed{seed}'}" for seed in (3, 4))]


def printed(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert main(["transfer", *arguments]) == 0
    return capsys.readouterr().out


def test_the_paragraph_says_what_was_done(arms: list[str], capsys: pytest.CaptureFixture) -> None:
    text = printed(capsys, *arms, "--methods")
    paragraph, _, entries = text.partition("\n\n")
    for fact in (
        r"sib200~\cite{adelani2024sib200} (task version 1.0, 0 examples in the context)",
        r"version 0.4.13, and lm\_eval\_spt",
        r"English (eng\_Latn); means are over the 204 target languages",
        "with 204 test documents each; the metric is acc.",
        r"\emph{no prompt} is org/bloom-560m (commit 0123abcd) without a soft prompt (one run).",
        "org/bloom-560m (revision not recorded), kept frozen, with a soft prompt",
        "of 16 virtual tokens between text and answer (128 learned parameters)",
        r"learned on sib200\_eng\_Latn from 8 documents per class (56 in all) with AdamW",
        "learning rate 0.005, 20 epochs",
        "(mean of 2 runs; training seed 3, 4).",
        "95\\% intervals contain what other training seeds",
    ):
        assert fact in paragraph
    for key in ("adelani2024sib200", "evalharness", "lmevalspt", "philippy2024soft"):
        assert entries.count(f"{{{key},") == 1
    assert "validation documents were kept" in paragraph and "lowest loss on not recorded" in paragraph


def test_only_what_is_cited_has_an_entry(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_results(tmp_path / "a", {"eng_Latn": 0.5, "ind_Latn": 0.4}, family="nusax")
    text = printed(capsys, str(tmp_path / "a"), "--methods")
    assert "@misc{evalharness," in text and "philippy" not in text and "adelani" not in text


def test_a_digest_stands_for_a_file_and_differing_runs_are_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for seed, rate in enumerate((0.005, 0.01)):
        prompt = write_prompt(tmp_path / f"{seed}.safetensors", seed=seed, lr=rate)
        file = write_results(tmp_path / f"{seed}", some_scores(0.6, 5), prompt=prompt)
        content = json.loads(file.read_text())
        content["config"]["prompt_metadata"]["gguf_sha256"] = "feed"
        file.write_text(json.dumps(content))
    text = printed(capsys, f"a={tmp_path / '0'}", f"a={tmp_path / '1'}", "--methods")
    assert "org/bloom-560m (SHA-256 feed)" in text and "learning rate 0.005, 0.01," in text


@pytest.mark.skipif(not HAS_TEX, reason="needs pdflatex and booktabs (Debian: texlive-latex-recommended)")
@pytest.mark.parametrize("output", ["--latex", "--methods"])
def test_latex_takes_it(arms: list[str], output: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text = printed(capsys, *arms, output)
    body, _, entries = text.partition("\n\n@") if output == "--methods" else (text, "", "")
    preamble = (
        "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n\\usepackage[T1]{fontenc}\n\\begin{document}\n"
    )
    references = "\\bibliographystyle{plain}\n\\bibliography{cited}\n" if entries else ""
    (tmp_path / "paper.tex").write_text(f"{preamble}{body}\n{references}\\end{{document}}\n", encoding="utf-8")
    (tmp_path / "cited.bib").write_text(f"@{entries}", encoding="utf-8")
    latex = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper"]
    commands = [latex, ["bibtex", "paper"], latex, latex] if entries else [latex]
    for command in commands:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 1000
    log = (tmp_path / "paper.log").read_text(errors="replace")
    assert "undefined" not in log and "Missing character" not in log
    assert "Overfull" not in log or output == "--methods"  # no table is wider than the page


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            {"prompt_kind": "kv"},
            r"with a deep prefix~\cite{li2021prefix}, keys and values of every layer, of 4 positions",
        ),
        ({"ensemble": {"average": "probability", "members": [{}, {}]}}, "an ensemble of 2 soft prompts"),
        ({"validation": {"averaged_epochs": 5}}, "the mean of the last epochs or the vectors of the epoch"),
    ],
)
def test_other_kinds_of_prompts_are_named(
    record: dict, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = write_results(tmp_path / "a", some_scores(0.5), prompt=write_prompt(tmp_path / "p.safetensors"))
    content = json.loads(file.read_text())
    content["config"]["prompt_metadata"] |= record
    file.write_text(json.dumps(content))
    assert said in printed(capsys, str(tmp_path / "a"), "--methods")


def test_calibration_is_told_and_cited(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prompt = write_prompt(tmp_path / "p.safetensors")
    for number, average in enumerate((None, "probability", "log_probability", "label_prior", "1+2+3+1+1+1+1")):
        file = write_results(tmp_path / str(number), some_scores(0.5, seed=number), prompt=prompt)
        content = json.loads(file.read_text())
        content["config"]["model_args"] |= {"calibration": average} if average else {}
        file.write_text(json.dumps(content))
    text = printed(capsys, *(f"arm{number}={tmp_path / str(number)}" for number in range(5)), "--methods")
    plain, first, second, *priors = (line for line in text.splitlines() if line.startswith(r"\emph{arm"))
    assert "calibrated" not in plain and first.count(r"calibrated~\cite{zhou2024batch}") == 1
    assert "less the logarithm of its mean probability" in first and "less the mean of it" in second
    assert [said.count(r"calibrated by prior matching~\cite{liusie2023mitigating}") for said in priors] == [1, 1]
    assert "is its share of the documents learned from" in priors[0] and "is its share in 1+2+3+1+1+1+1" in priors[1]
    assert text.count("{zhou2024batch,") == text.count("{liusie2023mitigating,") == 1
