"""Static fp8 (`quant_method: fp8` without blocks, AutoFP8) -> fp8.

Tensors of a linear: weight e4m3 [out, in], weight_scale and input_scale scalars; q, k and v have scales of their own.
Other fp8 models (blocks, dynamic activations) are multiplied out by `checkpoint/quantized_source.py`.
Source: neuralmagic/AutoFP8 auto_fp8/quantize.py (FP8StaticLinear).
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from typing import TYPE_CHECKING, Any

from trtbuild.importers.form import FLOATS, Import, Part, same_shape, scalar
from trtbuild.quantize.method import Fields

if TYPE_CHECKING:
    import torch


def declare(config: Dict[str, Any]) -> Import | None:
    """The import of a `quantization_config`, or None for the fp8 models that are only multiplied out."""
    if config.get("weight_block_size") or config.get("activation_scheme") != "static":
        return None
    return Import(
        format="static fp8", methods=("fp8",), parts=PARTS, read=read, plain=True, config=config,
    )  # fmt: skip


PARTS = (
    Part("weight", ("F8_E4M3",), same_shape),
    Part("weight_scale", FLOATS, scalar),
    Part("input_scale", FLOATS, scalar),
)


def read(tensors: Dict[str, torch.Tensor]) -> Fields:
    """Fields of a linear."""
    return {
        "weight": tensors["weight"],
        "weights_scaling_factor": tensors["weight_scale"].float(),
        "activation_scaling_factor": tensors["input_scale"].float(),
    }
