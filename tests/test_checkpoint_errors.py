"""Bad input and bad luck through the real program: one clear message, the right exit code, nothing left behind."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.disks import disk_of
from tests.tiny import ROOT, edit_config, edit_weights, make_llama, trtbuild
from trtbuild import converting, pipeline
from trtbuild.cache.stage import DOCUMENTS
from trtbuild.errors import OutputError
from trtbuild.spec import ConvertOptions


def fails(code: int, *words: str, model: Path, out: Path, options: tuple[object, ...] = (), **run: Any) -> str:
    """Convert, expect `code` and every one of `words` on stderr, no traceback, and no output in any form."""
    before = sorted(out.parent.iterdir()) if out.parent.is_dir() else []
    done = trtbuild("checkpoint", model, "-o", out, *options, **run)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert (sorted(out.parent.iterdir()) if out.parent.is_dir() else []) == before
    return done.stderr


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 100)


def cut_header(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 50)


def scramble_header(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[8:12] = b"\xff\xfe{{"
    (folder / "model.safetensors").write_bytes(data)


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def drop_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def cut_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def drop_two_tensors(folder: Path) -> None:
    edit_weights(folder, lambda t: [t.pop(f"model.layers.{i}.self_attn.k_proj.weight") for i in (1, 3)])


def add_tensor(folder: Path) -> None:
    edit_weights(folder, lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}))


def int8_tensor(folder: Path) -> None:
    edit_weights(folder, lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.int8)}))


def wrong_shape(folder: Path) -> None:
    edit_config(folder, vocab_size=511)


def nan_weight(folder: Path) -> None:
    edit_weights(folder, lambda t: t["model.layers.2.mlp.up_proj.weight"].view(-1)[7:8].fill_(float("nan")))


def huge_weight(folder: Path) -> None:
    edit_weights(folder, lambda t: t["model.layers.2.mlp.up_proj.weight"].view(-1)[7:8].fill_(-70000.0))


SOURCES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "truncated": (truncate, ("model.safetensors is truncated", "its header describes")),
    "header cut": (cut_header, ("model.safetensors is truncated", "50 bytes")),
    "header corrupt": (scramble_header, ("model.safetensors has a corrupt header",)),
    "pickles only": (pickle_only, ("pickled weights only", "save_pretrained")),
    "no weights": (drop_weights, ("has no weights",)),
    "no config": (drop_config, ("has no config.json",)),
    "config no json": (cut_config, ("config.json cannot be read",)),
    "missing tensors": (
        drop_two_tensors,
        ("missing tensors", "layers.1.self_attn.k_proj", "layers.3.self_attn.k_proj"),
    ),
    "unexpected tensor": (add_tensor, ("unexpected tensors", "q_norm")),
    "unreadable dtype": (int8_tensor, ("lm_head.weight has dtype I8",)),
    "wrong shape": (wrong_shape, ("model.embed_tokens.weight has shape [512, 64]", "says [511, 64]")),
    "nan": (nan_weight, ("model.layers.2.mlp.up_proj.weight", "NaN or infinite")),
    "float16 overflow": (
        huge_weight,
        ("model.layers.2.mlp.up_proj.weight", "70000", "beyond float16", "--dtype bfloat16"),
    ),
    "architecture": (
        lambda f: edit_config(f, architectures=["MambaForCausalLM"]),
        ("MambaForCausalLM is not supported", "LlamaForCausalLM"),
    ),
    "no architecture": (lambda f: edit_config(f, architectures=None), ("names no architecture",)),
    "config value": (lambda f: edit_config(f, hidden_act="relu"), ("hidden_act is 'relu'; supported: silu",)),
    "quantized": (
        lambda f: edit_config(f, quantization_config={"quant_method": "hqq"}),
        ("quantization_config is set (quant_method 'hqq')", "unquantized"),
    ),
}


@pytest.mark.parametrize("name", list(SOURCES))
def test_bad_source(name: str, llama_copy: Path, tmp_path: Path) -> None:
    spoil, words = SOURCES[name]
    spoil(llama_copy)
    fails(3, *words, model=llama_copy, out=tmp_path / "out")


def test_float32_keeps_what_float16_cannot(llama_copy: Path, tmp_path: Path) -> None:
    huge_weight(llama_copy)
    done = trtbuild("checkpoint", llama_copy, "-o", tmp_path / "out", "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("sharded") / "m", shard_size="100KB")


def test_index_and_shards_that_disagree(sharded: Path, tmp_path: Path) -> None:
    model = tmp_path / "m"
    shutil.copytree(sharded, model)
    shards = sorted(model.glob("*.safetensors"))
    shards[0].unlink()
    os.truncate(shards[1], shards[1].stat().st_size - 4)
    # Both at once, in one message.
    words = (f"{shards[0].name} is missing (model.safetensors.index.json places", f"{shards[1].name} is truncated")
    fails(3, *words, model=model, out=tmp_path / "out")


def test_index_that_names_an_absent_tensor(sharded: Path, tmp_path: Path) -> None:
    model = tmp_path / "m"
    shutil.copytree(sharded, model)
    path = model / "model.safetensors.index.json"
    table = json.loads(path.read_text())
    table["weight_map"]["ghost.weight"] = sorted(table["weight_map"].values())[0]
    path.write_text(json.dumps(table))
    fails(3, "places ghost.weight in", "which does not hold it", model=model, out=tmp_path / "out")


def test_tensor_in_two_shards(sharded: Path, tmp_path: Path) -> None:
    model = tmp_path / "m"
    shutil.copytree(sharded, model)
    shards = sorted(model.glob("*.safetensors"))
    shutil.copy(shards[0], shards[1])
    fails(3, f"is in both {shards[0].name} and {shards[1].name}", model=model, out=tmp_path / "out")


def test_tp_that_does_not_divide_names_the_values_that_work(llama_folder: Path, tmp_path: Path) -> None:
    words = ("tp 3 does not divide 8 attention heads; tp 1, 2, 4 or 8 works", "pp 5 is more than the 4 layers")
    fails(3, *words, model=llama_folder, out=tmp_path / "out", options=("--tp", 3, "--pp", 5))


@pytest.mark.parametrize(("option", "value"), [("--dtype", "fp8"), ("--target", "gpu")])
def test_wrong_usage(option: str, value: object, llama_folder: Path, tmp_path: Path) -> None:
    fails(2, option, model=llama_folder, out=tmp_path / "out", options=(option, value))


def test_model_that_is_not_there(tmp_path: Path) -> None:
    fails(3, "no model folder", model=tmp_path / "absent", out=tmp_path / "out")


def test_output_that_exists(llama_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("x")
    fails(4, "exists and is not empty", "--force", model=llama_folder, out=out)
    assert (out / "precious").read_text() == "x"
    done = trtbuild("checkpoint", llama_folder, "-o", out, "--force")
    assert done.returncode == 4
    assert "was not made by trtbuild" in done.stderr
    assert (out / "precious").read_text() == "x"


def test_force_replaces_what_trtbuild_made(llama_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert trtbuild("checkpoint", llama_folder, "-o", out).returncode == 0
    (out / "later").write_text("x")
    done = trtbuild("checkpoint", llama_folder, "-o", out, "--force", "--tp", "2")
    assert done.returncode == 0, done.stderr
    whole = sorted(["config.json", "rank0.safetensors", "rank1.safetensors", *DOCUMENTS])
    assert sorted(p.name for p in out.iterdir()) == whole


def test_force_never_replaces_the_input(llama_copy: Path, tmp_path: Path) -> None:
    before = sorted(p.name for p in llama_copy.iterdir())
    for out in (llama_copy, tmp_path):
        assert trtbuild("checkpoint", llama_copy, "-o", out, "--force").returncode == 4
    assert sorted(p.name for p in llama_copy.iterdir()) == before
    checkpoint = tmp_path / "checkpoint"
    assert trtbuild("checkpoint", llama_copy, "-o", checkpoint).returncode == 0
    done = trtbuild("engine", checkpoint, "-o", checkpoint, "--force")
    assert done.returncode == 4
    assert "holds the input" in done.stderr
    assert (checkpoint / "rank0.safetensors").exists()


def test_output_under_a_file(llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    fails(4, "a part of the path is a file", model=llama_folder, out=tmp_path / "file" / "out")


def test_output_that_cannot_be_made(llama_folder: Path) -> None:
    done = trtbuild("checkpoint", llama_folder, "-o", "/proc/trtbuild/out")
    assert done.returncode == 4, done.stderr
    assert "cannot write /proc/trtbuild/out" in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    with disk_of(tmp_path / "small", 256) as folder:
        yield folder


def test_disk_without_room_is_refused_before_reading(llama_folder: Path, small_disk: Path) -> None:
    fails(4, "the disk is full", "needed", model=llama_folder, out=small_disk / "out")


def test_disk_that_fills_up(llama_folder: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converting, "check_disk", lambda *_: None)
    with pytest.raises(OutputError, match="the disk is full"):
        pipeline.make_checkpoint(str(llama_folder), small_disk / "out", ConvertOptions())
    assert list(small_disk.iterdir()) == []


def test_file_size_limit(llama_folder: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    fails(4, "file size limit", model=llama_folder, out=tmp_path / "out", preexec_fn=limit)


def test_killed_in_the_middle_then_run_again(llama_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"""
import os, signal
from pathlib import Path
from trtbuild import pipeline
from trtbuild.cache.stage import DOCUMENTS
from trtbuild.spec import ConvertOptions
def die(done, total, text=""):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)
pipeline.make_checkpoint({str(llama_folder)!r}, Path({str(out)!r}), ConvertOptions(), progress=die)
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    done = trtbuild("checkpoint", llama_folder, "-o", out)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_writers_of_one_output(llama_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def second(done: float, total: float, text: str = "") -> None:
        if not done:
            again = trtbuild("checkpoint", llama_folder, "-o", out)
            assert again.returncode == 4
            assert "another trtbuild is writing" in again.stderr

    pipeline.make_checkpoint(str(llama_folder), out, ConvertOptions(), progress=second)
    assert (out / "rank0.safetensors").is_file()
