"""Arithmetic on the fields of imported linears: checks, multiplying out, a common fp8 scale. Imports torch late."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from typing import TYPE_CHECKING

from trtbuild.errors import CheckpointError
from trtbuild.float8 import e4m3
from trtbuild.quantize.method import Fields, Method

if TYPE_CHECKING:
    import torch

_POSITIVE = (
    "weights_scaling_factor",
    "weights_scaling_factor_2",
    "activation_scaling_factor",
    "prequant_scaling_factor",
    "per_channel_scale",
    "smoother",
)
_AGAIN = "Fetch the model again; if its makers' file is like this, it cannot be used."


def dequantized(fields: Fields) -> torch.Tensor:
    """The plain weight [out, in] that fields stand for, float32: (q * scale + zero) * p."""
    import torch

    q = fields["weight"].to(torch.float32)
    scale = fields.get("per_channel_scale", fields.get("weights_scaling_factor"))
    assert scale is not None, list(fields)
    if scale.dim() == 1 and len(scale) == q.shape[0]:
        scale = scale.unsqueeze(1)
    zero = fields.get("zero")
    if scale.dim() == 2:
        q = q.unflatten(1, (scale.shape[1], -1))
        q = q * scale.unsqueeze(-1) + (zero.unsqueeze(-1) if zero is not None else 0.0)
        q = q.flatten(1)
    else:
        q = q * scale
    p = fields.get("prequant_scaling_factor")
    return q if p is None else q * p


def rescaled(fields: Fields, scale: torch.Tensor) -> bool:
    """Give fp8 weights the scale `scale` (a scalar) where theirs is smaller, in place; whether they were rounded again.

    As vLLM does for fused layers (model_executor/layers/quantization/utils/w8a8_utils.py, requantize_with_max_scale).
    """
    import torch

    own = fields["weights_scaling_factor"].reshape(-1)[0]
    fields["weights_scaling_factor"] = scale.reshape(1)
    if bool(own == scale):
        return False
    wide = fields["weight"].to(torch.float32) * (own / scale)
    fields["weight"] = e4m3(wide)
    return True


def fp8_scale(name: str, tensors: Dict[str, torch.Tensor]) -> torch.Tensor:
    """The one scale of an fp8 tensor, a scalar.

    Raises:
        CheckpointError: it is no positive number.
    """
    import torch

    scale = tensors["weight_scale"].to(torch.float32).reshape(-1)[0]
    if not bool(torch.isfinite(scale)) or float(scale) <= 0:
        raise CheckpointError(f"{name}: weight_scale is {float(scale):g}; it must be a positive number", hint=_AGAIN)
    return scale


def cast_checked(values: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """Values in a float dtype.

    Raises:
        CheckpointError: what was finite is not any more.
    """
    import torch

    found = values.to(dtype)
    if not bool(torch.isfinite(found).all()):
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise CheckpointError(f"{name} holds {bad} NaN or infinite values", hint=_AGAIN)
        most = float(values.abs().max())
        raise CheckpointError(f"{name} reaches {most:g}, beyond {dtype}", hint="Use --dtype bfloat16 or float32.")
    return found


def require_sound(name: str, fields: Fields, method: Method) -> None:
    """Raise CheckpointError, with all that is wrong with a linear, where its fields cannot be used.

    Whatever the method: "none" multiplies them out, and a wrong sign gives finite weights.
    """
    import torch

    found = []
    for suffix, value in fields.items():
        if suffix == "zero" or not value.is_floating_point():
            continue  # zeros are integers times the scale, and wrong where that is
        wide = value.to(torch.float32)
        if not bool(torch.isfinite(wide).all()):
            found.append(f"{suffix} holds {int((~torch.isfinite(wide)).sum())} NaN or infinite values")
        elif suffix in _POSITIVE and bool((wide <= 0).any()):
            found.append(f"{suffix} holds {int((wide <= 0).sum())} values that are not positive")
    zero, suffixes = fields.get("zero"), {field.suffix for field in method.fields}
    if zero is not None and suffixes and "zero" not in suffixes and bool((torch.isfinite(zero) & (zero != 0)).any()):
        found.append(f"it has zero points, which {method.name} has not (leave --quant out)")
    if found:
        raise CheckpointError(f"{name} cannot be used: {'; '.join(found)}", hint=_AGAIN)
