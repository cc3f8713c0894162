"""Rounding weights to a given grid so that the outputs, not the weights, stay close.

The gram matrix of the inputs gives the squared error of the outputs of changed weights; each input's rounding error is
made up for by the inputs not yet rounded, in the order of their power (Frantar et al. 2022, "GPTQ", with the scales given
beforehand). Legend: D = changed weight - weight, [out, in].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_BLOCK = 128
_DAMPING = 0.01
"""Of the mean power of an input, added to each: it bounds how far weights move for directions calibration rarely saw."""


def output_error(change: torch.Tensor, gram: torch.Tensor) -> float:
    """Sum over outputs of the mean squared change, trace(D gram D^T); in float64, since candidates lie close together."""
    import torch

    return float((change @ gram).mul_(change).sum(dtype=torch.float64))


def compensated(
    weight: torch.Tensor,
    scale: torch.Tensor,
    gram: torch.Tensor,
    rounded: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Weight [out, in] -> grid values q float32 [out, in] with q * scale near weight where inputs have power.

    `scale` expands to [out, in]; `gram` [in, in] is that of the inputs which meet these weights; `rounded` maps
    weight / scale to the nearest grid values.
    """
    import torch

    count = weight.shape[1]
    order = gram.diagonal().argsort(descending=True)
    factor = _inverse_factor(gram[order][:, order])
    # Transposed, so that an input's weights lie together.
    left = weight.T[order].contiguous()
    scales = scale.expand_as(weight).T[order].contiguous()
    grid = torch.empty_like(left)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        block, own = left[start:stop], factor[start:stop, start:stop].contiguous()
        errors = torch.empty_like(block)
        diagonal = own.diagonal().tolist()
        for i, unit in enumerate(diagonal):
            grid[start + i] = rounded(block[i] / scales[start + i])
            torch.sub(block[i], grid[start + i] * scales[start + i], out=errors[i])
            errors[i].div_(unit)
            block[i + 1 :].addr_(own[i, i + 1 :], errors[i], alpha=-1)
        left[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    found = torch.empty_like(grid)
    found[order] = grid
    return found.T.contiguous()


def _inverse_factor(gram: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the inverse of the damped gram; more damping until it exists."""
    import torch

    mean = float(gram.diagonal().mean()) or 1.0
    damping = _DAMPING
    while True:
        damped = gram.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not int(failed):
            return upper
        damping *= 10
