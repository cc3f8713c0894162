"""GPTQ (`quant_method: gptq`, AutoGPTQ and GPTQModel), 4 and 8 bits -> int4_gptq, int8_gptq; symmetric int4_awq too.

Tensors of a linear, n = 32 / bits: qweight int32 [in / n, out], packed along the inputs; qzeros int32 [in / g,
out / n], packed along the outputs; scales [in / g, out]; g_idx int32 [in], the group of each input. A weight is
(u - z) * scale.
Format v1 holds z - 1: 1 is added to every field of a word at once, so that what a field's borrow took from its
neighbour when it was subtracted comes back. `checkpoint_format: gptq_v2` holds z.
Sources: ModelCloud/GPTQModel gptqmodel/utils/model.py (convert_gptq_v1_to_v2_format_module) and
gptqmodel/nn_modules/qlinear/__init__.py (pack, dequantize_weight).
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from functools import partial
from typing import TYPE_CHECKING, Any

from trtbuild.importers.form import FLOATS, Import, Part
from trtbuild.importers.integers import centred, unpacked, with_zero
from trtbuild.quantize.method import Fields

if TYPE_CHECKING:
    import torch

_GROUPS = (64, 128)
_ONES = {4: 0x11111111, 8: 0x01010101}


def declare(config: Dict[str, Any]) -> Import:
    """The import of a `quantization_config`."""
    bits, group = config.get("bits"), config.get("group_size", 128)
    found = [f"bits is {bits!r}; 4 and 8 can be read"] if bits not in _ONES else []
    if type(group) is not int or (group < 1 and group != -1):
        found.append(f"group_size is {group!r}; it must be a positive integer, or -1")
        group = -1
    kind = config.get("checkpoint_format") or config.get("format") or "gptq"
    if kind not in ("gptq", "gptq_v2"):
        found.append(f"checkpoint_format is {kind!r}; gptq and gptq_v2 can be read")
    # GPTQModel's exceptions by pattern: "-:" leaves a module as it was, anything else quantizes it differently.
    dynamic = config.get("dynamic")
    if isinstance(dynamic, Dict) and any(not str(pattern).startswith("-:") for pattern in dynamic):
        found.append("dynamic gives some modules other bits or groups; they must all have the same")
    if str(config.get("pack_dtype", "int32")) not in ("int32", "torch.int32"):
        found.append(f"pack_dtype is {config['pack_dtype']!r}; int32 can be read")
    if config.get("meta") and isinstance(config["meta"], Dict) and config["meta"].get("rotation"):
        found.append("its weights are rotated")
    bits = bits if bits in _ONES else 4
    method, name = f"int{bits}_gptq", f"GPTQ, {bits} bits, groups of {group if group > 0 else 'all inputs'}"
    fits = group in _GROUPS
    return Import(
        format=name,
        methods=((method, "int4_awq") if bits == 4 and config.get("sym", True) else (method,)) if fits else (),
        why="" if fits else f"TensorRT-LLM has {bits}-bit kernels for groups of {' and '.join(map(str, _GROUPS))} only",
        parts=_parts(bits, group),
        size=lambda shape: (shape[1], shape[0] * 32 // bits),
        read=partial(_read, bits=bits, first=kind == "gptq"),
        group_size=group if fits else 128,
        problems=tuple(found),
        config=config,
    )


def _parts(bits: int, group: int) -> tuple[Part, ...]:
    each = 32 // bits

    def groups(inputs: int) -> int:
        return -(-inputs // group) if group > 0 else 1

    return (
        Part("qweight", ("I32",), lambda out, inputs: ((inputs // each, out),)),
        Part("qzeros", ("I32",), lambda out, inputs: ((groups(inputs), out // each),)),
        Part("scales", FLOATS, lambda out, inputs: ((groups(inputs), out),)),
        Part("g_idx", ("I32",), lambda out, inputs: ((inputs,),), optional=True),
    )


def _read(tensors: Dict[str, torch.Tensor], *, bits: int, first: bool) -> Fields:
    """Fields of a linear; where the inputs of a group lie apart (act-order), scale and zero are [out, in]."""
    import torch

    words = tensors["qzeros"]
    if first:
        words = (words.to(torch.int64) + _ONES[bits]).to(torch.int32)  # modulo 2^32
    q = centred(unpacked(tensors["qweight"], bits, 0), bits).T
    zero, scale = centred(unpacked(words, bits, 1), bits).T, tensors["scales"].T
    order = tensors.get("g_idx")
    if order is not None and not in_order(order, scale.shape[1]):
        scale, zero = scale[:, order.long()], zero[:, order.long()]
    return with_zero(q.contiguous(), scale, zero)


def in_order(g_idx: torch.Tensor, groups: int) -> bool:
    """Whether the inputs of each group lie together, group after group."""
    import torch

    inputs = len(g_idx)
    return bool(torch.equal(g_idx.long(), torch.arange(inputs) // -(-inputs // groups)))
