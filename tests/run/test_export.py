"""What `undrift export` writes answers as the adapter did, loaded without undrift."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.run import plain_reload
from tests.run.own import write_rows, write_task
from undrift.data.benchmarks.folder import OwnTask
from undrift.errors import ConfigError, DataError, RunDirError, UnknownName
from undrift.methods.shared.adapter import put_on
from undrift.methods.shared.plain_lora import Factors, PlainLora
from undrift.run import export as exporting
from undrift.run.adapters import open_adapter
from undrift.run.backbone import Backbone
from undrift.run.compare_answers import Said, agreement
from undrift.run.export import Asked, export
from undrift.run.fit_lora import _Sums
from undrift.run.learn import Learn, start_from

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
SEEING = "AutoModelForImageTextToText"


def taught(
    base: Path, root: Path, method: str = "finetune", text: bool = False, **more: Any
) -> Path:
    """An adapter that has learned the colours, on a base."""
    if not (root / "colours.jsonl").is_file():
        write_task(root, "colours", train=8, test=8)
    train = {"batch_size": 4, "max_steps": 8, "learning_rate": 0.02, **more.pop("train", {})}
    options = {"name": method, "experts": 2, "rank": 2, **more.pop("options", {})}
    begun = start_from(str(base), {"method": options, "train": train, "seed": 3, **more})
    file, test = root / "colours.jsonl", root / "colours-test.jsonl"
    if text:
        for each in (file, test):
            rows = [json.loads(line) for line in each.read_text().splitlines()]
            words = [
                {"text": f"{n}: which?", "answer": row["answer"]} for n, row in enumerate(rows)
            ]
            write_rows(each, words)
    own = OwnTask("colours", file, root, test=test, max_new_tokens=6)
    lesson = Learn(begun, own, root / method)
    lesson.go()
    return lesson.adapter


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, backbone_folder) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDRIFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return taught(backbone_folder, tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def routed(tmp_path_factory, backbone_folder) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDRIFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return taught(backbone_folder, tmp_path_factory.mktemp("routed"), "moelora")


def keys_of(folder: Path) -> dict[str, Any]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    return found


def batch_for(backbone: Backbone) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(5, 200, (2, 9))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    image = getattr(backbone.model.config, "image_token_id", None)
    if image is not None and backbone.model.config.model_type == "llava":
        ids[:, 1:5] = image
        batch["pixel_values"] = torch.randn(2, 3, 12, 12)
    return batch


def logits_without_undrift(
    folder: Path, batch: dict[str, torch.Tensor], place: Path, kind: str = SEEING
) -> torch.Tensor:
    save_file(batch, place / "batch.safetensors")
    words = [sys.executable, plain_reload.__file__, kind, folder]
    files = (place / "batch.safetensors", place / "logits.safetensors")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, (*words, *files))], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    return load_file(files[1])["logits"]


@torch.no_grad()
def own_logits(adapter: Path, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of undrift's own model, and of the bare base."""
    model: Any = open_adapter(adapter).model
    mine = model(**batch).logits
    with model.disable_adapter():
        return mine, model(**batch).logits


# ---------------------------------------------------------------- reloaded without undrift


@pytest.mark.slow
@pytest.mark.parametrize("to", ["peft", "merged"])
def test_it_is_loaded_without_undrift_and_answers_alike(to, adapter, backbone_folder, tmp_path):
    made = export(Asked(adapter, to, tmp_path / "out"))
    batch = batch_for(Backbone.load(str(backbone_folder)))
    mine, base = own_logits(adapter, batch)
    theirs = logits_without_undrift(tmp_path / "out", batch, tmp_path)
    assert (mine - theirs).abs().max() < 1e-4
    assert (mine - base).abs().max() > 1e-2  # an adapter that does nothing would pass as well
    assert made.same and made.same.differ == 0 and made.same.asked == 8
    assert made.changed and made.changed.differ > 0
    assert made.as_expected


def test_a_merged_folder_has_the_keys_of_the_base_and_changes_what_is_adapted(
    adapter, backbone_folder, tmp_path
):
    made = export(Asked(adapter, "merged", tmp_path / "out"))
    assert made.same and made.same.differ == 0 and made.same.moved < 1e-3
    before, after = keys_of(backbone_folder), keys_of(tmp_path / "out")
    assert after.keys() == before.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert len(changed) == 6 and all("language_model" in key and "mlp" in key for key in changed)
    assert {v.dtype for v in after.values()} == {v.dtype for v in before.values()}
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "processor_config.json",
    ):
        assert (tmp_path / "out" / name).read_bytes() == (backbone_folder / name).read_bytes()


def test_a_peft_folder_says_base_rank_and_targets(adapter, backbone_folder, tmp_path):
    made = export(Asked(adapter, "peft", tmp_path / "out"))
    content = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert content["peft_type"] == "LORA" and content["r"] == 4 and content["lora_alpha"] == 8
    assert content["base_model_name_or_path"] == str(backbone_folder)
    assert content["target_modules"] == ["down_proj", "gate_proj", "up_proj"]
    assert not content["use_dora"] and content["modules_to_save"] is None
    assert "--max-lora-rank 8" in made.notes[0]
    for name in ("tokenizer.json", "processor_config.json"):
        assert (tmp_path / "out" / name).is_file()
    assert not (tmp_path / "out/config.json").exists()
    again = export(Asked(adapter, "peft", tmp_path / "again"))
    assert again.rank == 4
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


# ---------------------------------------------------------------- bases of other forms


def as_on_the_hub(folder: Path, target: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A LLaVA's folder with the keys of the Hub's files, in shards."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = {}
    for key, value in load_file(folder / "model.safetensors").items():
        name = re.sub(r"^vision_tower\.(?!vision_model)", "vision_tower.vision_model.", key)
        tensors[name] = value.to(dtype)
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, target / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    return target


def test_shards_with_the_keys_of_the_hub_keep_them(backbone_folder, tmp_path):
    base = as_on_the_hub(backbone_folder, tmp_path / "base")
    adapter = taught(base, tmp_path)
    made = export(Asked(adapter, "merged", tmp_path / "out"))
    assert made.same and made.same.differ == 0 and made.changed and made.changed.differ > 0
    before, after = keys_of(base), keys_of(tmp_path / "out")
    assert after.keys() == before.keys() and "language_model.lm_head.weight" in after
    assert sum(not torch.equal(before[key], after[key]) for key in before) == 6
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 2
    index = "model.safetensors.index.json"
    assert (tmp_path / "out" / index).read_bytes() == (base / index).read_bytes()


def test_half_precision_stays_and_answers_differ_by_near_ties_at_most(backbone_folder, tmp_path):
    base = as_on_the_hub(backbone_folder, tmp_path / "base", torch.bfloat16)
    made = export(Asked(taught(base, tmp_path), "merged", tmp_path / "out"))
    assert {value.dtype for value in keys_of(tmp_path / "out").values()} == {torch.bfloat16}
    assert made.same and made.same.beyond == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["llava_next", "llava_onevision", "idefics3", "gemma3", "qwen2_5_vl", "qwen3_vl", "internvl"],
)
def test_every_family_is_merged_under_its_own_keys(name, folder_of, tmp_path):
    base = folder_of(name)
    made = export(Asked(taught(base, tmp_path), "merged", tmp_path / "out"))
    assert made.same and made.same.differ == 0 and made.changed and made.changed.differ > 0
    before, after = keys_of(base), keys_of(tmp_path / "out")
    assert after.keys() == before.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["merged", "peft"])
def test_a_text_only_base(to, folder_of, tmp_path):
    base = folder_of("llama")
    adapter = taught(base, tmp_path, text=True)
    made = export(Asked(adapter, to, tmp_path / "out"))
    assert made.same and made.same.differ == 0 and made.changed and made.changed.differ > 0
    batch = batch_for(Backbone.load(str(base)))
    mine, bare = own_logits(adapter, batch)
    theirs = logits_without_undrift(tmp_path / "out", batch, tmp_path, "AutoModelForCausalLM")
    assert (mine - theirs).abs().max() < 1e-4 < (mine - bare).abs().max()


def test_a_base_that_ties_its_embeddings_stays_tied(tmp_path, folder_of):
    model: Any = Backbone.load(str(folder_of("llama"))).model
    base = shutil.copytree(folder_of("llama"), tmp_path / "tied")
    tensors = load_file(base / "model.safetensors")
    tensors.pop("lm_head.weight", None)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    config = model.config.to_dict() | {"tie_word_embeddings": True}
    (base / "config.json").write_text(json.dumps(config, default=str))
    made = export(Asked(taught(base, tmp_path, text=True), "merged", tmp_path / "out"))
    assert made.same and made.same.differ == 0
    assert "lm_head.weight" not in keys_of(tmp_path / "out")


def test_weights_that_are_stored_joined_are_refused(adapter, backbone_folder, tmp_path):
    session = open_adapter(adapter)
    lora: PlainLora = session.method.as_lora(session.model)
    factors = {f"{name}.else": each for name, each in lora.factors.items()}
    (tmp_path / "out").mkdir()
    model: Any = session.model
    with pytest.raises(ConfigError, match=r"no tensor of .* --to peft"):
        exporting.write_merged(
            replace(lora, factors=factors), backbone_folder, tmp_path / "out",
            model.get_base_model(),
        )  # fmt: skip


def test_a_base_whose_files_are_others_is_refused(adapter, backbone_folder, tmp_path):
    session = open_adapter(adapter)
    model: Any = session.model
    lora = session.method.as_lora(model)
    with torch.no_grad():
        for layer in model.modules():
            if hasattr(layer, "lora_A"):
                layer.base_layer.weight.add_(1)
    with pytest.raises(DataError, match="is not what the adapter is on"):
        exporting.write_merged(lora, backbone_folder, tmp_path, model.get_base_model())


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_a_quantised_base_is_merged_into_the_whole_one(quantize, folder_of, tmp_path):
    pytest.importorskip("bitsandbytes")
    base = folder_of("llama_wide")
    adapter = taught(base, tmp_path, text=True, quantize=quantize)
    made = export(Asked(adapter, "merged", tmp_path / "out"))
    assert made.quantize == quantize and made.same and made.same.moved > 0
    before, after = keys_of(base), keys_of(tmp_path / "out")
    assert after.keys() == before.keys()
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert sum(not torch.equal(before[key], after[key]) for key in before) == 6
    assert made.as_expected  # others by quantisation, which is printed


def test_a_trained_projector_goes_along(backbone_folder, tmp_path):
    adapter = taught(backbone_folder, tmp_path, train={"train_projector": True})
    merged = export(Asked(adapter, "merged", tmp_path / "merged"))
    before, after = keys_of(backbone_folder), keys_of(tmp_path / "merged")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert {key for key in changed if "multi_modal_projector" in key} and len(changed) == 10
    peft = export(Asked(adapter, "peft", tmp_path / "peft"))
    for made in (merged, peft):
        assert made.same and made.same.differ == 0
    assert "--to merged" in peft.notes[-1]


# ---------------------------------------------------------------- what is no plain LoRA


def test_a_routed_adapter_is_refused_with_the_way_and_nothing_is_left(routed, tmp_path):
    with pytest.raises(
        ConfigError, match=r"moelora: its experts .*--distil.*steadylora"
    ) as refused:
        export(Asked(routed, "peft", tmp_path / "out"))
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


POOLS = {
    "nearlora": {},
    "disco": {},
    "hide": {},
    "hide, factors": {"fuse": "factors"},
}


@pytest.fixture(scope="module", params=POOLS)
def pool(request, tmp_path_factory, backbone_folder) -> Path:
    """An adapter with a LoRA for each of two tasks."""
    name, options = request.param.partition(",")[0], POOLS[request.param]
    root = tmp_path_factory.mktemp("pool")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDRIFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        first = taught(backbone_folder, root, name, options=options)
        write_task(root, "capitals", train=8, test=8)
        file, test = root / "capitals.jsonl", root / "capitals-test.jsonl"
        own = OwnTask("capitals", file, root, test=test, max_new_tokens=6)
        lesson = Learn(start_from(str(first)), own, root / "second")
        lesson.go()
    return lesson.adapter


@pytest.mark.parametrize("number", [1, 2])
@torch.no_grad()
def test_the_lora_of_one_task_is_exported_exactly(number, pool, backbone_folder, tmp_path):
    task = ["colours", "capitals"][number - 1]
    made = export(Asked(pool, "peft", tmp_path / "out", task=task))
    assert made.as_expected and list(made.scores) == [task] and made.rank == 2
    opened = open_adapter(pool)
    batch = batch_for(opened.backbone)
    method: Any = opened.method
    with method.answering_for(number):
        mine = opened.model(**batch).logits
    bare = Backbone.load(str(backbone_folder))
    model = put_on(bare.model, tmp_path / "out").eval()
    torch.testing.assert_close(model(**batch).logits, mine, rtol=1e-4, atol=1e-5)
    with method.answering_for(3 - number):
        assert not torch.allclose(opened.model(**batch).logits, mine)


def test_a_task_without_a_lora_of_its_own_is_refused(pool, routed, tmp_path):
    with pytest.raises(UnknownName, match="capitals"):
        export(Asked(pool, "peft", tmp_path / "out", task="capita", limit=0))
    with pytest.raises(ConfigError, match="moelora: no task has a LoRA of its own; leave out --ta"):
        export(Asked(routed, "peft", tmp_path / "out", task="colours", limit=0))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_a_lora_is_fitted_to_a_routed_adapter_and_the_gap_is_measured(to, routed, tmp_path):
    made = export(Asked(routed, to, tmp_path / "out", distil=True))
    assert made.fitted and made.rank == 4 and made.as_expected
    assert made.same and made.same.asked == 4  # the other half was fitted to
    assert made.changed and made.changed.differ > 0
    assert made.same.differ < made.changed.differ
    assert set(made.scores) == {"colours"}


def test_the_fit_is_the_best_of_its_rank():
    torch.manual_seed(0)
    x = torch.randn(400, 12) @ (torch.eye(12) + 0.2 * torch.randn(12, 12))
    weight = torch.rand(400, 1)

    def error(W: torch.Tensor, dy: torch.Tensor) -> float:
        return float((weight * (dy - x @ W.mT) ** 2).sum())

    exact = torch.randn(9, 3) @ torch.randn(3, 12)
    sums = _Sums(12, 9, torch.device("cpu"))
    sums.add(x, x @ exact.mT, weight)
    assert torch.allclose(sums.solved(3).delta(), exact, atol=1e-2)

    dy = torch.tanh(x) @ torch.randn(12, 9) + torch.randn(400, 9)
    sums = _Sums(12, 9, torch.device("cpu"))
    for part in (slice(0, 150), slice(150, 400)):
        sums.add(x[part], dy[part], weight[part])
    found = sums.solved(2)
    best = error(found.delta(), dy)
    for _ in range(50):
        A, B = found.A + 1e-2 * torch.randn(2, 12), found.B + 1e-2 * torch.randn(9, 2)
        assert error(Factors(A, B, 1.0).delta(), dy) > 0.9999 * best
    whole = sums.solved(9).delta()
    U, S, Vt = torch.linalg.svd(whole)
    assert best < error((U[:, :2] * S[:2]) @ Vt[:2], dy)  # cut without regard to the inputs


def test_a_plain_lora_is_not_fitted_to(adapter, tmp_path):
    made = export(Asked(adapter, "peft", tmp_path / "out", distil=True))
    assert not made.fitted and "plain LoRA already" in " ".join(made.notes)


# ---------------------------------------------------------------- what is asked, and told


def test_an_export_that_does_nothing_is_noticed(adapter, tmp_path, monkeypatch):
    write = exporting.write_lora

    def nothing(lora: PlainLora, *rest: Any, **named: Any) -> None:
        factors = {n: replace(each, B=0 * each.B) for n, each in lora.factors.items()}
        write(replace(lora, factors=factors), *rest, **named)

    monkeypatch.setattr(exporting, "write_lora", nothing)
    made = export(Asked(adapter, "peft", tmp_path / "out"))
    assert made.changed and made.changed.differ == 0
    assert made.same and made.same.beyond > 0 and not made.as_expected


def test_near_ties_are_told_from_clear_choices():
    def one(token: int, ahead: float) -> Said:
        return Said(f"{token}", [token, 2], [[7, 8], [2, 5]], [[-1.0, -1.0 - ahead], [-0.1, -3.0]])

    near, clear = {("a", "1"): one(7, 0.005)}, {("a", "1"): one(7, 0.5)}
    other = {("a", "1"): Said("8", [8, 2], [[8, 7], [2, 5]], [[-1.0, -1.1], [-0.1, -3.0]])}
    found = agreement(near, other, torch.float32)
    assert (found.asked, found.differ, found.beyond) == (1, 1, 0)
    assert agreement(clear, other, torch.float32).beyond == 1
    assert agreement({("a", "1"): one(7, 0.2)}, other, torch.bfloat16).beyond == 0
    assert agreement(clear, other, torch.bfloat16).margin == pytest.approx(0.5)


def test_questions_of_a_file_are_asked_or_none(adapter, tmp_path):
    write_task(tmp_path, "capitals", train=2, test=3)
    questions = tmp_path / "capitals-test.jsonl"
    made = export(Asked(adapter, "peft", tmp_path / "file", questions=questions))
    assert made.same and made.same.asked == 3 and set(made.scores) == {"capitals-test"}
    made = export(Asked(adapter, "peft", tmp_path / "few", limit=2))
    assert made.same and made.same.asked == 2
    made = export(Asked(adapter, "peft", tmp_path / "none", limit=0))
    assert made.same is None and made.as_expected
    with pytest.raises(ConfigError, match=r"--questions FILE.*--limit 0"):
        export(Asked(adapter, "peft", tmp_path / "without", without=["colours"]))


def test_what_is_in_the_folder_stays_there(adapter, tmp_path):
    (tmp_path / "mine.txt").write_text("years of work")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(RunDirError, match="--out"):
            export(Asked(adapter, "peft", out))
    assert (tmp_path / "mine.txt").read_text() == "years of work"


def test_a_folder_appears_whole_or_not_at_all(adapter, tmp_path, monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "copy_readers", fails)
    with pytest.raises((OSError, RunDirError)):
        export(Asked(adapter, "peft", tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_no_question_answer_picture_or_path_of_data_leaves(to, adapter, backbone_folder, tmp_path):
    base = shutil.copytree(backbone_folder, tmp_path / "base")
    (base / "train.jsonl").write_text("a private row")
    (base / "scan.png").write_bytes(b"a picture")
    export(Asked(adapter, to, tmp_path / "out", backbone=str(base)))
    there = sorted(path.name for path in (tmp_path / "out").iterdir())
    weights = {
        "peft": ["adapter_config.json", "adapter_model.safetensors"],
        "merged": ["config.json", "generation_config.json", "model.safetensors"],
    }[to]
    readers = ["chat_template.jinja", "processor_config.json", "tokenizer.json",
               "tokenizer_config.json"]  # fmt: skip
    assert there == sorted(["README.md", *weights, *readers])
    data = str(adapter.parents[1])
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        assert data.encode() not in content, path
        if path.name not in readers and path.suffix != ".safetensors":
            assert b"which colour" not in content and b"green" not in content, path
