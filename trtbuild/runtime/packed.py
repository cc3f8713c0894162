"""Packed weights and rounded inputs in torch: the lines that define what forms.py names, for the build and executors.

n outputs, k inputs, g inputs of a group.
"""

from __future__ import annotations

import torch

from trtbuild.float8 import E4M3_MAX, LEAST_STEP, e4m3
from trtbuild.runtime.forms import Round
from trtbuild.runtime.int4 import unpack_int4

_LEAST_STEP = {Round.INT8_TOKEN: 2.0**-126, Round.FP8_TOKEN: LEAST_STEP}
"""Of a token of zeros."""


def linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None, zero: torch.Tensor | None = None
) -> torch.Tensor:
    """x [T, k] times a weight as the engine holds it, [n, k] or [n, k / 2] -> [T, n] float32.

    `scale` [n] or [n, k / g], None for a plain weight; `zero` [n, k / g]. The weight becomes float32 for this call.
    """
    if scale is None or scale.dim() > 1:
        return torch.nn.functional.linear(x, widened(weight, scale, zero))
    return torch.nn.functional.linear(x, widened(weight)) * scale  # as the native kernels: once an output


def widened(weight: torch.Tensor, scale: torch.Tensor | None = None, zero: torch.Tensor | None = None) -> torch.Tensor:
    """The float32 [.., n, k] that an engine's weight stands for; arguments as `linear`, or of stacked experts."""
    wide = (unpack_int4(weight) if weight.dtype is torch.uint8 else weight).float()
    if scale is None:
        return wide
    if scale.dim() < wide.dim():
        return wide * scale.unsqueeze(-1)
    blocks = wide.unflatten(-1, (scale.shape[-1], -1)) * scale.unsqueeze(-1)
    if zero is not None:
        blocks += zero.unsqueeze(-1)
    whole: torch.Tensor = blocks.flatten(-2)
    return whole


def prepared(
    x: torch.Tensor, prequant: torch.Tensor | None, act_scale: torch.Tensor | None, how: Round
) -> torch.Tensor:
    """Inputs [.., k] as a linear takes them: times prequant [k], then on the grid of `how`, in float32 again."""
    if prequant is not None:
        x = x * prequant
    if how in _LEAST_STEP:
        most = 127.0 if how is Round.INT8_TOKEN else E4M3_MAX
        act_scale = (x.abs().amax(dim=-1, keepdim=True) / most).clamp(min=_LEAST_STEP[how])
    return x if act_scale is None else on_grid(x / act_scale, how) * act_scale


def on_grid(ratio: torch.Tensor, how: Round) -> torch.Tensor:
    """The nearest numbers of int8 or e4m3, ties to even, beyond the ends the ends; float32."""
    if how in (Round.INT8_STATIC, Round.INT8_TOKEN):
        return ratio.round().clamp(-128, 127)
    return e4m3(ratio).float()
