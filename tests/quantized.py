"""Logical checkpoints of tiny models, made from a conversion to one rank and statistics of made-up inputs."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.tiny import load_rank
from trtbuild import pipeline
from trtbuild.checkpoint.config import load_config, read_specs
from trtbuild.checkpoint.logical import LogicalWriter
from trtbuild.families.rules import Family
from trtbuild.fields import LINEAR
from trtbuild.layout import KV_SCALES
from trtbuild.quantize.method import InputStats, LinearGroup, QuantOptions
from trtbuild.quantize.methods import METHODS, QUANTIZE
from trtbuild.quantize.values import kv_cache_scale
from trtbuild.spec import ConvertOptions, ModelSpec

Tensors = dict[str, torch.Tensor]


def quantized_tensors(plain: Tensors, name: str, group_size: int, kv: bool) -> Tensors:
    """The fields of every linear of a one-rank checkpoint; statistics are made up."""
    made: Tensors = {}
    for key, tensor in plain.items():
        if kv and key.endswith("attention.qkv.weight"):
            k, v = 1.0 + len(made), 2.0
            scales = [kv_cache_scale("INT8", *amax) for amax in ((k, v), (k, k), (v, v))]
            made |= {key.replace("qkv.weight", name): scale for name, scale in zip(KV_SCALES, scales, strict=True)}
        if not LINEAR.search(key):
            made[key] = tensor
            if METHODS[name].norm_scales and key.endswith("layernorm.weight"):
                made[key.replace(".weight", ".scale_to_int")] = torch.ones(1)
            continue
        module = key.removesuffix(".weight")
        x = torch.randn(96, tensor.shape[-1], generator=torch.Generator().manual_seed(tensor.shape[-1]))
        stats = InputStats(96, x.abs().amax(dim=0), x.abs().mean(dim=0), x.T @ x / 96)
        # fc and gate read the same input, and fp8 gives them one scale.
        others = [module.replace(*pair) for pair in (("mlp.fc", "mlp.gate"), ("mlp.gate", "mlp.fc"))]
        group = {one: (plain[f"{one}.weight"].float(),) for one in (module, *others) if f"{one}.weight" in plain}
        for suffix, field in QUANTIZE[name](LinearGroup(group), stats, QuantOptions(group_size))[module].items():
            declared = next(field for field in METHODS[name].fields if field.suffix == suffix)
            if not declared.only or module.endswith(declared.only):
                made[f"{module}.{suffix}"] = field if declared.dtype else field.to(tensor.dtype)
    return made


def make_logical(source: Path, out: Path, name: str, group_size: int, *, kv: bool = False) -> tuple[Tensors, Path]:
    """(logical tensors, folder of them) of a Hugging Face folder, in parts by layer."""
    plain = load_rank(
        pipeline.make_checkpoint(str(source), out / "plain", ConvertOptions(dtype="float16")) / "rank0.safetensors"
    )
    tensors = quantized_tensors(plain, name, group_size, kv)
    writer = LogicalWriter(out / "logical", name)
    parts: dict[str, Tensors] = {}
    for key, tensor in tensors.items():
        part = f"layer{key.split('.')[2]}" if ".layers." in key else "rest"
        parts.setdefault(part, {})[key] = tensor
    for part, held in parts.items():
        writer.write(part, held)
    writer.close()
    return tensors, out / "logical"


def spec_of(source: Path) -> tuple[Family, ModelSpec]:
    ((family, spec),) = read_specs(load_config(source))
    return family, spec
