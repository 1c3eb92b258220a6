"""The documentation points at what is there: links, files in backticks, commands and their flags."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import lm_eval_spt
from lm_eval_spt.cli import main
from tests.helpers.paths import ROOT

PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *(
            path
            for folder in ("tasks", "prompts", "recipes", "benchmarks", "lm_eval_spt")
            for path in ROOT.glob(f"{folder}/**/*.md")
        ),
    }
)
FOLDERS = ("lm_eval_spt", "tests", "tasks", "docs", "benchmarks", "recipes", "configs", "examples", ".ci")
"""Folders whose files are all part of the project; in others, such as results/, pages name what commands will write."""

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$|^((?: {4}.*\n)+)", flags=re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
PATH = re.compile(rf"(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./*-]*")
NAME = re.compile(r"lm_eval_spt(?:\.(?!pth\b|json\b)\w+)+")


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    """Return the code blocks of a page, fenced or indented, with continued lines joined."""
    return [re.sub(r"\\\n\s*", "", match[2] or match[3]) for match in BLOCK.finditer(text)]


def anchors(text: str) -> set[str]:
    """Return what links to a page's headings are called."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def inline_code(text: str) -> list[str]:
    return [re.sub(r"\s+", " ", code) for code in CODE.findall(BLOCK.sub("", text))]


def commands(text: str) -> Iterator[list[str]]:
    """Give the words of every call of this project's own commands, in blocks and in the text."""
    lines = [line for block in blocks(text) for line in block.splitlines()]
    for line in [*lines, *inline_code(text)]:
        if not re.search(r"lm-eval-spt\b|train_prompt\.py\b", line) or line.lstrip().startswith("#"):
            continue
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # prose with an apostrophe
        for number, word in enumerate(words):
            name = word.rpartition("/")[2]
            if name == "train_prompt.py":
                yield ["train", *words[number + 1 :]]
                break
            if name == "lm-eval-spt" and number + 1 < len(words):
                yield words[number + 1 :]
                break


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_files_exist(page: Path) -> None:
    text = read(page)
    missing = []
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        if not place.exists() or (anchor and anchor not in anchors(read(place))):
            missing.append(target)
    words = [word for block in blocks(text) for word in block.split()]
    for word in [*words, *(word for code in inline_code(text) for word in code.split(" "))]:
        if PATH.fullmatch(word) and not list(ROOT.glob(word.rstrip("/"))):
            missing.append(word)
        if NAME.fullmatch(word) and not named(word):
            missing.append(word)
    for module in re.findall(r"python -m ((?:lm_eval_spt|tests|benchmarks|recipes|results)[\w.]*)", text):
        if find_spec(module) is None:
            missing.append(module)
    assert not missing


def named(name: str) -> bool:
    """Tell whether there is such a module, or such a name in one."""
    path = ROOT.joinpath(*name.split("."))
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    module, attribute = path.parent, path.name
    sources = [module.with_suffix(".py"), module / "__init__.py"]
    return any(re.search(rf"\b{attribute}\b", read(source)) for source in sources if source.is_file())


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """The help of every command, made when it is first asked for."""
    return {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_their_flags_exist(
    page: Path, helps: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    unknown = []
    for command, *arguments in commands(read(page)):
        if command not in helps:
            with pytest.raises(SystemExit) as end:
                main([command, "--help"])
            shown = capsys.readouterr().out
            helps[command] = shown if end.value.code == 0 else ""
        flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
        listed = re.findall(r"--[\w-]+", helps[command])
        unknown += [f"{command} {flag}" for flag in flags if flag not in (*listed, "--help")]
        if not helps[command]:
            unknown.append(command)
    assert not unknown


def test_settings_named_on_their_page_exist(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    listed = re.findall(r"--[\w-]+", capsys.readouterr().out)
    own = [code for code in inline_code(read(ROOT / "docs" / "training.md")) if code.startswith("--")]
    flags = [word for code in own for word in code.split(" ") if word.startswith("--")]
    assert len(flags) > 20 and not [flag for flag in flags if flag not in listed]


def test_the_citation_is_that_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["version"] == lm_eval_spt.__version__ and citation["license"] == "Apache-2.0"
    # What the format asks for, of the software and of each reference.
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert all({"type", "title", "authors"} <= set(reference) for reference in citation["references"])
