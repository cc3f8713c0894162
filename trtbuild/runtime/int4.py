"""The order of int4 weights in an engine: made for the native kernels, and undone for torch. PURE.

A row of k inputs is cut into blocks of 128, then, of what is left, at most one block of 64 and one of 32, and a rest.
A block of 16 c inputs (c = 8, 4, 2) is 16 little-endian words of c codes: code i of word l, counted from the low end,
belongs to input 16 i + l, so that one mask takes 16 neighbouring inputs out of 16 words. Byte j of the rest holds
inputs 2j (low) and 2j + 1. A code is the number plus 8. `native/int4.h` reads this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def pack_int4(values: torch.Tensor) -> torch.Tensor:
    """int8 [..., k] of -8..7, k even -> uint8 [..., k / 2]."""
    import torch

    codes = (values + 8).to(torch.uint8)
    parts = []
    for start, stop, count in _blocks(values.shape[-1]):
        # [..., blocks, byte of a word, low or high code, word]; in the rest the words are single bytes of two inputs
        block = codes[..., start:stop]
        if count:
            block = block.unflatten(-1, (-1, count // 2, 2, 16))
            parts.append((block[..., 0, :] | block[..., 1, :] << 4).mT.flatten(-3))
        else:
            parts.append(block[..., 0::2] | block[..., 1::2] << 4)
    return torch.cat(parts, -1).contiguous()


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [..., k / 2] -> int8 [..., k]: the inverse of `pack_int4`."""
    import torch

    parts = []
    for start, stop, count in _blocks(2 * packed.shape[-1]):
        block = packed[..., start // 2 : stop // 2]
        if count:
            codes = block.unflatten(-1, (-1, 16, count // 2)).mT  # [..., blocks, byte of a word, word]
            parts.append(torch.stack((codes & 15, codes >> 4), -2).flatten(-4))
        else:
            parts.append(torch.stack((block & 15, block >> 4), -1).flatten(-2))
    return torch.cat(parts, -1).to(torch.int8) - 8


def _blocks(k: int) -> list[tuple[int, int, int]]:
    """(first input, end, codes of a word) of the runs of equal blocks of a row; the rest has 0 codes."""
    runs, start = [], 0
    for count in (8, 4, 2):
        if stop := (k - start) // (16 * count) * 16 * count:
            runs.append((start, start + stop, count))
            start += stop
    return [*runs, (start, k, 0)] if start < k else runs
