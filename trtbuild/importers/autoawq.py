"""AutoAWQ (`quant_method: awq`, version gemm) -> int4_gptq: the input scales are in the norms before already.

Tensors of a linear: qweight int32 [in, out / 8] and qzeros int32 [in / g, out / 8], both packed along the outputs;
scales [in / g, out]. A word's nibbles, the lowest first, are the outputs 0 2 4 6 1 3 5 7 of its eight. A weight is
(u - z) * scale, with z as stored.
Sources: casper-hansen/AutoAWQ awq/modules/linear/gemm.py (WQLinear_GEMM.from_linear) and awq/utils/packing_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from typing import TYPE_CHECKING, Any

from trtbuild.importers.form import FLOATS, Import, Part
from trtbuild.importers.integers import centred, unpacked, with_zero
from trtbuild.quantize.method import Fields

if TYPE_CHECKING:
    import torch

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Nibble in which each of the eight outputs of a word lies."""
_GROUPS = (64, 128)


def declare(config: Dict[str, Any]) -> Import:
    """The import of a `quantization_config`."""
    bits = config.get("bits", config.get("w_bit", 4))
    group = config.get("group_size", config.get("q_group_size", 128))
    version = str(config.get("version", "gemm")).lower()
    found = [f"bits is {bits!r}; AWQ has 4"] if bits != 4 else []
    if type(group) is not int or (group < 1 and group != -1):
        found.append(f"group_size is {group!r}; it must be a positive integer, or -1")
        group = -1
    if version != "gemm":
        found.append(f"version is {version!r}; only gemm can be read")
    if config.get("zero_point", True) is not True:
        found.append(f"zero_point is {config['zero_point']!r}; only models with zero points can be read")
    fits = group in _GROUPS

    def groups(inputs: int) -> int:
        return -(-inputs // group) if group > 0 else 1

    return Import(
        format=f"AWQ, 4 bits, groups of {group if group > 0 else 'all inputs'}",
        methods=("int4_gptq",) if fits else (),
        why="" if fits else f"TensorRT-LLM has 4-bit kernels for groups of {' and '.join(map(str, _GROUPS))} only",
        parts=(
            Part("qweight", ("I32",), lambda out, inputs: ((inputs, out // 8),)),
            Part("qzeros", ("I32",), lambda out, inputs: ((groups(inputs), out // 8),)),
            Part("scales", FLOATS, lambda out, inputs: ((groups(inputs), out),)),
        ),
        size=lambda shape: (shape[1] * 8, shape[0]),
        read=read,
        group_size=group if fits else 128,
        problems=tuple(found),
        config=config,
    )


def read(tensors: Dict[str, torch.Tensor]) -> Fields:
    """Fields of a linear."""
    q, zero = (centred(_ordered(unpacked(tensors[name], 4, 1)), 4).T for name in ("qweight", "qzeros"))
    return with_zero(q.contiguous(), tensors["scales"].T, zero)


def _ordered(nibbles: torch.Tensor) -> torch.Tensor:
    """Nibbles [.., out] as they lie in their words -> outputs in order."""
    found: torch.Tensor = nibbles.unflatten(-1, (-1, 8))[..., list(_PLACES)].flatten(-2)
    return found
