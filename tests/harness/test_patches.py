"""What the adapter changes in lm_eval, and what it relies on there."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from importlib.metadata import EntryPoint
from operator import attrgetter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import lm_eval.api.registry
import lm_eval.loggers.evaluation_tracker
import lm_eval.models
import lm_eval.tasks
import lm_eval.tasks._index
import pytest
import torch
from lm_eval.api.registry import Registry

from lm_eval_spt import SPTLM, SoftPrompt
from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.harness import discovery, patches

INTERNALS = [
    ("lm_eval.__main__", "cli_evaluate", []),
    ("lm_eval.utils", "simple_parse_args_string", ["args_string"]),
    ("lm_eval.api.registry", "model_registry.register", ["aliases", "target"]),
    ("lm_eval.api.registry", "model_registry.__contains__", ["alias"]),
    ("lm_eval.tasks._index", "TaskIndex.build", ["paths", "resolve_includes"]),
    ("lm_eval.loggers.evaluation_tracker", "sanitize_model_name", ["model_name"]),
    ("lm_eval.loggers.utils", "add_env_info", ["storage"]),
    (
        "lm_eval.loggers.evaluation_tracker",
        "GeneralConfigTracker.log_experiment_args",
        ["self", "model_source", "model_args", "system_instruction", "chat_template", "fewshot_as_multiturn"],
    ),
]


@pytest.mark.parametrize(("module", "attribute", "parameters"), INTERNALS, ids=lambda value: str(value))
def test_lm_eval_still_has_what_we_rely_on(module: str, attribute: str, parameters: list[str]) -> None:
    function = inspect.unwrap(attrgetter(attribute)(importlib.import_module(module)))
    assert list(inspect.signature(function).parameters) == parameters


def test_every_awaited_module_exists_and_has_its_step() -> None:
    for module, step in discovery.AFTER_IMPORT.items():
        assert importlib.util.find_spec(module) is not None
        assert callable(getattr(patches, step))


# -- the model -------------------------------------------------------------------------------------------------------

ENTRY_POINT = EntryPoint(patches.MODEL_NAME, patches.MODEL_CLASS, "lm_eval.models")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """An empty model registry in the place of lm_eval's."""
    empty: Registry = Registry("model")
    monkeypatch.setattr(lm_eval.api.registry, "model_registry", empty)
    return empty


def discover_entry_points(registry: Registry) -> None:
    """Do what the versions of lm_eval do that look for plugins: register those whose name is not taken."""
    if ENTRY_POINT.name not in registry:
        registry.register(ENTRY_POINT.name, target=ENTRY_POINT)


def test_registers_where_lm_eval_does_not_look_for_plugins(registry: Registry) -> None:
    patches.register_model(lm_eval.models)
    assert registry.get("spt") is SPTLM


def test_steps_back_where_lm_eval_has_found_the_entry_point(registry: Registry) -> None:
    discover_entry_points(registry)
    patches.register_model(lm_eval.models)
    assert dict(registry.items()) == {"spt": ENTRY_POINT}
    assert registry.get("spt") is SPTLM


def test_does_not_collide_where_lm_eval_looks_for_plugins_later(registry: Registry) -> None:
    patches.register_model(lm_eval.models)
    discover_entry_points(registry)
    registry.register("spt")(SPTLM)  # what the class's decorator does when its module is imported
    assert registry.get("spt") is SPTLM


def test_reloading_lm_eval_models_changes_nothing() -> None:
    before = dict(lm_eval.api.registry.model_registry.items())
    importlib.reload(lm_eval.models)
    assert dict(lm_eval.api.registry.model_registry.items()) == before


# -- the tasks -------------------------------------------------------------------------------------------------------


def write_task(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(f"task: {name}\ndataset_path: none\noutput_type: multiple_choice\n", encoding="utf-8")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A small lm_eval task folder with one task, ours with two, and lm_eval's own index builder over them, adapted."""
    write_task(tmp_path / "lm_eval", "theirs")
    write_task(tmp_path / "ours", "ours")
    write_task(tmp_path / "ours", "both")
    write_task(tmp_path / "lm_eval", "both")
    monkeypatch.setattr(patches, "tasks_folder", lambda: tmp_path / "ours")
    module = ModuleType("_index")
    module.__file__ = str(tmp_path / "lm_eval" / "_index.py")
    original = inspect.unwrap(lm_eval.tasks._index.TaskIndex.build)
    module.TaskIndex = type("TaskIndex", (), {"build": staticmethod(original)})  # type: ignore[attr-defined]
    patches.add_installed_tasks(module)
    return SimpleNamespace(build=module.TaskIndex().build, folder=tmp_path)  # type: ignore[attr-defined]


def folders(entries: dict) -> dict[str, str]:
    return {name: entry.yaml_path.parent.name for name, entry in entries.items()}


def test_installed_tasks_join_the_harness_s_own(index: SimpleNamespace) -> None:
    found = folders(index.build([index.folder / "lm_eval"]))
    assert found == {"theirs": "lm_eval", "both": "lm_eval", "ours": "ours"}


def test_include_path_wins_without_a_warning(index: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    write_task(index.folder / "mine", "ours")
    with caplog.at_level(logging.WARNING):
        found = folders(index.build(path for path in [index.folder / "lm_eval", index.folder / "mine"]))
    assert found == {"theirs": "lm_eval", "both": "lm_eval", "ours": "mine"}
    assert not caplog.records


def test_include_path_of_the_installed_tasks_themselves(
    index: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(index.folder)
    found = folders(index.build([index.folder / "lm_eval", Path("ours")]))
    assert found == {"theirs": "lm_eval", "both": "ours", "ours": "ours"}


def test_without_the_harness_s_own_tasks_ours_stay_out(index: SimpleNamespace) -> None:
    write_task(index.folder / "mine", "mine")
    assert folders(index.build([index.folder / "mine"])) == {"mine": "mine"}


def test_the_real_task_manager_finds_ours_and_no_name_is_taken() -> None:
    found = lm_eval.tasks.TaskManager().task_index
    names = {path.stem for path in tasks_folder().rglob("*.yaml")}
    assert {"mini_topics_eng_Latn", "sib200_eng_Latn", "sib200"} <= names
    assert {name for name in names if not found[name].yaml_path.is_relative_to(tasks_folder())} == set()


def test_our_files_are_read_once_and_no_manager_sees_what_another_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    first = lm_eval.tasks.TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    first.task_index["mini_topics_eng_Latn"].cfg["doc_to_text"] = "changed"
    monkeypatch.setattr(lm_eval.tasks._index, "load_yaml", None)
    second = lm_eval.tasks.TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    assert second.task_index["mini_topics_eng_Latn"].cfg["doc_to_text"] != "changed"
    assert first.all_tasks == second.all_tasks


def test_members_of_groups_and_tags() -> None:
    """Of what is written in the group's file, in whatever way: names, tasks with changes, groups in groups."""
    entry = lm_eval.tasks._index.Entry
    kind = lm_eval.tasks._index.Kind
    inner = {"group": "inner", "task": ["c", {"task": "d"}]}
    manager = SimpleNamespace(
        task_index={
            "group": entry("group", kind.GROUP, None, {"group": "group", "task": ["a", {"task": "b", "n": 1}, inner]}),
            "tag": entry("tag", kind.TAG, None, None, {"y", "x"}),
        }
    )
    assert patches.members(manager, "group") == ["a", "b", "c", "d"]
    assert patches.members(manager, "tag") == ["x", "y"]
    languages = (tasks_folder() / "sib200" / "languages_paper.txt").read_text().split()
    real = lm_eval.tasks.TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    assert patches.members(real, "sib200_paper") == [f"sib200_{language}" for language in languages]


def test_the_environment_is_described_once() -> None:
    calls = []

    def add_env_info(storage: dict) -> None:
        calls.append(storage)
        storage["lm_eval_version"] = "1"

    loggers = ModuleType("lm_eval.loggers.utils")
    loggers.add_env_info = add_env_info
    patches.describe_environment_once(loggers)
    for _ in range(2):
        results = {"results": 0}
        loggers.add_env_info(results)
        assert results == {"results": 0, "lm_eval_version": "1"}
    assert len(calls) == 1


# -- the results folder ----------------------------------------------------------------------------------------------


@pytest.fixture
def prompts(tmp_path: Path) -> list[Path]:
    """Two prompt files of one name in two folders, with other vectors; the second without metadata."""
    paths = [tmp_path / "a" / "eng.safetensors", tmp_path / "b" / "eng.safetensors"]
    SoftPrompt(torch.zeros(2, 4), {"base_model": "org/base"}).save(paths[0])
    SoftPrompt(torch.ones(2, 4), {}).save(paths[1])
    return paths


def model_name(model_source: str, model_args: dict | str) -> tuple[str | None, str | None]:
    tracker = lm_eval.loggers.evaluation_tracker.GeneralConfigTracker()
    tracker.log_experiment_args(model_source, model_args, None, None, False)
    return tracker.model_name, tracker.model_name_sanitized


def test_two_prompts_on_one_base_model_get_two_folders(prompts: list[Path]) -> None:
    digests = [SoftPrompt.load(path).digest[:8] for path in prompts]
    assert digests[0] != digests[1]
    first = model_name("spt", {"prompt": str(prompts[0])})
    second = model_name("spt", f"pretrained=org/base,prompt={prompts[1]}")
    assert first == (f"org/base+eng@{digests[0]}", f"org__base+eng@{digests[0]}")
    assert second == (f"org/base+eng@{digests[1]}", f"org__base+eng@{digests[1]}")


def test_an_adapter_under_the_prompt_names_the_folder_too(prompts: list[Path]) -> None:
    names = {model_name("spt", {"pretrained": "b", "prompt": prompts[0], "peft": peft})[0] for peft in ("x", "y", None)}
    assert len(names) == 3


@pytest.mark.parametrize("source", ["spt", "hf", "CUSTOM"])
def test_without_a_prompt_the_name_is_lm_eval_s(source: str) -> None:
    assert model_name(source, {"pretrained": "org/base"}) == ("org/base", "org__base")


def test_other_models_may_have_a_prompt_argument_of_their_own() -> None:
    assert model_name("hf", "pretrained=org/base,prompt=hello")[0] == "org/base"


# -- an lm_eval that has changed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(discovery.AFTER_IMPORT))
def test_a_missing_internal_is_one_warning_and_no_error(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = ModuleType(name)
    changed.__file__ = "nowhere/x.py"
    monkeypatch.delattr(lm_eval.api.registry, "model_registry")
    discovery._adapt(changed)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert name in caplog.text


def test_arming_again_changes_nothing() -> None:
    finders = list(sys.meta_path)
    build = lm_eval.tasks._index.TaskIndex.build
    importlib.reload(discovery).arm()
    assert sys.meta_path == finders
    assert lm_eval.tasks._index.TaskIndex.build is build
