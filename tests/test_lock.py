"""`--locked`: an artefact is made again byte for byte, or refused with everything that is not as it was."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.kept import FOUR, contents, convert, edit_json, run, run_json
from tests.tiny import edit_weights
from tests.trt import LIMITS, build
from trtbuild.cache import facts
from trtbuild.cache.key import Difference, described, differences, key_of, nearest
from trtbuild.cache.lock import NAME, filled, read_lock
from trtbuild.cache.stage import Cache
from trtbuild.engine.options import BuildOptions, LaunchOptions, LoraOptions, PluginOptions
from trtbuild.errors import LockError
from trtbuild.pipeline import make_checkpoint, make_engine
from trtbuild.spec import AUTO, ConvertOptions, LayerMethod

Patch = pytest.MonkeyPatch


@pytest.fixture
def made(llama_copy: Path, tmp_path: Path) -> Path:
    """A checkpoint with options, made by the command."""
    words = ("--tp", "2", "--dtype", "bfloat16", "--quant", "int8", "--use-parallel-embedding")
    run("checkpoint", llama_copy, "-o", tmp_path / "made", *words)
    return tmp_path / "made"


def test_made_again_with_the_locked_options(made: Path, llama_copy: Path, tmp_path: Path) -> None:
    """By the artefact or by its lock alone; what is asked for beside may say the same."""
    run("checkpoint", llama_copy, "-o", tmp_path / "again", "--locked", made)
    assert contents(tmp_path / "again") == contents(made)
    lock = tmp_path / "some.lock.json"
    shutil.copy(made / NAME, lock)
    run("checkpoint", llama_copy, "-o", tmp_path / "third", "--locked", lock, "--tp", "2")
    assert contents(tmp_path / "third") == contents(made)


def test_all_differences_at_once(made: Path, llama_copy: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """A weight, a config, an option, a library, trtbuild's own code: one refusal, and nothing is written."""
    edit_weights(llama_copy, lambda tensors: tensors["model.norm.weight"].add_(1))
    config = json.loads((llama_copy / "config.json").read_text())
    (llama_copy / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0}))
    (llama_copy / "hf_quant_config.json").write_text("{}")
    before = facts.versions()
    monkeypatch.setattr(facts, "versions", lambda: {**before, "numpy": "0.1", "trtbuild code": "none"})
    said = run("checkpoint", llama_copy, "-o", tmp_path / "again", "--locked", made, "--pp", "2", code=3)
    assert "the lock does not hold, 6 differences" in said
    for text in (
        "source.files.model.safetensors: locked ",
        "source.files.config.json: locked ",
        "source.files.hf_quant_config.json: locked nothing, here ",
        "options.convert.pp_size: locked 1, here 2",
        f"versions.numpy: locked {before['numpy']}, here 0.1",
        "versions.trtbuild code: locked ",
    ):
        assert text in said
    assert not (tmp_path / "again").exists()


def test_unlocked_never_refuses(made: Path, llama_copy: Path, tmp_path: Path, cache_folder: Path) -> None:
    edit_weights(llama_copy, lambda tensors: tensors["model.norm.weight"].add_(1))
    run("checkpoint", llama_copy, "-o", tmp_path / "again", "--tp", "2")
    assert read_lock(tmp_path / "again").inputs != read_lock(made).inputs


def test_another_result_of_the_same_inputs_is_refused(made: Path, llama_copy: Path, tmp_path: Path) -> None:
    """As on a machine that computes differently: the lock names other bytes than those that came out."""
    edit_json(made / NAME, lambda document: document["files"].update({"rank1.safetensors": "0" * 64}))
    said = run("checkpoint", llama_copy, "-o", tmp_path / "again", "--locked", made, code=3)
    assert "files.rank1.safetensors: locked 0000" in said
    assert "rank0" not in said
    assert list(tmp_path.glob("*again*")) == []


def test_a_folder_of_another_name_with_the_same_files(made: Path, llama_copy: Path, tmp_path: Path) -> None:
    """What a folder is called decides no byte of the weights; the documents say the name that it has here."""
    other = llama_copy.rename(tmp_path / "other")
    run("checkpoint", other, "-o", tmp_path / "again", "--locked", made)
    one, two = contents(made), contents(tmp_path / "again")
    unlike = {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)}
    assert unlike == {"trtbuild.json", NAME, "sbom.cdx.json", "provenance.intoto.json"}
    assert json.loads(two["trtbuild.json"])["source"]["model"] == "other"
    edit_weights(other, lambda tensors: tensors["model.norm.weight"].add_(1))
    said = run("checkpoint", other, "-o", tmp_path / "third", "--locked", made, code=3)
    assert "source.files.model.safetensors: locked " in said
    assert "source.model" not in said


def test_the_cache_serves_a_lock(llama_folder: Path, tmp_path: Path, cache_folder: Path) -> None:
    """What the lock names comes from the cache; what the cache has otherwise is made, and compared."""
    convert(llama_folder, tmp_path / "one")
    lock = read_lock(tmp_path / "one")
    assert "from the cache" in convert(llama_folder, tmp_path / "two", locked=lock).notes[0]
    other = replace(lock, files={**lock.files, "rank0.safetensors": "0" * 64})
    with pytest.raises(LockError, match=r"files\.rank0\.safetensors"):
        convert(llama_folder, tmp_path / "three", locked=other)


def test_a_resharded_checkpoint_has_a_lock_too(llama_folder: Path, tmp_path: Path) -> None:
    given = make_checkpoint(str(llama_folder), tmp_path / "given", FOUR)
    run("checkpoint", given, "-o", tmp_path / "one", "--tp", "4")
    run("checkpoint", given, "-o", tmp_path / "two", "--locked", tmp_path / "one")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    (given / "rank0.safetensors").chmod(0o644)
    edit_json(given / "trtbuild.json", lambda document: document["options"].update(note=1))
    said = run("checkpoint", given, "-o", tmp_path / "three", "--locked", tmp_path / "one", code=3)
    assert "source.files.trtbuild.json" in said


def test_an_engine(llama_folder: Path, tmp_path: Path) -> None:
    """But for what is measured (kernels.json, the executor in config.json) the same bytes come out."""
    limits = BuildOptions(max_batch_size=4, max_seq_len=64)
    one = make_engine(str(llama_folder), tmp_path / "one", ConvertOptions(), limits)
    run("engine", llama_folder, "-o", tmp_path / "two", "--locked", one)
    first, second = contents(one), contents(tmp_path / "two")
    assert first["rank0.engine"] == second["rank0.engine"]
    assert json.loads(second["config.json"])["build_config"]["max_seq_len"] == 64
    locked, again = read_lock(one), read_lock(tmp_path / "two")
    assert locked == again
    assert "kernels.json" not in locked.files
    said = run("engine", llama_folder, "-o", tmp_path / "x", "--locked", one, "--max-batch-size", "5", code=3)
    assert "options.build.max_batch_size: locked 4, here 5" in said
    said = run("checkpoint", llama_folder, "-o", tmp_path / "x", "--locked", one, code=3)
    assert "is of an artefact of `trtbuild engine`" in said


def test_a_tensorrt_engine(trt_checkpoint: Path, tmp_path: Path, stand_in: Patch, cache_folder: Path) -> None:
    """Engine files cannot be the same twice and are not compared; GPU, versions and options are. By a stand-in."""
    from trtbuild.cache.stage import open_cache

    def make(name: str, limits: BuildOptions, cache: Cache) -> list[str]:
        target, launch = ConvertOptions(target="tensorrt"), LaunchOptions(launcher="none", processes=1)
        make_engine(str(trt_checkpoint), tmp_path / name, target, limits, launch=launch, cache=cache)
        return cache.notes

    assert make("one", LIMITS, open_cache()) == []
    lock = read_lock(tmp_path / "one")
    assert sorted(lock.measured) == ["config.json", "rank0.engine", "rank1.engine"]
    assert lock.inputs["versions"]["tensorrt_llm"] == "1.2.1"
    assert "engine from the cache" in make("two", LIMITS, open_cache(locked=lock))[0]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert make("three", LIMITS, Cache(lock=lock)) == [], "built again, and as the lock says"
    with pytest.raises(LockError, match=r"options\.build\.max_batch_size: locked 8, here 9"):
        make("four", replace(LIMITS, max_batch_size=9), Cache(lock=lock))
    plugin = replace(LIMITS, plugin_config=PluginOptions(gemm_plugin="auto"))
    assert make("five", plugin, open_cache()) == []
    assert "options.build.plugin_config.gemm_plugin: auto, kept nothing" in run("cache", "why")


NVIDIA_SMI = "#!/bin/sh\necho '0, GPU-a, A100, 8.0'\necho '1, GPU-b, H100, 9.0'\necho '2, GPU-c, H100, 9.0'\n"


def test_an_engine_of_another_gpu_is_no_hit(
    trt_checkpoint: Path, tmp_path: Path, stand_in: Patch, cache_folder: Path
) -> None:
    """Of two kinds of GPUs in one machine the visible one counts; those of other hosts cannot be known."""
    from trtbuild.cache.stage import open_cache

    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    stand_in.setenv("PATH", os.pathsep.join([str(program.parent), os.environ["PATH"]]))

    def make(name: str, visible: str, launch: LaunchOptions) -> str:
        stand_in.setenv("CUDA_VISIBLE_DEVICES", visible)
        cache = open_cache()
        target = ConvertOptions(target="tensorrt")
        make_engine(str(trt_checkpoint), tmp_path / name, target, LIMITS, launch=launch, cache=cache)
        return " ".join(cache.notes)

    here = LaunchOptions(launcher="none", processes=1)
    assert make("one", "1", here) == ""
    assert make("two", "0", here) == ""
    assert "machine.gpus.0: A100, SM 80, kept H100, SM 90" in run("cache", "why")
    assert "engine from the cache" in make("three", "1,2", here), "the same kind"
    assert read_lock(tmp_path / "three").inputs["machine"]["gpus"] == ["H100, SM 90"]
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=2\n")
    assert "not looked up" in make("four", "1", LaunchOptions(hostfile=hosts))
    stand_in.setenv("SLURM_JOB_ID", "7")
    assert "not looked up" in make("five", "1", here)
    assert len(run_json("cache", "ls")["entries"]) == 2


def test_tensorrt_artefacts_are_sound(trt_checkpoint: Path, tmp_path: Path, stand_in: Patch) -> None:
    build(trt_checkpoint, tmp_path / "out", LaunchOptions(launcher="none", processes=1))
    run("inspect", tmp_path / "out")


DAMAGED: dict[str, tuple[Any, str]] = {
    "no JSON": (lambda path: path.write_text("{"), "is damaged"),
    "another schema": (lambda path: edit_json(path, lambda d: d.update(schema=9)), "is no lock of this trtbuild"),
    "an input edited": (lambda path: edit_json(path, lambda d: d["inputs"].update(stage="x")), "was edited"),
    "a part missing": (lambda path: edit_json(path, lambda d: d.pop("files")), "is damaged"),
    "gone": (lambda path: path.unlink(), "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_locks(damage: str, artefact_copy: Path, llama_folder: Path, tmp_path: Path) -> None:
    edit, said = DAMAGED[damage]
    edit(artefact_copy / NAME)
    assert said in run("checkpoint", llama_folder, "-o", tmp_path / "out", "--locked", artefact_copy, code=3)


def test_a_lock_of_a_folder_needs_the_model(artefact: Path, tmp_path: Path) -> None:
    run("checkpoint", "-o", tmp_path / "out", code=2)
    run("checkpoint", "-o", tmp_path / "out", "--locked", artefact, code=2)


def test_options_come_back_as_they_were() -> None:
    """Every field of the options, nested ones and tuples too, through JSON."""
    layers = (LayerMethod("*.mlp.*", "fp8"), LayerMethod("*.3.*", "int4_awq", 64))
    convert_ = ConvertOptions(tp_size=4, quant="int8", quant_layers=layers, moe_tp_size=2, moe_ep_size=2, sm=90)
    plugins = PluginOptions(gemm_plugin="auto", tokens_per_block=64)
    build_ = BuildOptions(max_seq_len=7, plugin_config=plugins, lora_config=LoraOptions(max_lora_rank=8))
    for options, usual in ((convert_, ConvertOptions(quant=AUTO)), (build_, BuildOptions())):
        kept = json.loads(json.dumps(described(options, str)))
        assert filled(usual, usual, kept) == options
        assert filled(options, usual, kept) == options
    asked = filled(ConvertOptions(quant=AUTO, tp_size=8), ConvertOptions(quant=AUTO), described(convert_, str))
    assert (asked.tp_size, asked.quant, asked.sm) == (8, "int8", 90), "what was asked for stays, and is compared"


@dataclass(frozen=True)
class Odd:
    value: object


def test_keys() -> None:
    """One spelling, whatever the order; differences by path; values that have no JSON form are refused."""
    assert key_of({"a": 1, "b": [1.5, None]}) == key_of({"b": [1.5, None], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": "1"}) != key_of({"a": True})
    one, two = {"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 1, "c": [1, 3], "d": None}}
    assert differences(one, two) == (Difference("a.c.1", 2, 3),)
    near = nearest(
        {"stage": "s", "x": 1, "y": 1}, [("k", {"stage": "s", "x": 2, "y": 2}), ("l", {"stage": "s", "x": 1})]
    )
    assert near == ("l", (Difference("y", 1, None),))
    assert nearest({"stage": "s"}, [("k", {"stage": "t"})]) is None
    assert described(Odd((Path("a/b"), {3, 1})), lambda path: path.name) == {"value": ["b", [1, 3]]}
    with pytest.raises(TypeError, match="cannot be part of a key"):
        described(Odd(object()), str)
