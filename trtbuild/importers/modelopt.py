"""NVIDIA ModelOpt's Hugging Face export (hf_quant_config.json, or `quant_method: modelopt`) -> the method of its name.

Tensors of a linear (the scales are float32 or the model's dtype):
- FP8: weight e4m3 [out, in], weight_scale and input_scale scalars. q, k and v have scales of their own.
- FP8_PER_CHANNEL_PER_TOKEN: weight e4m3, weight_scale [out].
- W4A16_AWQ, W4A8_AWQ: weight uint8 [out / 2, in] (two outputs a byte, the even one in the low nibble, two's
  complement), weight_scale [out, in / g], pre_quant_scale [in] unless it went into the norm before; W4A8_AWQ:
  weight_scale_2 and input_scale too.
- W8A8_SQ_PER_CHANNEL: weight int8, weight_scale [out], input_scale, pre_quant_scale as above. W8A16: no input_scale.
MIXED_PRECISION: `quantized_layers` has one of these, and its group_size, for each linear that is quantized.
KV cache: self_attn.k_proj.k_scale and v_proj.v_scale.
Sources: NVIDIA/TensorRT-Model-Optimizer modelopt/torch/export/{unified_export_hf,quant_utils,convert_hf_config}.py.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from trtbuild.importers.form import FLOATS, Import, Part, Shape, per_input, per_output, same_shape, scalar
from trtbuild.quantization import LAYERS, MIXED
from trtbuild.quantize.method import Fields

if TYPE_CHECKING:
    import torch

_METHODS = {
    "FP8": "fp8",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8_rowwise",
    "W4A16_AWQ": "int4_awq",
    "W4A8_AWQ": "w4a8_awq",
    "W8A8_SQ_PER_CHANNEL": "int8_sq",
    "W8A16": "",
}
_NAMES = {
    "weight_scale": "weights_scaling_factor",
    "weight_scale_2": "weights_scaling_factor_2",
    "input_scale": "activation_scaling_factor",
    "pre_quant_scale": "prequant_scaling_factor",
}
_SHOWN = 6
_KV = {"FP8": "FP8", "INT8": "INT8"}


def declare(config: Dict[str, Any]) -> Import:
    """The import of a `quantization_config`, which may hold hf_quant_config.json's `quantization` as it is."""
    if config.get("quant_algo") == MIXED:
        return _mixture(config)
    algo, group = config.get("quant_algo"), config.get("group_size") or 128
    kv = config.get("kv_cache_quant_algo", config.get("kv_cache_scheme"))
    if isinstance(kv, Dict):
        kv = {"float": "FP8", "int": "INT8"}.get(str(kv.get("type"))) if kv.get("num_bits") == 8 else repr(kv)
    found = []
    if algo not in _METHODS:
        found.append(f"quant_algo is {algo!r}; supported: {', '.join((*_METHODS, MIXED))}")
        algo = "FP8"
    if type(group) is not int or group < 1:
        found.append(f"group_size is {group!r}; it must be a positive integer")
        group = 128
    if kv and kv not in _KV:
        found.append(f"the KV cache is {kv}; supported: {', '.join(_KV)}")
    method = _METHODS[algo]
    what = f"ModelOpt's {algo}" + (f" with {kv} KV cache" if kv else "")
    return Import(
        format=what,
        methods=(method,) if method else (),
        why="" if method else "TensorRT-LLM's build quantizes int8 weights itself, with scales of its own",
        parts=_parts(algo, group),
        size=(lambda shape: (2 * shape[0], shape[1])) if "AWQ" in algo else (lambda shape: (shape[0], shape[1])),
        read=partial(_read, algo=algo),
        group_size=group,
        kv_cache=_KV.get(str(kv)),
        problems=tuple(found),
        config=config,
    )


def _mixture(config: Dict[str, Any]) -> Import:
    """The import of MIXED_PRECISION: `quantized_layers` has an entry for each linear that is quantized."""
    table = config.get(LAYERS)
    if not isinstance(table, Dict) or not table or not all(isinstance(entry, Dict) for entry in table.values()):
        said = f"quant_algo is {MIXED}, and {LAYERS} has no entry for each quantized layer"
        return Import(f"ModelOpt's {MIXED}", problems=(said,), config=config)
    cache = {key: config.get(key) for key in ("kv_cache_quant_algo", "kv_cache_scheme") if key in config}
    layers = {str(name): declare({**entry, **cache}) for name, entry in table.items() if entry.get("quant_algo")}
    kinds = {imported.format: imported for imported in layers.values()}
    problems = [f"{name}: {said}" for name, own in layers.items() for said in own.problems]
    lacking = [own for own in kinds.values() if not own.methods]
    first = next(iter(layers.values()), Import(""))
    return replace(
        first,
        format=f"ModelOpt's {MIXED} of {', '.join(kinds)}",
        methods=() if lacking else first.methods[:1],
        warnings=tuple(dict.fromkeys(text for own in kinds.values() for text in own.warnings)),
        why=lacking[0].why if lacking else "",
        problems=tuple(problems[:_SHOWN]),
        config=config,
        layers=layers,
    )


def _parts(algo: str, group: int) -> tuple[Part, ...]:
    def groups(out: int, inputs: int) -> tuple[Shape, ...]:
        return ((out, inputs // group),)

    scale = {"FP8": scalar, "W4A16_AWQ": groups, "W4A8_AWQ": groups}.get(algo, per_output)
    if "AWQ" in algo:
        weight = Part("weight", ("U8", "I8"), lambda out, inputs: ((out // 2, inputs),))
    else:
        weight = Part("weight", ("F8_E4M3",) if "FP8" in algo else ("I8",), same_shape)
    found = [weight, Part("weight_scale", FLOATS, scale)]
    if algo in ("FP8", "W8A8_SQ_PER_CHANNEL", "W4A8_AWQ"):
        found.append(Part("input_scale", FLOATS, scalar))
    if algo == "W4A8_AWQ":
        found.append(Part("weight_scale_2", FLOATS, scalar))
    if algo in ("W4A16_AWQ", "W4A8_AWQ", "W8A8_SQ_PER_CHANNEL"):
        found.append(Part("pre_quant_scale", FLOATS, per_input, optional=True))
    return tuple(found)


def _read(tensors: Dict[str, torch.Tensor], *, algo: str) -> Fields:
    """Fields of a linear; without a pre_quant_scale the inputs are multiplied by ones."""
    import torch

    from trtbuild.quantize.packing import two_rows

    weight = tensors["weight"]
    if "AWQ" in algo:
        weight = two_rows(weight)
    fields: Fields = {"weight": weight}
    for suffix, name in _NAMES.items():
        if suffix in tensors:
            fields[name] = tensors[suffix].to(torch.float32)
    if algo == "FP8_PER_CHANNEL_PER_TOKEN":
        fields["per_channel_scale"] = fields.pop("weights_scaling_factor").reshape(-1)
    elif algo in ("W8A8_SQ_PER_CHANNEL", "W8A16"):
        fields["weights_scaling_factor"] = fields["weights_scaling_factor"].reshape(-1)
    if algo in ("W4A16_AWQ", "W4A8_AWQ", "W8A8_SQ_PER_CHANNEL"):
        p = fields.get("prequant_scaling_factor")
        ones = torch.ones(weight.shape[1], dtype=torch.float32)
        fields["prequant_scaling_factor"] = ones if p is None else p.reshape(-1)
    return fields
