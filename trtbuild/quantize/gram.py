"""Second moments of a linear's inputs, gram [in, in] = mean of x x^T, at half the cost: it is symmetric.

Only the blocks on and above the diagonal are computed and multiplied with. Matrices here are float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_BLOCK = 512
"""Columns of a block: fewer waste more of a matrix product's speed than they save (measured on 2 cores)."""


def add_moments(gram: torch.Tensor, x: torch.Tensor) -> None:
    """Add x^T x of x [tokens, in] to the upper blocks of `gram`; below it stays as it is."""
    for start, stop in _blocks(gram.shape[0]):
        gram[:stop, start:stop].addmm_(x[:, :stop].T, x[:, start:stop])


def mirror(gram: torch.Tensor) -> torch.Tensor:
    """`gram` itself, its lower blocks filled from the upper ones."""
    for start, stop in _blocks(gram.shape[0]):
        gram[start:stop, :start] = gram[:start, start:stop].T
    return gram


def folded(gram: torch.Tensor) -> torch.Tensor:
    """A copy of a symmetric matrix for `quadratic`: what is above the diagonal's blocks counts twice, below nothing."""
    made = gram.clone()
    for start, stop in _blocks(made.shape[0]):
        made[:start, start:stop] *= 2
    return made


def quadratic(error: torch.Tensor, fold: torch.Tensor) -> float:
    """trace(E gram E^T) of E [out, in], from the `folded` gram: rows in float32, their sum in float64."""
    import torch

    total = 0.0
    for start, stop in _blocks(fold.shape[0]):
        product = error[:, :stop] @ fold[:stop, start:stop]
        total += float(torch.linalg.vecdot(product, error[:, start:stop]).sum(dtype=torch.float64))
    return total


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, _BLOCK):
        yield start, min(start + _BLOCK, size)
