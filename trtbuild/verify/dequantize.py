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

_CLIPS = (0.45, 1.05)
"""Scales of int4 groups that a search may choose, over those that hold the greatest weight."""
_WHOLE = (0.95, 8.0)
"""The same of int8 rows, whose greatest weight may be on another rank."""
_SHARED = (0.45, 64.0)
"""The same of fp8, where fused weights share the greatest scale, too: the error hardly depends on it."""
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


def best(
    reference: torch.Tensor,
    form: Form | None,
    dtype: str,
    prequant: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """`reference` [.., n, k] rounded to a form; plain weights are rounded to `dtype`.

    Scales are the engine's own `scale`, as far as a search, or what shares it, can be the reason; else, and where the
    engine build quantizes, those that hold the greatest weight. Methods that move errors to where they matter less
    (GPTQ) may come out below it, none far above.
    """
    if form is None:
        return reference.to(getattr(torch, dtype)).float()
    w = reference if prequant is None else reference / prequant
    if form.dtype == "float8_e4m3fn" and form.algo != "W4A8_AWQ":
        dims = (-2, -1) if form.per == "tensor" else (-1,)
        step = _positive(w.abs().amax(dim=dims, keepdim=True) / E4M3_MAX)
        step = step if scale is None else _within(scale.unsqueeze(-1), step, _SHARED)
        made = e4m3(w / step).float() * step
    else:
        four = form.bits == 4 or form.algo == "W4A8_AWQ"
        group = _W4A8_GROUP if form.algo == "W4A8_AWQ" else form.group
        own = None
        if scale is not None and form.per == "group":
            own = (scale.unsqueeze(-1), _CLIPS)
        elif scale is not None and form.per == "row" and not form.plain:
            own = (scale[..., None, None], _WHOLE)
        made = _integers(w, 4 if four else 8, group, zero=form.zero, whole=form.plain, own=own)
    return made if prequant is None else made * prequant


def _integers(
    w: torch.Tensor,
    bits: int,
    group: int,
    *,
    zero: bool,
    whole: bool,
    own: tuple[torch.Tensor, tuple[float, float]] | None,
) -> torch.Tensor:
    """Rounded to a grid of 2^bits steps a row, or a group; `whole`: amax / 2^(bits-1) is the step, as upstream has it
    where the engine build quantizes. `own`: steps, taken within these multiples of those."""
    half = 1 << (bits - 1)
    blocks = w.unflatten(-1, (-1, group)) if group else w.unsqueeze(-2)
    if zero:
        low, high = blocks.amin(dim=-1, keepdim=True), blocks.amax(dim=-1, keepdim=True)
        step = _positive((high - low) / (2 * half - 1))
        return (((blocks - low) / step).round() * step + low).flatten(-2)
    step = _positive(blocks.abs().amax(dim=-1, keepdim=True) / (half if whole else half - 1))
    step = step if own is None else _within(own[0], step, own[1])
    return ((blocks / step).round().clamp(-half, half - 1) * step).flatten(-2)


def _within(scale: torch.Tensor, usual: torch.Tensor, factors: tuple[float, float]) -> torch.Tensor:
    """`scale`, or what of these multiples of `usual` is nearest."""
    return torch.minimum(torch.maximum(scale, usual * factors[0]), usual * factors[1])


def _positive(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale > 0, scale, torch.ones_like(scale))
