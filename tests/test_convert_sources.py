"""Every kind of source arrives as torch reads it: dtypes, shards, fp8 with its scales, and pickles when allowed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import edit_config, load_rank, make_llama, trtbuild
from trtbuild import pipeline
from trtbuild.errors import CheckpointError, PlanError, UnsupportedModel
from trtbuild.manifest import sha256_file
from trtbuild.spec import ConvertOptions

pytestmark = pytest.mark.usefixtures("one_thread")

Tensors = dict[str, torch.Tensor]


def linears(tensors: Tensors) -> list[str]:
    return [name for name in tensors if name.endswith("_proj.weight")]


def make_fp8(folder: Path, kind: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
             suffix: str, quantization: dict[str, Any], **extra: float) -> tuple[Path, Tensors]:  # fmt: skip
    """A Llama whose linears are quantized by `kind`, and what its weights are when multiplied out by torch.

    `kind`: weight -> (fp8 weight, scale as stored, scale for each element). `extra`: scalars beside each weight.
    """
    make_llama(folder, dtype="bfloat16", hidden_size=160, intermediate_size=290, num_attention_heads=10,
               num_key_value_heads=5)  # fmt: skip
    path = folder / "model.safetensors"
    tensors = load_file(path)
    plain = dict(tensors)
    for name in linears(tensors):
        weight, scale, full = kind(tensors[name].float())
        tensors[name], tensors[name + suffix] = weight, scale
        plain[name] = (weight.float() * full).to(torch.bfloat16)
        for other, value in extra.items():
            tensors[f"{name.removesuffix('weight')}{other}"] = torch.tensor([value])
    save_file(tensors, path)
    edit_config(folder, quantization_config=quantization)
    return folder, plain


def by_block(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, cols = weight.shape
    scale = torch.rand(-(-rows // 128), -(-cols // 128)) * 1e-3 + 1e-4
    full = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :cols]
    return (weight / full).clamp(-448, 448).to(torch.float8_e4m3fn), scale, full


def by_channel(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 448
    return (weight / scale).to(torch.float8_e4m3fn), scale, scale.expand_as(weight)


def by_channel_bf16(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scale = (weight.abs().amax(1, keepdim=True) / 440).to(torch.bfloat16)
    return (weight / scale.float()).to(torch.float8_e4m3fn), scale, scale.float().expand_as(weight)


def by_tensor(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scale = weight.abs().max().reshape(1) / 448
    return (weight / scale).to(torch.float8_e4m3fn), scale, scale.expand_as(weight)


def groups(strategy: str, **weights: Any) -> dict[str, Any]:
    entry = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, **weights}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": entry, "input_activations": {"num_bits": 8}}},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


DEEPSEEK = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
FP8: dict[str, tuple[Any, ...]] = {
    "fp8 blocks": (by_block, "_scale_inv", DEEPSEEK, {}),
    "fp8 tensor, static": (
        by_tensor,
        "_scale",
        {"quant_method": "fp8", "activation_scheme": "static"},
        {"input_scale": 0.5},
    ),
    "fbgemm": (by_channel, "_scale", {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, {}),
    "compressed-tensors channel": (by_channel_bf16, "_scale", groups("channel"), {}),
    "compressed-tensors tensor": (by_tensor, "_scale", groups("tensor"), {"input_scale": 0.5}),
    "compressed-tensors block": (by_block, "_scale", groups("block", block_structure=[128, 128]), {}),
}


@pytest.mark.parametrize("name", list(FP8))
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (5, 2)])
def test_fp8_is_multiplied_out(name: str, tp: int, pp: int, tmp_path: Path) -> None:
    kind, suffix, quantization, extra = FP8[name]
    model, plain = make_fp8(tmp_path / "fp8", kind, suffix, quantization, **extra)
    reference = Path(shutil.copytree(model, tmp_path / "plain"))
    edit_config(reference, quantization_config=None)
    save_file(plain, reference / "model.safetensors")
    made = [
        pipeline.make_checkpoint(str(m), tmp_path / f"{m.name}-out", ConvertOptions(tp, pp)) for m in (model, reference)
    ]
    for rank in range(tp * pp):
        ours, expected = (load_rank(folder / f"rank{rank}.safetensors") for folder in made)
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[key].view(torch.int16), expected[key].view(torch.int16)) for key in ours)


def test_scale_that_does_not_fit_is_named(tmp_path: Path) -> None:
    model, _ = make_fp8(tmp_path / "m", by_block, "_scale_inv", {**DEEPSEEK, "weight_block_size": [64, 128]})
    with pytest.raises(PlanError) as caught:
        pipeline.make_checkpoint(str(model), tmp_path / "out", ConvertOptions())
    text = caught.value.message
    assert "q_proj.weight has dtype F8_E4M3 and no scale that fits it" in text
    assert "unexpected tensors" in text
    assert "q_proj.weight_scale_inv" in text


@pytest.mark.parametrize(
    ("quantization", "reason"),
    [
        ({"quant_method": "bitsandbytes"}, "gptq, awq, compressed-tensors, modelopt, fp8 and fbgemm_fp8 can be read"),
        ({**groups("tensor"), "kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ({**DEEPSEEK, "weight_block_size": [128]}, "weight_block_size is [128]"),
    ],
)
def test_other_quantized_models_stay_refused(quantization: dict[str, Any], reason: str, tmp_path: Path) -> None:
    model = make_llama(tmp_path / "m")
    edit_config(model, quantization_config=quantization)
    with pytest.raises(UnsupportedModel) as caught:
        pipeline.make_checkpoint(str(model), tmp_path / "out", ConvertOptions())
    assert "quantization_config is set" in caught.value.message
    assert reason in caught.value.message


def as_pickles(model: Path, *, shards: int = 1) -> Tensors:
    """The model's weights as PyTorch saved them before safetensors; one tensor lies with strides of its own."""
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].T.contiguous().T
    names = sorted(tensors)
    files = {f"pytorch_model-{i + 1:05}-of-{shards:05}.bin": names[i::shards] for i in range(shards)}
    if shards == 1:
        torch.save(tensors, model / "pytorch_model.bin")
        return tensors
    for file, held in files.items():
        torch.save({name: tensors[name] for name in held}, model / file)
    weight_map = {name: file for file, held in files.items() for name in held}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


@pytest.mark.parametrize("shards", [1, 3])
def test_pickles_give_the_same_bytes_as_safetensors(shards: int, llama_copy: Path, tmp_path: Path) -> None:
    options = ConvertOptions(2, 2, "bfloat16")
    one = pipeline.make_checkpoint(str(llama_copy), tmp_path / "safe", options)
    as_pickles(llama_copy, shards=shards)
    with pytest.raises(CheckpointError) as caught:
        pipeline.make_checkpoint(str(llama_copy), tmp_path / "out", options)
    assert "--allow-pickle" in caught.value.hint
    two = pipeline.make_checkpoint(str(llama_copy), tmp_path / "out", options, allow_pickle=True)
    for rank in range(4):
        name = f"rank{rank}.safetensors"
        assert sha256_file(one / name) == sha256_file(two / name)


def test_a_pickle_that_runs_code_is_refused(llama_copy: Path, tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "owned",))

    (llama_copy / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Bad()}, llama_copy / "pytorch_model.bin")
    done = trtbuild("checkpoint", llama_copy, "-o", tmp_path / "out", "--allow-pickle")
    assert done.returncode == 3, done.stderr
    assert "pytorch_model.bin holds more than tensors" in done.stderr
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("target", ["float32", "float16", "bfloat16"])
def test_dtypes(dtype: str, target: str, tmp_path: Path) -> None:
    model = make_llama(tmp_path / "m", num_hidden_layers=1)
    path = model / "model.safetensors"
    source = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(path).items()}
    save_file(source, path)
    out = pipeline.make_checkpoint(str(model), tmp_path / "out", ConvertOptions(dtype=target))
    made = load_rank(out / "rank0.safetensors")
    pairs = {"transformer.vocab_embedding.weight": "model.embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
    pairs["transformer.layers.0.mlp.fc.weight"] = "model.layers.0.mlp.gate_proj.weight"
    for ours, theirs in pairs.items():
        assert torch.equal(made[ours], source[theirs].to(getattr(torch, target)))


def test_source_that_shrinks_while_it_is_read(llama_copy: Path, tmp_path: Path) -> None:
    code = f"""
import os, sys
from pathlib import Path
import trtbuild.checkpoint.reader as reader
from trtbuild.cli.app import main
original = reader.Reader._fetch
def cut(self, info, start, stop):
    os.truncate(info.file, 8192)
    original(self, info, start, stop)
reader.Reader._fetch = cut
sys.argv = ["trtbuild", "checkpoint", {str(llama_copy)!r}, "-o", {str(tmp_path / "out")!r}]
main()
"""
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, (done.returncode, done.stderr)
    assert "model.safetensors cannot be read" in done.stderr
    assert not (tmp_path / "out").exists()
