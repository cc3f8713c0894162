"""Quantization of whole models through make_checkpoint: against ModelOpt's exports, killed and resumed, re-sharded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.by_hand import make as make_by_hand
from tests.disks import disk_of
from tests.test_convert_resume import same
from tests.test_methods import EDGES, unpacked
from tests.tiny import ROOT, edit_weights, load_rank, make_llama, trtbuild
from tests.worded import add_tokenizer, text_of, with_tokenizer
from trtbuild import pipeline
from trtbuild.cache.stage import DOCUMENTS
from trtbuild.calibrate import run
from trtbuild.errors import CheckpointError, OutputError, PlanError
from trtbuild.lint.check import check
from trtbuild.manifest import read_manifest
from trtbuild.quantize.methods import METHODS, QUANTIZE
from trtbuild.spec import CalibrationOptions, ConvertOptions

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}


@pytest.fixture(scope="module", autouse=True)
def one_core() -> Iterator[None]:
    """Tiny operations on two threads of a busy machine wait for each other most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTBUILD_THREADS", "1")
        yield


def words(path: Path, count: int, vocab_size: int = 512) -> Path:
    ids = torch.randint(3, vocab_size, (count,), generator=torch.Generator().manual_seed(5)).tolist()
    path.write_text(text_of(ids))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 4 layers and its calibration text (words.txt beside it)."""
    folder = add_tokenizer(make_llama(tmp_path_factory.mktemp("quantize") / "m", dtype="bfloat16", **WIDE))
    words(folder.parent / "words.txt", 600)
    return folder


def calibration(model: Path, **changes: Any) -> CalibrationOptions:
    return CalibrationOptions(**{"text": model.parent / "words.txt", "samples": 8, "length": 64, **changes})


@pytest.mark.parametrize("name", list(EDGES))
def test_equals_the_export_of_modelopt(name: str, golden: Path, tmp_path: Path) -> None:
    """The same model and token ids: names, shapes and dtypes equal, scales to float rounding, weights but for edges."""
    exports = golden.parent / "golden-modelopt"
    source = with_tokenizer(exports / "hf", tmp_path / "hf")
    ids = np.load(exports / "calib_ids.npy")
    text = tmp_path / "ids.jsonl"
    text.write_text(json.dumps({"text": text_of(ids.reshape(-1).tolist())}))
    calibrate = CalibrationOptions(text, samples=len(ids), length=ids.shape[1], search="modelopt")
    made = pipeline.make_checkpoint(
        str(source), tmp_path / "out", ConvertOptions(dtype="float16", quant=name), calibration=calibrate
    )
    assert read_manifest(made)["source"]["calibration"]["samples"] == len(ids)
    ours, theirs = load_rank(made / "rank0.safetensors"), load_rank(
        exports / f"{name}-tp1-calc32" / "trtllm" / "rank0.safetensors"
    )  # fmt: skip
    assert {key: (t.dtype, t.shape) for key, t in ours.items()} == {
        key: (t.dtype, t.shape) for key, t in theirs.items()
    }
    different = 0
    for key, wanted in theirs.items():
        found = ours[key]
        if key.endswith(("prequant_scaling_factor", "activation_scaling_factor", "weights_scaling_factor")):
            rtol = 2e-3 if "prequant" in key else 1e-5
            torch.testing.assert_close(
                found.float(), wanted.float(), rtol=rtol, atol=0.0, msg=lambda m, k=key: f"{k}: {m}"
            )
        elif wanted.dtype in (torch.int8, torch.float8_e4m3fn):
            both = (unpacked(t) if name == "int4_awq" else t.float() for t in (found, wanted))
            one, other = (t.float() for t in both)
            assert name == "fp8" or (one - other).abs().max() <= 1, key
            different += int((one != other).sum())
        else:
            assert torch.equal(found, wanted), key
    assert different <= EDGES[name]
    quantization = json.loads((made / "config.json").read_text())["quantization"]
    expected = json.loads((exports / f"{name}-tp1-calc32" / "trtllm" / "config.json").read_text())["quantization"]
    compared = ["quant_algo", "kv_cache_quant_algo", *(["group_size", "pre_quant_scale"] if "awq" in name else [])]
    assert {key: quantization[key] for key in compared} == {key: expected[key] for key in compared}


@pytest.mark.parametrize(
    ("name", "kv"), [("none", "int8"), ("int4_awq", "int8"), *((name, "none") for name in ("int8", "int4", *QUANTIZE))]
)
def test_every_method_gives_a_sound_checkpoint(name: str, kv: str, model: Path, tmp_path: Path) -> None:
    """The linter is silent; planned tensors are those written; what is not quantized is a plain conversion's."""
    options = ConvertOptions(1, 2, "float16", name, kv_cache=kv)
    needed = METHODS[name].needs_calibration or kv != "none"
    given = calibration(model) if needed else CalibrationOptions()
    made = pipeline.make_checkpoint(str(model), tmp_path / "out", options, calibration=given)
    whole = sorted(["config.json", "rank0.safetensors", "rank1.safetensors", *DOCUMENTS])
    assert sorted(path.name for path in made.iterdir()) == whole
    assert not [found for found in check(made).findings if found.severity != "info"]
    assert json.loads((made / "config.json").read_text())["quantization"]["kv_cache_quant_algo"] == (
        None if kv == "none" else "INT8"
    )
    plain = pipeline.make_checkpoint(str(model), tmp_path / "plain", ConvertOptions(1, 2, "float16"))
    plan = pipeline.make_plan(str(model), options)
    for rank in (0, 1):
        held, whole = (load_rank(place / f"rank{rank}.safetensors") for place in (made, plain))
        planned = {job.name: job.shape for job in plan.parts[0].ranks[rank].jobs}
        assert planned == {key: tuple(tensor.shape) for key, tensor in held.items()}
        for key, tensor in held.items():
            scale = key.endswith(("scaling_factor", "scale", "factor_2", "smoother", "scale_to_int"))
            divided = METHODS[name].norm_scales and "layernorm" in key
            assert scale or divided or tensor.dtype != whole[key].dtype or torch.equal(tensor, whole[key]), key
        if kv == "int8":
            assert sum("kv_cache_scaling_factor" in key for key in held) == 2
    manifest = read_manifest(made)
    assert ("calibration" in manifest["source"]) is needed
    assert manifest["options"]["kv_cache"] == kv


def test_ranks_are_slices_of_the_whole(model: Path, tmp_path: Path) -> None:
    """Quantized for 2 ranks = quantized for one and re-sharded, bit for bit; the same inputs give the same bytes."""
    asked = {"dtype": "float16", "quant": "int4_awq", "kv_cache": "fp8"}
    given = calibration(model)
    whole = pipeline.make_checkpoint(str(model), tmp_path / "whole", ConvertOptions(**asked), calibration=given)
    again = pipeline.make_checkpoint(str(model), tmp_path / "again", ConvertOptions(**asked), calibration=given)
    assert same(whole, again)
    halves = pipeline.make_checkpoint(str(model), tmp_path / "halves", ConvertOptions(2, 1, **asked), calibration=given)
    recut = pipeline.make_checkpoint(str(whole), tmp_path / "recut", ConvertOptions(2, 1))
    for name in ("config.json", "rank0.safetensors", "rank1.safetensors"):
        assert (halves / name).read_bytes() == (recut / name).read_bytes(), name


KILLED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
from pathlib import Path
from trtbuild import pipeline
from trtbuild.calibrate import run
from trtbuild.spec import CalibrationOptions, ConvertOptions
last, place = int(sys.argv[1]), sys.argv[2]
seen = []
class Statistics(run.LayerStatistics):
    def __init__(self, *args, **named):
        super().__init__(*args, **named)
        seen.append(1)
        self.samples = 0
    def linear(self, module, x):
        super().linear(module, x)
        if module == "mlp.proj":
            self.samples += 1
            if len(seen) == last and self.samples == 5:
                os.kill(os.getpid(), getattr(signal, place))
run.LayerStatistics = Statistics
calibration = CalibrationOptions(Path(sys.argv[5]), samples=8, length=64)
pipeline.make_checkpoint(sys.argv[3], Path(sys.argv[4]), ConvertOptions(dtype="float16", quant="int4_awq"),
                         calibration=calibration)
print(len(seen))
"""


def killed_at(layer: int, how: str, model: Path, out: Path) -> tuple[int, str]:
    """(exit code, layers whose statistics were taken); ends itself amid the samples of one of its layers."""
    argv = [sys.executable, "-c", KILLED, str(layer), how, str(model), str(out), str(model.parent / "words.txt")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout.strip()


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ConvertOptions(dtype="float16", quant="int4_awq")
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    return pipeline.make_checkpoint(str(model), out, options, calibration=calibration(model))


def test_a_killed_run_goes_on_with_its_layer(model: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Ctrl-C, then SIGKILL; at last the hidden states are damaged and computed again, finished layers are kept."""
    out = tmp_path / "out"
    for how in ("SIGINT", "SIGKILL"):
        status, _ = killed_at(2, how, model, out)
        assert status != 0
        assert not out.exists()
    partial = tmp_path / ".out.partial"
    assert sorted(path.name for path in (partial / "logical").glob("*.safetensors")) == [
        "layer0.safetensors", "layer1.safetensors", "plain.safetensors"]  # fmt: skip
    with (partial / "spool" / "hidden0").open("r+b") as handle:
        handle.seek(5000)
        handle.write(b"damaged")
    status, taken = killed_at(99, "SIGKILL", model, out)
    assert (status, taken) == (0, "2")  # layers 2 and 3 of 4
    assert same(undisturbed, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("name", ["int4_awq", "fp8"])
def test_experts(name: str, tmp_path: Path) -> None:
    """One token reaches two of four experts: the others take what those saw."""
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1}
    folder = add_tokenizer(make_by_hand("Mixtral", tmp_path / "m", **sizes), 67)
    text = words(tmp_path / "words.txt", 300, 67)
    options = ConvertOptions(dtype="float16", quant=name, group_size=64)
    made = pipeline.make_checkpoint(
        str(folder), tmp_path / "out", options, calibration=CalibrationOptions(text, samples=1, length=1)
    )
    assert not [found for found in check(made).findings if found.severity == "error"]


def test_damaged_weights_are_named_and_nothing_is_left(model: Path, tmp_path: Path) -> None:
    mine = with_tokenizer(model, tmp_path / "m")
    name = "model.layers.2.mlp.up_proj.weight"
    edit_weights(mine, lambda t: t[name].view(-1)[7:8].fill_(float("nan")))
    with pytest.raises(CheckpointError, match=f"{name} in model.safetensors holds NaN or infinite weights"):
        pipeline.make_checkpoint(
            str(mine), tmp_path / "out", ConvertOptions(dtype="float16", quant="fp8"), calibration=calibration(model)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_disk_that_is_full_or_gets_full(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ConvertOptions(dtype="float16", quant="fp8")

    class Filling(run.LayerStatistics):
        """Leaves no room when the second layer begins."""

        layers = 0

        def __init__(self, sizes: dict[str, int], *, gram: bool = False, even: bool = False) -> None:
            super().__init__(sizes, gram=gram, even=even)
            Filling.layers += 1
            if Filling.layers == 2:
                free = shutil.disk_usage(disk).free
                (disk / "filler").write_bytes(bytes(free - 200_000))

    with disk_of(tmp_path / "small", 4000) as disk, pytest.raises(OutputError, match=r"the disk is full \("):
        pipeline.make_checkpoint(str(model), disk / "out", options, calibration=calibration(model))
    monkeypatch.setattr(run, "LayerStatistics", Filling)
    with disk_of(tmp_path / "disk", 40_000) as disk:
        with pytest.raises(OutputError, match=r"cannot write .*the disk is full"):
            pipeline.make_checkpoint(str(model), disk / "out", options, calibration=calibration(model))
        assert [path.name for path in disk.iterdir()] == ["filler"]


def test_a_calibration_that_nothing_needs(model: Path, tmp_path: Path) -> None:
    for name in ("none", "int8", "fp8_rowwise"):
        with pytest.raises(PlanError, match=f"{name} without a quantized KV cache needs no calibration"):
            pipeline.make_checkpoint(
                str(model),
                tmp_path / "out",
                ConvertOptions(dtype="float16", quant=name),
                calibration=calibration(model),
            )


def test_the_command_line(model: Path, tmp_path: Path) -> None:
    text = model.parent / "words.txt"
    done = trtbuild("checkpoint", model, "-o", tmp_path / "out", "--dtype", "float16", "--quant", "int4_awq",
                    "--group-size", 64, "--kv-cache", "fp8", "--calib", text, "--calib-samples", 4,
                    "--calib-length", 32, "--calib-seed", 7)  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert (config["quant_algo"], config["group_size"], config["kv_cache_quant_algo"]) == ("W4A16_AWQ", 64, "FP8")
    described = read_manifest(tmp_path / "out")["source"]["calibration"]
    assert (described["samples"], described["length"], described["seed"], described["text"]) == (4, 32, 7, "words.txt")
    held = load_rank(tmp_path / "out" / "rank0.safetensors")
    assert held["transformer.layers.0.mlp.proj.weights_scaling_factor"].shape == (256, 8)
