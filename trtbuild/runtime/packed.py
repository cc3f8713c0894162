"""Packed weights and rounded inputs in torch: the lines that define what forms.py names, for the build and executors.

n outputs, k inputs, g inputs of a group.
"""

from __future__ import annotations

import torch

from trtbuild.runtime.forms import Round
from trtbuild.runtime.int4 import unpack_int4

E4M3_MAX = 448.0
_LEAST_STEP = {Round.INT8_TOKEN: 2.0**-126, Round.FP8_TOKEN: 1.0 / (E4M3_MAX * 512.0)}
"""Of a token of zeros; that of FP8 is TensorRT-LLM's (quantization/functional.py)."""


def linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None, zero: torch.Tensor | None = None
) -> torch.Tensor:
    """x [T, k] times a weight as the engine holds it, [n, k] or [n, k / 2] -> [T, n] float32.

    `scale` [n] or [n, k / g], None for a plain weight; `zero` [n, k / g]. The weight becomes float32 for this call.
    """
    wide = (unpack_int4(weight) if weight.dtype is torch.uint8 else weight).float()
    if scale is None or scale.dim() == 1:
        y = torch.nn.functional.linear(x, wide)
        return y if scale is None else y * scale
    blocks = wide.view(len(wide), scale.shape[1], -1)
    blocks *= scale[:, :, None]
    if zero is not None:
        blocks += zero[:, :, None]
    return torch.nn.functional.linear(x, blocks.flatten(1))


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
    return ratio.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float()
