"""Scales that were moved from a norm into the weights that read it, as SmoothQuant and AWQ do: the model is the same.

That is so where all that reads the norm is linear and has them. k inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from trtbuild.runtime.ops import Buffer, Kind, Op


def readers_of(ops: Sequence[Op]) -> dict[str, list[str]]:
    """Weight of a norm -> weights of the linears that read its output; norms that anything else reads are left out."""
    holds: dict[Buffer, str] = {}
    readers: dict[str, list[str]] = {}
    others = set()
    for op in ops:
        norms = [holds[buffer] for buffer in (op.in_, op.in2) if buffer in holds]
        if op.kind is Kind.LINEAR:
            for norm in norms:
                readers[norm].append(op.weight)
        elif op.kind is not Kind.PREPARE:
            others |= set(norms)
        if op.kind in (Kind.NORM, Kind.LAYER_NORM):
            holds[op.out] = op.weight
            readers[op.weight] = []
        elif op.kind is Kind.PREPARE and norms:
            holds[op.out] = norms[0]
        else:
            holds.pop(op.out, None)
    return {norm: found for norm, found in readers.items() if found and norm not in others}


@dataclass(frozen=True)
class Folded:
    """A norm's weights [k]: of the engine, and of the model."""

    name: str
    found: torch.Tensor
    wanted: torch.Tensor

    @property
    def bias(self) -> str:
        return self.name.removesuffix("weight") + "bias"

    @cached_property
    def lives(self) -> torch.Tensor:
        """[k], bool: where it gives anything that a weight could make good for."""
        return self.found != 0

    @cached_property
    def ratio(self) -> torch.Tensor:
        """[k]: what the weights that read it must have more; 1 where it is 0."""
        return torch.where(self.lives, self.wanted / torch.where(self.lives, self.found, 1.0), 1.0)

    def rounding(self, dtype: str) -> torch.Tensor:
        """[k]: half a step of the numbers of `dtype`, in which it was stored, over each of its own."""
        mantissa = torch.frexp(self.found).mantissa.abs()  # 0, or in [0.5, 1)
        half = torch.finfo(getattr(torch, dtype)).eps / 4
        return torch.where(self.lives, half / torch.where(self.lives, mantissa, 1.0), 0.0)
