"""The position bias of BLOOM and Falcon, computed as transformers does."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def slopes(num_heads: int) -> torch.Tensor:
    """Slope of every head, float32 [num_heads]: powers of 2^(-8/n), those between for what a power of two leaves."""
    import torch

    whole = 2 ** math.floor(math.log2(num_heads))
    base = torch.tensor(2 ** (-(2 ** -(math.log2(whole) - 3))), dtype=torch.float32)
    found = torch.pow(base, torch.arange(1, 1 + whole, dtype=torch.int32))
    rest = num_heads - whole
    if rest:
        base = torch.tensor(2 ** (-(2 ** -(math.log2(2 * whole) - 3))), dtype=torch.float32)
        found = torch.cat([found, torch.pow(base, torch.arange(1, 1 + 2 * rest, 2, dtype=torch.int32))])
    return found


def position_bias(num_heads: int, heads: range, length: int, *, scale: float, rounded: bool) -> torch.Tensor:
    """What is added to the score of a key at each position, float32 [len(heads), length].

    The bias grows with the key's own position; the query's would be the same for all keys, which softmax ignores.
    `rounded`: transformers multiplies in bfloat16 for Falcon, so from position 257 on the bias is a rounded one.
    """
    import torch

    mine, positions = slopes(num_heads)[heads.start : heads.stop, None], torch.arange(length)
    bias = (mine.bfloat16() * positions).float() if rounded else mine * positions
    return (bias * scale).contiguous()
