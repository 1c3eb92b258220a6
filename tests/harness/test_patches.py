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
import lm_eval.api.task
import lm_eval.loggers.evaluation_tracker
import lm_eval.models
import lm_eval.tasks
import lm_eval.tasks._index
import pytest
import torch
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.api.registry import Registry

from lm_eval_spt import SPTLM, SoftPrompt
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.harness import discovery, patches

NEXT = hasattr(lm_eval.api.task.ConfigurableTask, "_registry")  # 0.5 or later

# Module, name in it and its parameters; "..." where it may have others. All versions from 0.4.12 to 0.5.0.dev1 have
# these; where they differ, see VERSIONS.
INTERNALS = [
    ("lm_eval.__main__", "cli_evaluate", []),
    ("lm_eval.utils", "simple_parse_args_string", ["args_string"]),
    ("lm_eval.api.registry", "model_registry.register", ["aliases", "target"]),
    ("lm_eval.api.registry", "model_registry.__contains__", ["alias"]),
    ("lm_eval.api.registry", "metric_registry.__contains__", ["alias"]),
    ("lm_eval.tasks", "TaskManager.load", ["self", "..."]),
    ("lm_eval.tasks", "TaskManager.all_tasks.fget", ["self"]),
    ("lm_eval.tasks._index", "TaskIndex.build", ["paths", "resolve_includes"]),
    ("lm_eval.tasks._yaml_loader", "load_yaml", ["path", "resolve_func", "recursive", "_seen"]),
    ("lm_eval.api.task", "ConfigurableTask.download", ["self", "dataset_kwargs", "..."]),
    ("lm_eval.api.task", "ConfigurableTask.training_docs", ["self"]),
    ("lm_eval.api.task", "ConfigurableTask.fewshot_context", ["self", "doc", "num_fewshot", "..."]),
    ("lm_eval.api.task", "ConfigurableTask.construct_requests", ["self", "doc", "ctx", "..."]),
    ("lm_eval.api.task", "ConfigurableTask.build_all_requests", ["self", "limit", "rank", "..."]),
    ("lm_eval.api.task", "ConfigurableTask.instances.fget", ["self"]),
    ("lm_eval.evaluator", "add_env_info", ["storage"]),
    ("lm_eval.api.instance", "Instance", ["request_type", "doc", "arguments", "idx", "task_name", "doc_id", "..."]),
    ("lm_eval.evaluator", "simple_evaluate", ["model", "tasks", "task_manager", "log_samples", "limit", "..."]),
    ("lm_eval.loggers.evaluation_tracker", "sanitize_model_name", ["model_name"]),
    (
        "lm_eval.loggers.evaluation_tracker",
        "GeneralConfigTracker.log_experiment_args",
        ["self", "model_source", "model_args", "system_instruction", "chat_template", "fewshot_as_multiturn"],
    ),
]

# What each version calls the same things: (module, name) in lm_eval 0.4, and since 0.5.
VERSIONS = [
    (("lm_eval.tasks", "TaskManager.task_index"), ("lm_eval.tasks", "TaskManager._task_index")),
    (("lm_eval.api.task", "ConfigurableTask"), ("lm_eval.api.task", "Task._registry")),
]


@pytest.mark.parametrize(("module", "attribute", "parameters"), INTERNALS, ids=lambda value: str(value))
def test_lm_eval_still_has_what_we_rely_on(module: str, attribute: str, parameters: list[str]) -> None:
    function = inspect.unwrap(attrgetter(attribute)(importlib.import_module(module)))
    found = list(inspect.signature(function).parameters)
    assert set(parameters[:-1]) <= set(found) if parameters[-1:] == ["..."] else parameters == found


@pytest.mark.parametrize("names", VERSIONS, ids=lambda names: names[0][1])
def test_lm_eval_has_the_names_of_a_version_that_is_supported(names: tuple[tuple[str, str], tuple[str, str]]) -> None:
    module, attribute = names[NEXT]
    assert attrgetter(attribute)(importlib.import_module(module)) is not None


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


# -- where tasks are found -------------------------------------------------------------------------------------------


def write_task(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(f"task: {name}\ndataset_path: none\noutput_type: multiple_choice\n", encoding="utf-8")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A small lm_eval task folder with two tasks, ours with two, and lm_eval's own index builder over them, adapted."""
    write_task(tmp_path / "lm_eval", "theirs")
    write_task(tmp_path / "lm_eval", "both")
    write_task(tmp_path / "ours", "ours")
    write_task(tmp_path / "ours", "both")
    monkeypatch.setattr(patches, "tasks_folder", lambda: tmp_path / "ours")
    module = ModuleType("_index")
    module.__file__ = str(tmp_path / "lm_eval" / "_index.py")
    original = inspect.unwrap(lm_eval.tasks._index.TaskIndex.build)
    module.TaskIndex = type("TaskIndex", (), {"build": staticmethod(original)})  # type: ignore[attr-defined]
    patches.add_installed_tasks(module)
    return SimpleNamespace(build=module.TaskIndex().build, folder=tmp_path)  # type: ignore[attr-defined]


def folders(entries: dict) -> dict[str, str]:
    return {name: entry.yaml_path.parent.name for name, entry in entries.items()}


def test_installed_tasks_join_the_harness_s_own_and_override_them(index: SimpleNamespace) -> None:
    found = folders(index.build([index.folder / "lm_eval"]))
    assert found == {"theirs": "lm_eval", "both": "ours", "ours": "ours"}


def test_include_path_overrides_both(index: SimpleNamespace) -> None:
    write_task(index.folder / "mine", "ours")
    write_task(index.folder / "mine", "both")
    found = folders(index.build(path for path in [index.folder / "lm_eval", index.folder / "mine"]))
    assert found == {"theirs": "lm_eval", "both": "mine", "ours": "mine"}


def test_a_harness_that_reads_the_entry_point_keeps_its_own_order(
    index: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """It gives our folder itself: we add nothing, and no task of ours overrides itself."""
    write_task(index.folder / "other plugin", "ours")
    with caplog.at_level(logging.WARNING):
        found = folders(index.build([index.folder / name for name in ("lm_eval", "ours", "other plugin")]))
    assert found == {"theirs": "lm_eval", "both": "ours", "ours": "other plugin"}
    assert len([record for record in caplog.records if "overrides" in record.getMessage()]) == 2


def test_include_path_of_the_installed_tasks_themselves(
    index: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(index.folder)
    found = folders(index.build([index.folder / "lm_eval", Path("ours")]))
    assert found == {"theirs": "lm_eval", "both": "ours", "ours": "ours"}


def test_without_the_harness_s_own_tasks_ours_stay_out(index: SimpleNamespace) -> None:
    write_task(index.folder / "mine", "mine")
    assert folders(index.build([index.folder / "mine"])) == {"mine": "mine"}


def test_includes_are_read_once_and_mean_the_same(index: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Included files that include others, the same one twice, and in a circle, which lm_eval refuses."""
    files = {
        "base": "dataset_path: none\ntask_list: [x]\n",
        "middle": "include: base\noutput_type: multiple_choice\n",
        "other": "include: base\n",
        "circle": "include: ring\n",
        "ring": "include: circle\n",
        "one.yaml": "include: middle\ntask: one\n",
        "two.yaml": "include: middle\ntask: two\noutput_type: generate_until\n",
        "twice.yaml": "include: [middle, other]\ntask: twice\n",
        "again.yaml": "include: [middle, middle]\ntask: again\n",
        "round.yaml": "include: circle\ntask: round\n",
        "absent.yaml": "include: nothing\ntask: absent\n",
    }
    for name, text in files.items():
        (index.folder / "lm_eval" / name).write_text(text)
    plain = inspect.unwrap(lm_eval.tasks._index.TaskIndex.build)
    expected = plain([index.folder / "lm_eval", index.folder / "ours"])
    read = []
    loader = sys.modules["lm_eval.tasks._yaml_loader"]
    parse = loader.yaml.load
    monkeypatch.setattr(
        loader.yaml, "load", lambda file, **how: (read.append(Path(file.name).name), parse(file, **how))[1]
    )
    found = index.build([index.folder / "lm_eval"])
    assert {name: entry.cfg for name, entry in found.items()} == {name: entry.cfg for name, entry in expected.items()}
    assert {"one", "two"} <= found.keys() and not {"twice", "again", "round", "absent"} & found.keys()
    assert read.count("middle") == 1 and read.count("one.yaml") == 1
    (index.folder / "lm_eval" / "base").write_text("dataset_path: elsewhere\n")
    assert index.build([index.folder / "lm_eval"])["one"].cfg["dataset_path"] == "elsewhere"


def test_the_real_task_manager_finds_ours_and_no_name_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = patches.task_index(lm_eval.tasks.TaskManager())
    names = {path.stem for path in tasks_folder().rglob("*.yaml")}
    assert {"mini_topics_eng_Latn", "sib200_eng_Latn", "sib200"} <= names
    assert {name for name in names if not found[name].yaml_path.is_relative_to(tasks_folder())} == set()
    assert not [record for record in caplog.records if "overrides" in record.getMessage()]


# -- tasks ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manager() -> lm_eval.tasks.TaskManager:
    return lm_eval.tasks.TaskManager(include_path=str(tasks_folder()), include_defaults=False)


@pytest.mark.parametrize("name", ["task_index", "_index"])
def test_the_index_of_tasks_has_two_names(name: str) -> None:
    assert patches.task_index(SimpleNamespace(**{name: {"a": 1}})) == {"a": 1}  # type: ignore[arg-type]


def test_patterns_match_tasks_groups_and_tags(manager: lm_eval.tasks.TaskManager) -> None:
    found = patches.match_tasks(manager, ["mini_topics", "mini_topics_*_Arab", "mini_topics_arb_Arab"])
    assert found == ["mini_topics", "mini_topics_arb_Arab", "mini_topics_instruct_arb_Arab"]
    with pytest.raises(
        UserError, match=r"there is no task 'mini_topics_xxx', 'y\*'; did you mean mini_topics_arb_Arab"
    ):
        patches.match_tasks(manager, ["mini_topics", "mini_topics_xxx", "y*"])
    with pytest.raises(UserError, match=r"there is no task ''; `lm_eval ls tasks` lists all"):
        patches.match_tasks(manager, ["mini_topics", ""])


def test_members_of_groups_and_tags(manager: lm_eval.tasks.TaskManager) -> None:
    """Of what is written in the group's file, in whatever way: names, tasks with changes, groups in groups."""
    entry = lm_eval.tasks._index.Entry
    kind = lm_eval.tasks._index.Kind
    written = ["a", {"task": "b", "n": 1}, {"group": "inner", "task": ["c", {"task": "d"}]}, {"group": "e", "n": 1}]
    small = SimpleNamespace(
        task_index={
            "group": entry("group", kind.GROUP, None, {"group": "group", "task": written}),
            "tag": entry("tag", kind.TAG, None, None, {"y", "x"}),
        }
    )
    assert patches.members(small, "group") == ["a", "b", "c", "d", "e"]  # type: ignore[arg-type]
    assert patches.members(small, "tag") == ["x", "y"]  # type: ignore[arg-type]
    languages = (tasks_folder() / "sib200" / "languages_paper.txt").read_text().split()
    assert patches.members(manager, "sib200_paper") == [f"sib200_{language}" for language in languages]


def test_loaded_tasks_are_evaluated_again_as_if_they_were_new(manager: lm_eval.tasks.TaskManager) -> None:
    """Also a group, and with other shots than before; the documents are not read again."""
    names = ["mini_topics_instruct_deu_Latn", "mini_topics"]

    def scores(task_manager: lm_eval.tasks.TaskManager, shots: int) -> dict:
        model = lm_eval.api.registry.get_model("dummy")()
        model.loglikelihood = lambda requests: [(-float(len(r.args[0] + r.args[1]) % 97), False) for r in requests]
        options = {"limit": 2, "num_fewshot": shots, "bootstrap_iters": 0, "log_samples": False}
        results = simple_evaluate(model, tasks=names, task_manager=task_manager, **options)
        return results["results"] | results["groups"]

    tasks = manager.load(names)
    loaded = patches.with_loaded(manager, tasks)
    datasets = {name: task.dataset for name, task in tasks["tasks"].items()}
    for shots in (1, 2, 1):
        assert scores(loaded, shots) == scores(manager, shots)
    assert loaded.load(names)["tasks"] is tasks["tasks"]

    patches.keep_requests(tasks["tasks"].values())
    kept = []
    for shots in (1, 1, 2, 2, 1):
        with patches.environment_read_once():
            assert scores(loaded, shots) == scores(manager, shots)
        kept.append([request for task in tasks["tasks"].values() for request in task.instances])
    assert all(now is before for now, before in zip(kept[1], kept[0], strict=True))
    assert all(request.resps for request in kept[-1]) and kept[2] != kept[0]
    assert all(task.dataset is datasets[name] for name, task in tasks["tasks"].items())
    assert manager.load(names)["tasks"] is not tasks["tasks"]


def test_the_environment_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import evaluator

    reads: list[dict] = []

    def read(storage: dict) -> None:
        reads.append(storage)
        storage["pretty_env_info"] = "a machine"

    monkeypatch.setattr(evaluator, "add_env_info", read)
    with pytest.raises(KeyError), patches.environment_read_once():
        for results in ({}, {"kept": 1}):
            evaluator.add_env_info(results)
            assert results.pop("pretty_env_info") == "a machine" and results in ({}, {"kept": 1})
        raise KeyError
    assert len(reads) == 1 and evaluator.add_env_info is read


DOCUMENTS = [
    {"text": "The sky is", "choices": ["red", "blue"], "number": 1, "answer": "blue"},
    {"text": "Grass is", "choices": ["green", "blue"], "number": 0, "answer": "green"},
]
TWO_CONTEXTS = {  # the choices are contexts of one continuation; as lm_eval 0.4 and as 0.5 have it written
    False: {"doc_to_text": "number", "doc_to_choice": "choices", "doc_to_target": "text"},
    True: {
        "multiple_inputs": True,
        "doc_to_text": "choices",
        "doc_to_choice": "{{[text]}}",
        "doc_to_target": "number",
    },
}
# What a task's YAML says -> what is asked of a model about the first document, and which choice is right.
ASKED = {
    "a number": (
        {"doc_to_text": "text", "doc_to_choice": "choices", "doc_to_target": "number"},
        [("The sky is", " red"), ("The sky is", " blue")],
    ),
    "a text": (
        {"doc_to_text": "text", "doc_to_choice": "choices", "doc_to_target": "answer"},
        [("The sky is", " red"), ("The sky is", " blue")],
    ),
    "contexts": (TWO_CONTEXTS[NEXT], [("red", " The sky is"), ("blue", " The sky is")]),
    "mutual information": (
        {
            "doc_to_text": "text",
            "doc_to_choice": "choices",
            "doc_to_target": "number",
            "metric_list": [{"metric": "acc_mutual_info"}],
        },
        [("The sky is", " red"), ("The sky is", " blue")],  # and two without a context, which teach nothing
    ),
    "loglikelihood": (
        {"output_type": "loglikelihood", "doc_to_text": "text", "doc_to_target": "{{' ' + answer}}"},
        [("The sky is", " blue")],
    ),
    "generate_until": (
        {"output_type": "generate_until", "doc_to_text": "text", "doc_to_target": "answer"},
        [("The sky is", {"until": ["\n\n"], "do_sample": False})],
    ),
}


def small_task(config: dict) -> lm_eval.api.task.ConfigurableTask:
    """The task of a YAML file with `config` in it, over DOCUMENTS."""
    return lm_eval.tasks.TaskManager(include_defaults=False).load(
        [
            {
                "task": "small",
                "output_type": "multiple_choice",
                "test_split": "test",
                "custom_dataset": lambda **_: {"test": Dataset.from_list(DOCUMENTS)},
                **config,
            }
        ]
    )["tasks"]["small"]


@pytest.mark.parametrize("name", ASKED)
def test_the_requests_of_a_document(name: str) -> None:
    config, expected = ASKED[name]
    task = small_task(config)
    requests = patches.construct_requests(task, DOCUMENTS[0], task.fewshot_context(DOCUMENTS[0], 0))
    asked = [request.args[:2] for request in requests]
    if name == "mutual information":
        assert [context for context, _ in asked[2:]] == ["", ""]
        asked = asked[:2]
    if name == "generate_until":  # what else the harness sets differs
        assert [(context, {key: options[key] for key in expected[0][1]}) for context, options in asked] == expected
    else:
        assert asked == expected
    if task.OUTPUT_TYPE == "multiple_choice":
        for doc, right in zip(DOCUMENTS, (1, 0), strict=True):
            label, choices = patches.label_and_choices(task, doc)
            assert choices == (["red", "blue"] if right else ["green", "blue"])
            assert label in (right, choices[right])


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
