"""compressed-tensors (`quant_method: compressed-tensors`; llm-compressor) -> the method that holds the same numbers.

Tensors of a linear: weight (int8 or e4m3 [out, in]), or weight_packed int32 [out, in * bits / 32] with weight_shape;
weight_scale [1], [out, 1] or [out, in / g]; weight_zero_point, packed along the outputs beside a packed weight;
input_scale [1] for static activations; weight_g_idx [in] where groups do not lie in order. Packed integers hold
q + 2^(bits - 1). A weight is (q - zero point) * scale.
Sources: vllm-project/compressed-tensors src/compressed_tensors/compressors/{pack_quantized,naive_quantized}/base.py and
src/compressed_tensors/quantization/{quant_args,quant_config}.py.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from trtbuild.importers.form import FLOATS, Import, Part, Shape, per_output, same_shape, scalar
from trtbuild.importers.gptq import in_order
from trtbuild.importers.integers import centred, unpacked, with_zero
from trtbuild.quantize.method import Fields

if TYPE_CHECKING:
    import torch

_GROUPS = (64, 128)
_PACKED, _WHOLE = "pack-quantized", ("int-quantized", "float-quantized", "naive-quantized")


@dataclass(frozen=True)
class _Scheme:
    """What config_groups says of weights and activations."""

    bits: int
    kind: str
    symmetric: bool
    strategy: str
    group: int
    packed: bool
    act: str
    """ "" (none), "static" (one symmetric scale), "token" (symmetric, dynamic per token), or another in words."""


def declare(config: Dict[str, Any]) -> Import:
    """The import of a `quantization_config`."""
    found: list[str] = []
    scheme = _scheme(config, found)
    kv = _kv_cache(config.get("kv_cache_scheme"), found)
    if config.get("transform_config"):
        found.append("transform_config: its weights are rotated")
    sparsity = config.get("sparsity_config")
    if isinstance(sparsity, Dict) and sparsity and sparsity.get("format") not in (None, "dense"):
        found.append(f"sparsity_config has format {sparsity['format']!r}; only dense can be read")
    if scheme is None:
        return Import("compressed-tensors", problems=tuple(found), config=config)
    methods, why = _becomes(scheme)
    group = scheme.group if scheme.strategy == "group" else 128
    what = f"{scheme.kind}{scheme.bits} weights per {scheme.strategy}" + (
        f", {scheme.act} activations" * bool(scheme.act)
    )
    return Import(
        format=f"compressed-tensors, {what}" + (f", {kv} KV cache" if kv else ""),
        methods=methods,
        why=why,
        parts=_parts(scheme),
        size=(lambda shape: (shape[0], shape[1] * 32 // scheme.bits)) if scheme.packed else lambda s: (s[0], s[1]),
        read=partial(_read, scheme=scheme),
        group_size=group,
        kv_cache=kv,
        plain=scheme.kind == "float",
        problems=tuple(found),
        config=config,
    )


def _scheme(config: Dict[str, Any], found: list[str]) -> _Scheme | None:
    """The one scheme of all config_groups; None, with a problem, where there are several or it cannot be read."""
    groups = config.get("config_groups")
    if not isinstance(groups, Dict) or not groups or not all(isinstance(group, Dict) for group in groups.values()):
        found.append("it has no config_groups")
        return None
    schemes = {_of_group(group, config, found) for group in groups.values()}
    if len(schemes) > 1:
        found.append(f"its {len(schemes)} config_groups differ; all layers must be quantized alike")
    return None if found else schemes.pop()


def _of_group(group: Dict[str, Any], config: Dict[str, Any], found: list[str]) -> _Scheme | None:
    weights, act = group.get("weights"), group.get("input_activations")
    if not isinstance(weights, Dict):
        found.append("a config_group has no weights")
        return None
    bits, kind, strategy = weights.get("num_bits"), weights.get("type", "int"), weights.get("strategy")
    symmetric, size = weights.get("symmetric", True) is not False, weights.get("group_size")
    if strategy is None:
        strategy = "tensor" if not size or size < 0 else "group"
    if (bits, kind) not in ((4, "int"), (8, "int"), (8, "float")):
        found.append(f"weights of {bits} bits, type {kind!r}; int of 4 or 8 bits and float of 8 can be read")
    if strategy not in ("tensor", "channel", "group", "block"):
        found.append(f"strategy {strategy!r}; tensor, channel, group and block can be read")
    if strategy == "group" and (type(size) is not int or size < 1):
        found.append(f"group_size is {size!r}; it must be a positive integer")
    if group.get("output_activations"):
        found.append("its output_activations are quantized")
    storage = group.get("format") or config.get("format")
    if storage not in (_PACKED, *_WHOLE):
        found.append(f"format is {storage!r}; {', '.join((_PACKED, *_WHOLE))} can be read")
    if found:
        return None
    packed = storage == _PACKED
    return _Scheme(int(bits or 0), kind, symmetric, strategy, size or 0, packed, _activations(act, kind))


def _activations(act: Any, kind: str) -> str:
    if not act:
        return ""
    if act.get("num_bits") != 8 or act.get("type", "int") != kind:
        return f"{act.get('type', 'int')}{act.get('num_bits')}"
    if act.get("symmetric", True) is False:
        return "asymmetric"
    strategy = act.get("strategy") or ("token" if act.get("dynamic") else "tensor")
    if act.get("dynamic"):
        return "token" if strategy == "token" else f"dynamic per {strategy}"
    return "static" if strategy == "tensor" else f"static per {strategy}"


def _kv_cache(scheme: Any, found: list[str]) -> str | None:
    if not scheme:
        return None
    kind = {"float": "FP8", "int": "INT8"}.get(str(scheme.get("type"))) if isinstance(scheme, Dict) else None
    usable = kind and scheme.get("num_bits") == 8 and not scheme.get("dynamic") and scheme.get("symmetric", True)
    if not usable or scheme.get("strategy", "tensor") != "tensor":
        found.append("kv_cache_scheme: only static symmetric scales of 8 bits for a whole tensor can be read")
        return None
    return kind


def _becomes(scheme: _Scheme) -> tuple[tuple[str, ...], str]:
    """(methods that hold the same numbers, why there is none)."""
    weights, act = (scheme.kind, scheme.bits, scheme.strategy), scheme.act
    if scheme.strategy == "group" and not act:
        if scheme.group not in _GROUPS:
            return (), f"TensorRT-LLM has kernels for groups of {' and '.join(map(str, _GROUPS))} only"
        own = f"int{scheme.bits}_gptq"
        # Without zero points int4 is the AWQ form, whose layout no GPU is bound to.
        return (("int4_awq", own) if scheme.bits == 4 and scheme.symmetric else (own,)), ""
    if not act and scheme.kind == "int":
        return (), f"TensorRT-LLM's build quantizes int{scheme.bits} weights per channel itself, with scales of its own"
    if weights[:2] == ("int", 8) and scheme.strategy in ("channel", "tensor") and scheme.symmetric:
        if act == "static":
            return ("int8_sq",), ""
        if act == "token":
            return ("int8_sq_token",), ""
        return (), f"TensorRT-LLM has int8 activations with one static scale or scaled per token, not {act}"
    if weights == ("float", 8, "tensor") and act == "static":
        return ("fp8",), ""
    if scheme.kind == "float" and scheme.strategy in ("channel", "tensor") and act == "token":
        return ("fp8_rowwise",), ""
    what = f"{scheme.kind}{scheme.bits} weights per {scheme.strategy} with {act or 'plain'} activations"
    return (), f"TensorRT-LLM has no form of {what}"


def _parts(scheme: _Scheme) -> tuple[Part, ...]:
    def groups(out: int, inputs: int) -> tuple[Shape, ...]:
        return ((out, -(-inputs // scheme.group)),)

    scale = {"tensor": scalar, "group": groups}.get(scheme.strategy, per_output)
    if scheme.packed:
        found = [
            Part("weight_packed", ("I32",), lambda out, inputs: ((out, inputs * scheme.bits // 32),)),
            Part("weight_shape", ("I64", "I32"), lambda out, inputs: ((2,),)),
        ]
    else:
        found = [Part("weight", ("F8_E4M3",) if scheme.kind == "float" else ("I8",), same_shape)]
    found.append(Part("weight_scale", FLOATS, scale))
    if not scheme.symmetric:
        packed = scheme.packed
        found.append(
            Part("weight_zero_point", ("I32",) if packed else ("I8",), partial(_zero_shapes, scheme, scale)),
        )
    elif not scheme.packed:
        found.append(Part("weight_zero_point", ("I8", "F8_E4M3", *FLOATS), scale, optional=True))  # zeros
    if scheme.act == "static":
        found.append(Part("input_scale", FLOATS, scalar))
        found.append(Part("input_zero_point", ("I8", "F8_E4M3", *FLOATS), scalar, optional=True))  # zeros
    if scheme.strategy == "group":
        found.append(Part("weight_g_idx", ("I32", "I64"), lambda out, inputs: ((inputs,),), optional=True))
    return tuple(found)


def _zero_shapes(scheme: _Scheme, scale: Any, out: int, inputs: int) -> tuple[Shape, ...]:
    if not scheme.packed:
        return tuple(scale(out, inputs))
    return tuple((-(-shape[0] * scheme.bits // 32), *shape[1:]) for shape in scale(out, inputs))


def _read(tensors: Dict[str, torch.Tensor], *, scheme: _Scheme) -> Fields:
    """Fields of a linear; where the inputs of a group lie apart (act-order), scale and zero are [out, in]."""
    import torch

    scale = tensors["weight_scale"].to(torch.float32)
    if scheme.packed:
        weight = centred(unpacked(tensors["weight_packed"], scheme.bits, 1), scheme.bits)
    else:
        weight = tensors["weight"]
    out, inputs = weight.shape
    if scheme.kind == "float":
        return _of_floats(weight, scale, tensors, scheme)
    if scheme.strategy in ("channel", "tensor"):
        scale = scale.reshape(-1, 1).expand(out, 1).contiguous()
    zero = _zero(tensors, scheme, scale.shape)
    if scheme.act == "static":
        ones = torch.ones(inputs, dtype=torch.float32)
        act = tensors["input_scale"].float()
        return {"weight": weight, "weights_scaling_factor": scale.reshape(-1), "activation_scaling_factor": act,
                "prequant_scaling_factor": ones}  # fmt: skip
    if scheme.act == "token":
        return {"weight": weight, "per_channel_scale": scale.reshape(-1), "smoother": torch.ones(inputs)}
    order = tensors.get("weight_g_idx")
    if order is not None and int(order.min()) >= 0 and not in_order(order, scale.shape[1]):
        scale, zero = scale[:, order.long()], zero[:, order.long()]
    return with_zero(weight, scale, zero)


def _of_floats(weight: torch.Tensor, scale: torch.Tensor, tensors: Dict[str, torch.Tensor], scheme: _Scheme) -> Fields:
    if scheme.act == "static":
        act = tensors["input_scale"].float()
        return {"weight": weight, "weights_scaling_factor": scale, "activation_scaling_factor": act}
    return {"weight": weight, "per_channel_scale": scale.reshape(-1).expand(weight.shape[0]).contiguous()}


def _zero(tensors: Dict[str, torch.Tensor], scheme: _Scheme, shape: torch.Size) -> torch.Tensor:
    """The zero points q of the scales' shape."""
    import torch

    found = tensors.get("weight_zero_point")
    if found is None or scheme.symmetric:
        return torch.zeros(shape, dtype=torch.int8)
    if scheme.packed:
        return centred(unpacked(found, scheme.bits, 0)[: shape[0]], scheme.bits)
    return found.reshape(-1, found.shape[-1] if found.dim() > 1 else 1).expand(shape)
