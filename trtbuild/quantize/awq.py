"""Activation-aware weight quantization as NVIDIA ModelOpt's `awq_lite` does it (checkpoint format 6.1 and 6.2).

Each linear is searched on its own: a scale s for every input channel, from a grid over alpha, that makes the error of
the int4 weights least. ModelOpt runs each candidate on the activations; the mean squared error follows from their
second moment alone: mean over tokens of |D x|^2 = trace(D gram D^T), D = changed weight - weight.
Legend: g = group size, p = prequant (inputs are multiplied by it, weights divided), s = 1 / p.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trtbuild.quantize.compensate import compensated
from trtbuild.quantize.gram import folded, quadratic
from trtbuild.quantize.method import InputStats

if TYPE_CHECKING:
    import torch

_STEPS = 11  # alpha = 0.0, 0.1, ..., 1.0
_CLIPS = (1.0, 0.95, 0.9, 0.875, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)
"""Of a group's amax / 7; 7 / 8 is exact for a group whose extreme is negative."""
_ROWS = 512  # outputs whose scales are searched at a time


def int4_groups(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [.., out, in] -> (q int8 [.., out, in] in -8..7, scale float32 [.., out, in / g] = amax / 7, 1 for 0)."""
    import torch

    q = weight.clone(memory_format=torch.contiguous_format)
    scale = _round_groups(q, group_size)
    return q.to(torch.int8), scale


def clipped_groups(weight: torch.Tensor, gram: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `int4_groups`, of [out, in], but each scale is the one that makes the group's share of the output error least.

    `gram` [in, in] is that of the inputs which meet these weights. The share leaves out what a group's error has in
    common with other groups' (ModelOpt's awq_clip leaves it out as well), so each group is searched on its own.
    """
    import torch

    count = weight.shape[1] // group_size
    own = torch.stack([gram[i : i + group_size, i : i + group_size] for i in range(0, weight.shape[1], group_size)])
    found = []
    for rows in weight.split(_ROWS):
        blocks = rows.unflatten(-1, (count, group_size)).transpose(0, 1).contiguous()  # [groups, out, g]
        amax = blocks.abs().amax(dim=-1) / 7.0
        amax = torch.where(amax == 0, torch.ones_like(amax), amax)
        best, least = amax, torch.full_like(amax, float("inf"))
        for clip in _CLIPS:
            scale = amax * clip
            wide = scale.unsqueeze(-1)
            error = (blocks / wide).round_().clamp_(-8, 7).mul_(wide).sub_(blocks)
            loss = torch.linalg.vecdot(torch.bmm(error, own), error)
            better = loss < least
            best, least = torch.where(better, scale, best), torch.where(better, loss, least)
        found.append(best.T)
    scales = torch.cat(found)
    q = (weight.unflatten(-1, (count, group_size)) / scales.unsqueeze(-1)).round_().clamp_(-8, 7)
    return q.flatten(-2).to(torch.int8), scales


def compensated_groups(weight: torch.Tensor, gram: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `clipped_groups` with its scales; errors of different inputs make up for each other."""
    import torch

    _, scales = clipped_groups(weight, gram, group_size)

    def rounded(column: torch.Tensor, channel: int) -> torch.Tensor:
        scale = scales[:, channel // group_size]
        return (column / scale).round_().clamp_(-8, 7).mul_(scale)

    made = compensated(weight, gram, rounded).unflatten(-1, (-1, group_size)) / scales.unsqueeze(-1)
    return made.round_().clamp_(-8, 7).flatten(-2).to(torch.int8), scales


def dequantized(q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Inverse of `int4_groups` up to rounding, float32."""
    blocks: torch.Tensor = q.unflatten(-1, (scale.shape[-1], -1)) * scale.unsqueeze(-1)
    return blocks.flatten(-2)


def search_prequant(
    weight: torch.Tensor,
    abs_mean: torch.Tensor,
    fold: torch.Tensor | None,
    group_size: int,
    second: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """The best p [in] of one linear [out, in], float32; ones for a linear without statistics.

    `fold` is its gram `folded`; `second` a further rounding of the dequantized int4 weights (W4A8's fp8).
    """
    import torch

    if fold is None:
        return torch.ones_like(abs_mean)
    tiny = torch.finfo(torch.float32).tiny
    blocks = weight.abs().unflatten(-1, (-1, group_size))
    wscale = (blocks / (blocks.amax(dim=-1, keepdim=True) + tiny)).flatten(-2).mean(dim=0)
    del blocks
    best, least = torch.ones_like(wscale), float("inf")
    room = torch.empty_like(weight, memory_format=torch.contiguous_format)
    for alpha in torch.arange(0, 1.0 + 0.1, 0.1)[:_STEPS]:
        s = (abs_mean.pow(alpha) / (wscale.pow(1 - alpha) + tiny)).clamp(min=1e-4, max=1e4)
        s = s / (s.max() * s.min()).sqrt()
        changed = torch.mul(weight, s, out=room)
        scale = _round_groups(changed, group_size)
        changed.unflatten(-1, (-1, group_size)).mul_(scale.unsqueeze(-1))
        if second is not None:
            changed = second(changed)
        # Near the minimum the candidates lie close together.
        loss = quadratic(changed.div_(s).sub_(weight), fold)
        if loss < least:
            best, least = 1.0 / s, loss
    return best


def shared_prequant(
    parts: tuple[torch.Tensor, ...],
    stats: InputStats,
    group_size: int,
    second: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """One p [in] for all parts [out, in] or [E, out, in] of a module: the mean of each one's best."""
    return own_prequants(parts, stats, group_size, second).mean(dim=0)


def own_prequants(
    parts: tuple[torch.Tensor, ...],
    stats: InputStats,
    group_size: int,
    second: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """The best p of each part, and of each of its experts, [n, in]."""
    import torch

    found = []
    seen = stats.gram if stats.tokens else None
    common = folded(seen) if seen is not None and seen.dim() == 2 else None
    for part in parts:
        experts = part if part.dim() == 3 else part.unsqueeze(0)
        for number, weight in enumerate(experts):
            mean = stats.abs_mean[number] if stats.abs_mean.dim() == 2 else stats.abs_mean
            fold = folded(seen[number]) if seen is not None and common is None else common
            found.append(search_prequant(weight.to(torch.float32), mean.float(), fold, group_size, second))
    return torch.stack(found)


def _round_groups(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Put q (float) in the place of a weight [.., out, in]; returns the scales [.., out, in / g]."""
    import torch

    blocks = weight.unflatten(-1, (-1, group_size))
    # Two reductions are faster than one over a copy of absolute values.
    scale = torch.maximum(blocks.amax(dim=-1), -blocks.amin(dim=-1)) / 7.0
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    blocks.div_(scale.unsqueeze(-1)).round_().clamp_(-8, 7)
    return scale
