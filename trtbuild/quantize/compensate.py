"""Rounds the weights of a linear one input after the other, each error made up for by the inputs that come later.

The algorithm is that of GPTQ (Frantar, Ashkboos, Hoefler, Alistarh, 2022, https://arxiv.org/abs/2210.17323, algorithm
1 with the order of "act-order"): after a column is rounded, the columns still free move to where the error of the
outputs, trace(E gram E^T), is least again. How far is in the Cholesky factor of the gram's inverse. It fixes no format:
whoever calls says how a column is rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_BLOCK = 128  # columns whose errors reach the ones beyond the block in one product
_OWN, _COMMON = 0.01, 0.01
"""Damping: of a channel's own second moment, and of the median one, which holds channels that hardly ever act."""


def compensated(
    weight: torch.Tensor, gram: torch.Tensor, rounded: Callable[[torch.Tensor, int], torch.Tensor]
) -> torch.Tensor:
    """Weights [out, in] on a grid, float32. `gram` [in, in]: second moments of the inputs that meet them.

    `rounded`: column [out] and its input channel -> the column's nearest values on the grid.
    """
    import torch

    order = gram.diagonal().argsort(descending=True, stable=True)
    factor = _factor(gram, order)
    work, inputs = weight[:, order], order.tolist()
    made = torch.empty_like(weight, memory_format=torch.contiguous_format)
    for start in range(0, len(inputs), _BLOCK):
        stop = min(start + _BLOCK, len(inputs))
        block = work[:, start:stop].T.contiguous()  # a column of the weight is a row here
        own = factor[start:stop, start:stop]
        errors = torch.empty_like(block)
        for i, channel in enumerate(inputs[start:stop]):
            column = rounded(block[i], channel)
            made[:, channel] = column
            errors[i] = (block[i] - column) / own[i, i]
            block[i + 1 :].addr_(own[i, i + 1 :], errors[i], alpha=-1.0)
        work[:, stop:].addmm_(errors.T, factor[start:stop, stop:], alpha=-1.0)
    return made


def _factor(gram: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of the damped gram, rows and columns in `order`."""
    import torch

    made = gram[order][:, order]
    own = made.diagonal().clone()
    # A channel that never acts (or nothing at all) is rounded to nearest: its error meets no input.
    made.diagonal().add_(_OWN * own + _COMMON * own.median() + (own <= 0) * own.max().clamp(min=1e-30))
    unit = made.diagonal().rsqrt()  # all ones on the diagonal is what float32 can factorize
    made.mul_(unit.unsqueeze(1)).mul_(unit)
    # One name for both, so that no more than two of these are in memory.
    made = torch.linalg.cholesky(made)
    made = torch.cholesky_inverse(made)
    factor: torch.Tensor = torch.linalg.cholesky(made, upper=True)
    return factor.mul_(unit)
