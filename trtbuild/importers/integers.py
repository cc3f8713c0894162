"""Small integers packed in int32 words -> int8, and the fields of weights with a zero point. Imports torch late.

Legend: u = what the bits say (0 .. 2^bits - 1), z = the u that stands for 0, q = u - 2^(bits - 1): what is stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.quantize.method import Fields

if TYPE_CHECKING:
    import torch


def unpacked(words: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """int32 words that hold 32 / bits neighbours along `dim` each, the first in the lowest bits -> uint8 u."""
    import torch

    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    moved = words.movedim(dim, -1)
    # An arithmetic shift copies the sign, which the mask takes off.
    found = ((moved.unsqueeze(-1) >> shifts) & (2**bits - 1)).to(torch.uint8)
    whole: torch.Tensor = found.flatten(-2).movedim(-1, dim).contiguous()
    return whole


def centred(u: torch.Tensor, bits: int) -> torch.Tensor:
    """u -> q, int8."""
    import torch

    q: torch.Tensor = (u.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
    return q


def with_zero(q: torch.Tensor, scale: torch.Tensor, zero_q: torch.Tensor) -> Fields:
    """Fields of w = (q - zero_q) * scale: q int8 [out, in]; scale and zero_q [out, in / g]. No input is scaled.

    A group of which every q is the zero point is zeros at any scale: where that is 0 (dead channels) it becomes 1.
    Any other scale of 0 stays, for `require_sound` to find.
    """
    import torch

    wide = scale.to(torch.float32)
    if bool((wide == 0).any()):
        dead = (q.unflatten(1, (scale.shape[1], -1)) == zero_q.unsqueeze(-1)).all(dim=-1)
        wide = torch.where((wide == 0) & dead, torch.ones_like(wide), wide)
    ones = torch.ones(q.shape[-1], dtype=torch.float32)
    # 0.0 - 0.0 is 0.0, and not the -0.0 of a product.
    zero = 0.0 - zero_q.to(torch.float32) * wide
    return {"weight": q, "weights_scaling_factor": wide, "zero": zero, "prequant_scaling_factor": ones}
