"""A base that was named by a relative folder is found from anywhere; `--backbone` names another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.run.own import LAYER, write_task
from tests.run.tiny import save_tiny
from undrift.data.benchmarks.folder import OwnTask
from undrift.diagnose import AdapterSeries
from undrift.errors import AdapterMismatch, ConfigError, RunDirError
from undrift.registry import BENCHMARKS
from undrift.run.adapters import open_adapter
from undrift.run.config import RunConfig, load_yaml, located, overrides, resolve
from undrift.run.learn import Learn, start_from
from undrift.run.load_model import with_base_folder
from undrift.run.task_loop import Run
from undrift.rundir import RunDir, read_json

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

TYPED = "models/tiny"
SMALL = {
    "benchmark": "tiny",
    "method": {"name": "moelora", "experts": 2, "rank": 2},
    "train": {"batch_size": 4, "max_steps": 1, "learning_rate": 0.01},
}


@pytest.fixture(scope="module")
def made(backbone_folder, two, tmp_path_factory) -> Path:
    """A folder in which `models/tiny` was typed: a run of two tasks, and one more task learned."""
    root = tmp_path_factory.mktemp("made")
    shutil.copytree(backbone_folder, root / TYPED)
    write_task(root / "data", "colours")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("UNDRIFT_CACHE", str(root / "cache"))
        Run(resolve(SMALL, {"backbone": TYPED, "out": "run"}), benchmark=two).go()
        learn(TYPED, "learned").go()
    return root


@pytest.fixture
def there(made, tmp_path, monkeypatch, two) -> Path:
    """A copy of what was left, standing in another folder, with the benchmark known by its name."""
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.copytree(made / "learned", tmp_path / "learned")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    load, names = type(BENCHMARKS).load, type(BENCHMARKS).names
    monkeypatch.setattr(
        type(BENCHMARKS),
        "load",
        lambda self, name: (
            (lambda root, progress=True: two)
            if self is BENCHMARKS and name == "tiny"
            else load(self, name)
        ),
    )
    monkeypatch.setattr(
        type(BENCHMARKS), "names", lambda self: [*names(self), *["tiny"] * (self is BENCHMARKS)]
    )
    return tmp_path


@pytest.fixture
def moved(made, tmp_path):
    """The base, moved away for as long as a test runs."""
    aside = (made / TYPED).rename(made / "models" / "aside")
    yield aside
    aside.rename(made / TYPED)


def learn(start: str, out: str, data: str = "data", **more) -> Learn:
    layer = {**LAYER, "train": {**LAYER["train"], "max_steps": 1}}
    backbone = more.pop("backbone", None)
    begun = start_from(start, layer if Path(start, "config.json").is_file() else {},
                       {"backbone": backbone} if backbone else {})  # fmt: skip
    root = Path(data)
    own = OwnTask(
        more.pop("name", "colours"), root / "colours.jsonl", root,
        test=root / "colours-test.jsonl", max_new_tokens=6,
    )  # fmt: skip
    return Learn(begun, own, Path(out), **more)


def resumed(run: Path, backbone: str | None = None, **more) -> Run:
    given = {"out": run, **({"backbone": backbone} if backbone else {})}
    return Run(resolve(load_yaml(run / "run.yaml"), given), **more)


def forget_the_last_task(run: Path) -> bytes:
    """Leave the run as if it had been stopped within its last task; return that adapter."""
    (adapter,) = run.glob("tasks/02-*/adapter/adapter_model.safetensors")
    before = adapter.read_bytes()
    shutil.rmtree(adapter.parents[1])
    shutil.rmtree(run / "eval/after-02")
    return before


def written_before(folder: Path) -> None:
    """Leave in the records what an earlier undrift has written: the name as it was typed."""
    for file in [*folder.glob("run.yaml"), *folder.glob("learn.yaml")]:
        text = file.read_text()
        assert "backbone_folder: " in text
        lines = text.splitlines(keepends=True)
        file.write_text("".join(line for line in lines if "backbone_folder: " not in line))
    for file in folder.rglob("undrift.json"):
        content = json.loads(file.read_text())
        del content["backbone_folder"], content["run"]["backbone_folder"]
        file.write_text(json.dumps(content))


# ---------------------------------------------------------------- what is written


def test_the_whole_path_is_noted_beside_what_was_typed(made):
    whole = str(made / TYPED)
    for file in (made / "run/run.yaml", made / "learned/learn.yaml"):
        content = yaml.safe_load(file.read_text())
        run = content.get("run", content)
        assert (run["backbone"], run["backbone_folder"]) == (TYPED, whole)
    adapters = [*made.glob("run/tasks/*/adapter"), made / "learned/adapter"]
    assert len(adapters) == 3
    for adapter in adapters:
        origin = read_json(adapter / "undrift.json")
        assert (origin["backbone"], origin["backbone_folder"]) == (TYPED, whole)
        assert read_json(adapter / "adapter_config.json")["base_model_name_or_path"] == whole
    assert read_json(made / "run/manifest.json")["backbone"] == TYPED


def test_a_name_of_the_hubs_and_a_built_in_one_stay_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("org/model", "pocket"):
        config = with_base_folder(RunConfig(benchmark="tiny", backbone=name), None)
        assert config.backbone_folder is None and config.base == name
        assert "backbone_folder" not in config.text()
    (tmp_path / "org/model").mkdir(parents=True)  # a folder goes before the Hub, and is noted
    (tmp_path / "pocket").mkdir()  # and before a folder goes what is built in
    hub, built_in = (
        with_base_folder(RunConfig(benchmark="tiny", backbone=name), None)
        for name in ("org/model", "pocket")
    )
    assert hub.backbone_folder == tmp_path / "org/model" and built_in.backbone_folder is None
    whole = with_base_folder(
        RunConfig(benchmark="tiny", backbone=str(tmp_path / "org/model")), None
    )
    assert whole.backbone_folder is None  # it says everything by itself


def test_another_backbone_replaces_the_place_of_the_one_below():
    below = {"benchmark": "tiny", "backbone": TYPED, "backbone_folder": "/models/tiny"}
    assert resolve(below).base == "/models/tiny"
    assert resolve(below, {"backbone": "org/model"}).base == "org/model"
    assert resolve(below, overrides(["backbone=/x"])).base == "/x"


def test_where_the_whole_path_is_gone_what_was_typed_may_still_lead_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert located(TYPED, None) == TYPED
    assert located(TYPED, "/gone") == "/gone"
    (tmp_path / TYPED).mkdir(parents=True)
    assert located(TYPED, "/gone") == TYPED
    assert located(TYPED, tmp_path) == str(tmp_path)


# ---------------------------------------------------------------- from another folder


def test_a_run_is_gone_on_with_from_another_folder(there, made):
    before = forget_the_last_task(there / "run")
    text = (there / "run/run.yaml").read_text()
    resumed(there / "run").go()
    (adapter,) = there.glob("run/tasks/02-*/adapter/adapter_model.safetensors")
    assert adapter.read_bytes() == before
    assert (there / "run/run.yaml").read_text() == text
    for spelling in (str(made / TYPED), f"../../{made.name}/{TYPED}"):
        resumed(there / "run", spelling).go()  # the same folder, spelled in another way
        assert (there / "run/run.yaml").read_text() == text


@pytest.mark.slow
def test_a_lesson_is_gone_on_with_from_another_folder(there, made, monkeypatch):
    text = (there / "learned/learn.yaml").read_text()
    again = learn(str(made / TYPED), str(there / "learned"), str(made / "data"))
    assert [change.task for change in again.go()] == ["colours"]
    assert (there / "learned/learn.yaml").read_text() == text
    monkeypatch.chdir(there)
    learn("learned", "next", str(made / "data"), name="more").go()
    monkeypatch.chdir(there / "elsewhere")
    assert learn("../learned", "../next", str(made / "data"), name="more").go()
    file = there / "next/learn.yaml"  # an earlier one named the adapter as it was typed
    typed = file.read_text().replace(f"from: {there}/learned", "from: ../learned")
    assert "from: ../learned" in typed
    file.write_text(typed)
    assert learn("../learned", "../next", str(made / "data"), name="more").go()
    with pytest.raises(RunDirError, match="holds another run"):
        learn(str(made / TYPED), "../next", str(made / "data"), name="more")


def test_an_adapter_is_asked_from_another_folder(there, made, command_line):
    picture = next((made / "data/colours").iterdir())
    words = ("predict", there / "run", "--question", "which colour?", "--image", picture)
    status, out, err = command_line(*words)
    assert (status, err) == (0, "") and out
    words = ("eval", there / "learned", "--json")
    status, out, err = command_line(*words)
    assert (status, err) == (0, "") and json.loads(out)["asked"] == "what it has learned"
    (record,) = (there / "learned").rglob("undrift.json")
    content = json.loads(record.read_text())
    for note in content["learned"]:
        note["skip_bad"] = True  # what the base's processor refuses is looked for as well
    record.write_text(json.dumps(content))
    status, out, err = command_line(*words)
    assert (status, err) == (0, "") and json.loads(out)["asked"] == "what it has learned"


def test_doctor_reads_the_file_of_a_run_from_another_folder(there, command_line):
    _, out, err = command_line("doctor", there / "run/run.yaml", "--json")
    assert err == "" and json.loads(out)["benchmark"] == "tiny"


def test_what_drifted_is_asked_from_another_folder(there, two):
    assert AdapterSeries(there / "run", benchmark=two).backbone.name.endswith(TYPED)


# ---------------------------------------------------------------- a base that has moved


NAMES = ("lower", "upper")
LATER = [pytest.param(use, marks=pytest.mark.slow) for use in ("learn", "diagnose")]


def opened(there, **given):
    return open_adapter(there / "run", **given)


def gone_on(there, backbone=None):
    forget_the_last_task(there / "run")
    return resumed(there / "run", backbone)


def taught(there, backbone=None):
    data = str(there.parent / "data")
    write_task(Path(data), "colours")
    return learn(str(there / "run"), str(there / "next"), data, backbone=backbone, without=NAMES)


def watched(there, two, backbone=None):
    return AdapterSeries(there / "run", benchmark=two, backbone=backbone)


@pytest.mark.parametrize("use", ["open", "run", *LATER])
def test_of_a_base_that_has_moved_a_line_says_how_to_name_it(use, there, moved, two, made):
    def go(backbone=None):
        if use == "open":
            return opened(there, backbone=backbone)
        if use == "run":
            return gone_on(there, backbone)
        return taught(there, backbone) if use == "learn" else watched(there, two, backbone)

    with pytest.raises(ConfigError, match=r"--backbone DIR") as caught:
        go()
    assert str(made / TYPED) in str(caught.value) and "\n" not in str(caught.value)
    shutil.rmtree(there / "next", ignore_errors=True)
    if use == "run":
        shutil.copytree(made / "run", there / "run", dirs_exist_ok=True)
    found = go(str(moved))
    if use in ("run", "learn"):
        found.go()
    if use == "run":  # the same run under the name that it was begun with
        origin = read_json(next(there.glob("run/tasks/02-*/adapter/undrift.json")))
        assert (origin["backbone"], origin["backbone_folder"]) == (TYPED, str(moved))
        assert read_json(there / "run/manifest.json")["backbone"] == TYPED


@pytest.mark.parametrize("use", ["open", "run", "finished run", *LATER])
def test_another_base_is_told_by_its_fingerprint(use, there, two, tmp_path_factory):
    other = str(save_tiny(tmp_path_factory.mktemp("other"), seed=1))
    kind = AdapterMismatch if use in ("open", "learn", "diagnose") else RunDirError
    with pytest.raises(kind, match="--backbone"):
        if use == "open":
            opened(there, backbone=other)
        elif use == "run":
            gone_on(there, other).go()
        elif use == "finished run":
            resumed(there / "run", other).go()
        elif use == "learn":
            taught(there, other).go()
        else:
            watched(there, two, other)


@pytest.mark.slow
def test_the_commands_take_the_place_of_a_base_that_has_moved(there, moved, command_line):
    here = ("--backbone", moved)
    ask = ("predict", there / "run", "--question", "which colour?")
    assert command_line(*ask, *here)[0] == 0
    run = ("run", there / "run/run.yaml", "--out", there / "run", "--quiet")
    status, _, err = command_line(*run)
    assert status == 2 and "--backbone DIR" in err and err.count("\n") == 1
    assert command_line(*run, *here) == (0, "", "")
    _, _, err = command_line("doctor", there / "run/run.yaml", *here, "--json")
    assert err == ""


# ---------------------------------------------------------------- what was written before


def test_records_of_an_earlier_undrift_work_from_where_they_were_made(there, made, monkeypatch):
    for folder in ("run", "learned"):
        written_before(there / folder)
    with pytest.raises(ConfigError, match="--backbone DIR"):
        open_adapter(there / "run")
    monkeypatch.chdir(made)
    assert open_adapter(there / "run").origin["backbone"] == TYPED
    resumed(there / "run").go()
    again = learn(TYPED, str(there / "learned"))
    assert [change.task for change in again.go()] == ["colours"]
    before = forget_the_last_task(there / "run")
    resumed(there / "run").go()
    (adapter,) = there.glob("run/tasks/02-*/adapter/adapter_model.safetensors")
    assert adapter.read_bytes() == before


def test_a_long_path_that_yaml_folds_is_no_part_of_what_a_run_is(tmp_path):
    folder = tmp_path / ("with spaces " * 12)
    folder.mkdir()
    config = with_base_folder(RunConfig(benchmark="tiny", backbone=str(folder) + "/"), None)
    assert config.backbone_folder == folder and len(config.text().splitlines()) > 30
    plain = config.model_copy(update={"backbone_folder": None})
    run = RunDir.start(tmp_path / "run", config.text())
    assert run.config_text() == plain.text()
    RunDir.start(tmp_path / "run", plain.text())
