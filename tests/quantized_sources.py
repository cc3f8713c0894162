"""Ready-made quantized Hugging Face folders, packed by hand as each format's own definition says, with what they mean.

Every maker turns random integers (or fp8 bytes) and scales into the tensors of one linear, and gives the weight that
the format's own reader would make of them. Checked once against the libraries: see `test_import.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.tiny import edit_config, make_llama

Tensors = dict[str, torch.Tensor]
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2,
         "num_hidden_layers": 2, "vocab_size": 131}  # fmt: skip


def words(values: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Unsigned values -> int32 words of 32 / bits of them along `dim`, one after the other from the lowest bits on."""
    each = 32 // bits
    lanes = values.to(torch.int64).movedim(dim, 0)
    total = sum(lanes[lane::each] << (bits * lane) for lane in range(each))
    assert isinstance(total, torch.Tensor)
    return ((total + 2**31) % 2**32 - 2**31).to(torch.int32).movedim(0, dim).contiguous()


def spread(scale: torch.Tensor, group: int) -> torch.Tensor:
    return scale.float().repeat_interleave(group, 1)


def integers(seed: torch.Generator, out: int, width: int, bits: int, group: int) -> tuple[torch.Tensor, ...]:
    """(u [out, in], scale float16 [out, in / g], z [out, in / g])."""
    u = torch.randint(0, 2**bits, (out, width), generator=seed)
    scale = (torch.rand(out, width // group, generator=seed) * 0.3 + 0.02).div(2**bits).to(torch.float16)
    return u, scale, torch.randint(0, 2**bits, (out, width // group), generator=seed)


def gptq(bits: int, group: int, *, v2: bool = False, sym: bool = False) -> Maker:
    def make(weight: torch.Tensor, seed: torch.Generator) -> tuple[Tensors, torch.Tensor]:
        u, scale, z = integers(seed, *weight.shape, bits, group)
        z = torch.full_like(z, 2 ** (bits - 1)) if sym else z
        zeros = words(z.T, bits, 1).to(torch.int64) - (0 if v2 else sum(1 << at for at in range(0, 32, bits)))
        tensors = {
            "qweight": words(u.T, bits, 0),
            "qzeros": zeros.to(torch.int32),  # modulo 2^32: v1 subtracts 1 from every field of a word at once
            "scales": scale.T.contiguous(),
            "g_idx": (torch.arange(weight.shape[1]) // group).to(torch.int32),
        }
        return tensors, (u - spread(z, group)) * spread(scale, group)

    return make


def awq(group: int) -> Maker:
    def make(weight: torch.Tensor, seed: torch.Generator) -> tuple[Tensors, torch.Tensor]:
        u, scale, z = integers(seed, *weight.shape, 4, group)
        order = [0, 2, 4, 6, 1, 3, 5, 7]

        def lay(values: torch.Tensor) -> torch.Tensor:
            return words(values.T.reshape(values.shape[1], -1, 8)[:, :, order].flatten(1), 4, 1)

        tensors = {"qweight": lay(u), "qzeros": lay(z), "scales": scale.T.contiguous()}
        return tensors, (u - spread(z, group)) * spread(scale, group)

    return make


def packed(bits: int, group: int, *, asymmetric: bool = False) -> Maker:
    """compressed-tensors, pack-quantized."""

    def make(weight: torch.Tensor, seed: torch.Generator) -> tuple[Tensors, torch.Tensor]:
        u, scale, z = integers(seed, *weight.shape, bits, group)
        z = z if asymmetric else torch.full_like(z, 2 ** (bits - 1))
        tensors = {
            "weight_packed": words(u, bits, 1),
            "weight_scale": scale,
            "weight_shape": torch.tensor(weight.shape),
        }
        if asymmetric:
            tensors["weight_zero_point"] = words(z, bits, 0)
        return tensors, (u - spread(z, group)) * spread(scale, group)

    return make


def per_channel(kind: torch.dtype, *, static: bool, scale_dtype: torch.dtype = torch.bfloat16) -> Maker:
    """int8 or fp8 weights with a scale an output."""

    def make(weight: torch.Tensor, seed: torch.Generator) -> tuple[Tensors, torch.Tensor]:
        most = 127 if kind is torch.int8 else 448
        scale = (weight.abs().amax(1, keepdim=True) / most * 1.01).to(scale_dtype)
        q = weight / scale.float()
        held = q.round().to(kind) if kind is torch.int8 else q.to(kind)
        tensors = {"weight": held, "weight_scale": scale}
        if static:
            tensors["input_scale"] = torch.rand(1, generator=seed) + 0.01
        return tensors, held.float() * scale.float()

    return make


def per_tensor(weight: torch.Tensor, seed: torch.Generator) -> tuple[Tensors, torch.Tensor]:
    """fp8 with one scale a tensor, as AutoFP8, llm-compressor and ModelOpt write it."""
    scale = weight.abs().max().reshape(1) / 448 * (1 + torch.rand(1, generator=seed))
    held = (weight / scale).to(torch.float8_e4m3fn)
    act = torch.rand(1, generator=seed) + 0.01
    return {"weight": held, "weight_scale": scale, "input_scale": act}, held.float() * scale


def modelopt_awq(group: int, *, second: bool = False) -> Maker:
    """W4A16_AWQ, W4A8_AWQ (`second`): linears after a norm have no pre_quant_scale."""

    def make(weight: torch.Tensor, seed: torch.Generator) -> tuple[Tensors, torch.Tensor]:
        out, width = weight.shape
        p = torch.rand(width, generator=seed) + 0.5
        blocks = (weight / p).reshape(out, -1, group)
        scale = blocks.abs().amax(-1) / 7
        q = (blocks / scale.unsqueeze(-1)).round().clamp(-8, 7).to(torch.int8).reshape(out, width)
        rows = q.view(torch.uint8) & 15
        tensors = {"weight": rows[0::2] | rows[1::2] << 4, "weight_scale": scale, "pre_quant_scale": p.half()}
        if second:
            tensors |= {"input_scale": torch.tensor(0.3), "weight_scale_2": torch.rand((), generator=seed) + 0.01}
        return tensors, q * spread(scale, group) * p.half().float()

    return make


def modelopt_sq(weight: torch.Tensor, seed: torch.Generator) -> tuple[Tensors, torch.Tensor]:
    p = (torch.rand(weight.shape[1], generator=seed) + 0.5).half().float()
    scale = (weight / p).abs().amax(1) / 127
    q = (weight / p / scale.unsqueeze(1)).round().to(torch.int8)
    tensors = {"weight": q, "weight_scale": scale, "input_scale": torch.tensor(0.02), "pre_quant_scale": p.half()}
    return tensors, q * scale.unsqueeze(1) * p


Maker = Callable[[torch.Tensor, torch.Generator], tuple[Tensors, torch.Tensor]]
"""(weight [out, in], generator) -> (tensors by suffix, the weight that they stand for, float32)."""


@dataclass(frozen=True)
class Format:
    """`quantization` goes into config.json; or, with `file`, into hf_quant_config.json."""

    make: Maker
    quantization: dict[str, Any]
    method: str
    file: bool = False
    fused_p: bool = False
    """Whether q, k, v (and gate, up) have no pre_quant_scale, since it went into the norm."""


def groups(weights: dict[str, Any], act: dict[str, Any] | None, format: str, **more: Any) -> dict[str, Any]:
    """A quantization_config of compressed-tensors."""
    entry = {"targets": ["Linear"], "weights": weights, "input_activations": act, "output_activations": None}
    return {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": entry},
            "ignore": ["lm_head"], "kv_cache_scheme": None, "quantization_status": "compressed", **more}  # fmt: skip


def _int(bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy, "dynamic": False, **more}


FLOAT = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
TOKEN = {"dynamic": True, "strategy": "token"}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": False}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
_OPT = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
_OPT_AWQ = {**_OPT, "group_size": 64, "has_zero_point": False, "pre_quant_scale": True}
FORMATS: dict[str, Format] = {
    "gptq": Format(gptq(4, 64), _GPTQ, "int4_gptq"),
    "gptq v2": Format(gptq(4, 64, v2=True), {**_GPTQ, "checkpoint_format": "gptq_v2"}, "int4_gptq"),
    "gptq 8": Format(gptq(8, 64), {**_GPTQ, "bits": 8}, "int8_gptq"),
    "gptq sym": Format(gptq(4, 64, sym=True), {**_GPTQ, "sym": True}, "int4_gptq"),
    "gptq sym awq": Format(gptq(4, 64, sym=True), {**_GPTQ, "sym": True}, "int4_awq"),
    "awq": Format(awq(64), _AWQ, "int4_gptq"),
    "ct int4": Format(packed(4, 64), groups(_int(4, "group", group_size=64), None, "pack-quantized"), "int4_awq"),
    "ct int4 asym": Format(
        packed(4, 64, asymmetric=True),
        groups(_int(4, "group", group_size=64, symmetric=False), None, "pack-quantized"),
        "int4_gptq",
    ),
    "ct int8 groups": Format(
        packed(8, 64), groups(_int(8, "group", group_size=64), None, "pack-quantized"), "int8_gptq"
    ),
    "ct w8a8": Format(
        per_channel(torch.int8, static=True),
        groups(_int(8, "channel"), _int(8, "tensor"), "int-quantized"),
        "int8_sq",
    ),
    "ct w8a8 token": Format(
        per_channel(torch.int8, static=False),
        groups(_int(8, "channel"), {**_int(8, "token"), "dynamic": True}, "int-quantized"),
        "int8_sq_token",
    ),
    "ct fp8": Format(
        per_tensor,
        groups({**FLOAT, "strategy": "tensor"}, {**FLOAT, "strategy": "tensor"}, "float-quantized"),
        "fp8",
    ),
    "ct fp8 channel": Format(
        per_channel(torch.float8_e4m3fn, static=False),
        groups({**FLOAT, "strategy": "channel"}, {**FLOAT, **TOKEN}, "float-quantized"),
        "fp8_rowwise",
    ),
    "autofp8": Format(per_tensor, {"quant_method": "fp8", "activation_scheme": "static"}, "fp8"),
    "modelopt fp8": Format(per_tensor, _OPT, "fp8", file=True),
    "modelopt fp8 channel": Format(
        per_channel(torch.float8_e4m3fn, static=False, scale_dtype=torch.float32),
        {**_OPT, "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"},
        "fp8_rowwise",
        file=True,
    ),
    "modelopt awq": Format(
        modelopt_awq(64), {**_OPT_AWQ, "quant_algo": "W4A16_AWQ"}, "int4_awq", file=True, fused_p=True
    ),
    "modelopt sq": Format(modelopt_sq, {**_OPT, "quant_algo": "W8A8_SQ_PER_CHANNEL"}, "int8_sq", True, True),
}


def make_source(
    folder: Path, form: Format, *, head: bool = False, model: Callable[..., Path] = make_llama, **changes: Any
) -> tuple[Path, Path]:
    """(a model in the format, the plain one that it stands for, in float32); `head`: lm_head is quantized too."""
    source = model(folder / "source", **{**SIZES, **changes})
    plain = model(folder / "plain", **{**SIZES, **changes})
    tensors = load_file(source / "model.safetensors")
    meant, made = dict(tensors), dict(tensors)
    seed = torch.Generator().manual_seed(1)
    for name in [
        n
        for n in tensors
        if n.endswith(("_proj.weight", "w1.weight", "w2.weight", "w3.weight")) or (head and n == "lm_head.weight")
    ]:
        stem = name.removesuffix(".weight")
        parts, weight = form.make(made.pop(name), seed)
        if form.fused_p and not stem.endswith(("o_proj", "down_proj")):
            p = parts.pop("pre_quant_scale").float()
            weight = weight / p
        made |= {f"{stem}.{suffix}": tensor for suffix, tensor in parts.items()}
        meant[name] = weight
    save_file({name: tensor.contiguous() for name, tensor in made.items()}, source / "model.safetensors")
    save_file(meant, plain / "model.safetensors")
    if form.file:
        document = {"producer": {"name": "modelopt", "version": "0.33.1"}, "quantization": form.quantization}
        (source / "hf_quant_config.json").write_text(json.dumps(document))
    else:
        edit_config(source, quantization_config=form.quantization)
    return source, plain
