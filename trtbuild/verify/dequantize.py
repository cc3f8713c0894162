"""Engine tensors of a linear -> the float32 weight that they stand for, and the best that their form could be.

n outputs, k inputs, g inputs of a group; stacked experts have one more dim in front. Forms: `runtime/forms.py`.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict

import torch

from trtbuild.float8 import E4M3_MAX, e4m3
from trtbuild.runtime.forms import Form, engine_tensors
from trtbuild.runtime.ops import Weight
from trtbuild.runtime.packed import widened

_W4A8_GROUP = 128  # the only one there is (checkpoint format 4.4); the engine holds the products in fp8


def names(weight: Weight) -> list[str]:
    """The engine tensors of a weight that its value depends on."""
    return [name for name in engine_tensors(weight.name, weight.shape, weight.form) if not name.endswith(".act_scale")]


def dequantized(weight: Weight, tensors: Dict[str, torch.Tensor]) -> torch.Tensor:
    """The weight by which unchanged inputs are multiplied: prequant is part of it. `tensors` by engine names."""
    base = weight.name.removesuffix("weight")
    wide = widened(tensors[weight.name], tensors.get(f"{base}per_channel_scale"), tensors.get(f"{base}zero"))
    prequant = tensors.get(f"{base}prequant")
    return wide if prequant is None else wide * prequant


def best(reference: torch.Tensor, form: Form | None, prequant: torch.Tensor | None, dtype: str) -> torch.Tensor:
    """`reference` [.., n, k] rounded to a form with scales of its own; plain weights are rounded to `dtype`.

    Methods that move errors to where they matter less (GPTQ) may come out below it, none far above.
    """
    if form is None:
        return reference.to(getattr(torch, dtype)).float()
    w = reference if prequant is None else reference / prequant
    if form.dtype == "float8_e4m3fn" and form.algo != "W4A8_AWQ":
        dims = (-2, -1) if form.per == "tensor" else (-1,)
        scale = _positive(w.abs().amax(dim=dims, keepdim=True) / E4M3_MAX)
        made = e4m3(w / scale).float() * scale
    else:
        four = form.bits == 4 or form.algo == "W4A8_AWQ"
        group = _W4A8_GROUP if form.algo == "W4A8_AWQ" else form.group
        made = _integers(w, 4 if four else 8, group, zero=form.zero, whole=form.plain)
    return made if prequant is None else made * prequant


def _integers(w: torch.Tensor, bits: int, group: int, *, zero: bool, whole: bool) -> torch.Tensor:
    """Rounded to a grid of 2^bits steps a row, or a group; `whole`: amax / 2^(bits-1) is the step, as upstream has it
    where the engine build quantizes."""
    half = 1 << (bits - 1)
    blocks = w.unflatten(-1, (-1, group)) if group else w.unsqueeze(-2)
    if zero:
        low, high = blocks.amin(dim=-1, keepdim=True), blocks.amax(dim=-1, keepdim=True)
        step = _positive((high - low) / (2 * half - 1))
        return (((blocks - low) / step).round() * step + low).flatten(-2)
    step = _positive(blocks.abs().amax(dim=-1, keepdim=True) / (half if whole else half - 1))
    return ((blocks / step).round().clamp(-half, half - 1) * step).flatten(-2)


def _positive(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale > 0, scale, torch.ones_like(scale))
