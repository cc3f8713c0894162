"""SmoothQuant (Xiao et al., 2022, https://arxiv.org/abs/2211.10438) with an alpha of its own for each linear.

One scale of the activations and one of each output meet channels whose sizes differ by orders of magnitude. Factors
p = max |w|^(1 - alpha) / max |x|^alpha of each input channel move the range from inputs to weights; the alpha that
leaves least error on calibration inputs differs from linear to linear. What is rounded: inputs x p and weights W / p.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.quantize.gram import folded, quadratic
from trtbuild.quantize.values import positive

if TYPE_CHECKING:
    import torch

_DEAD = 2.0**-31
"""An input channel that never exceeds it is left as it is, as in ModelOpt."""
_ALPHAS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
_ROWS = 256  # outputs on which factors are compared


def smoothing(weight_amax: torch.Tensor, amax: torch.Tensor, alpha: float) -> torch.Tensor:
    """p [in] from the greatest magnitudes [in] of weights and inputs."""
    import torch

    p = weight_amax.pow(1 - alpha) / amax.pow(alpha)
    return torch.where(amax <= _DEAD, torch.ones_like(p), p).clamp(min=1e-4, max=1e4)


def searched_smoothing(
    weight: torch.Tensor, amax: torch.Tensor, gram: torch.Tensor, sample: torch.Tensor
) -> torch.Tensor:
    """The p [in] of least error of some rows of a weight [out, in], on `gram` [in, in] and `sample` [n, in]."""
    weight_amax = weight.abs().amax(dim=0)
    rows = weight[:: -(-len(weight) // _ROWS)]
    best, least = smoothing(weight_amax, amax, _ALPHAS[0]), float("inf")
    for alpha in _ALPHAS:
        p = smoothing(weight_amax, amax, alpha)
        smoothed, met = rows * (1.0 / p), gram * p.unsqueeze(1) * p
        scale = row_scales(smoothed).unsqueeze(1)
        error = (smoothed / scale).round_().clamp_(-128, 127).mul_(scale).sub_(smoothed)
        x = sample * p
        lost = (rounded_inputs(x, input_scale(amax, p)) - x) @ smoothed.T
        loss = quadratic(error, folded(met)) + float(lost.square().sum()) / len(sample)
        if loss < least:
            best, least = p, loss
    return best


def row_scales(weight: torch.Tensor) -> torch.Tensor:
    """The scale of int8 for each output of weights [.., in].

    A smaller one would leave less error on most tokens, but saturate what makes the first token what it is: with that,
    the demo model loses ten times as much.
    """
    return positive(weight.abs().amax(dim=-1) / 127.0)


def input_scale(amax: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """The one scale [1] of smoothed inputs."""
    return positive((amax * p).max().reshape(1) / 127.0)


def rounded_inputs(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Smoothed inputs as the kernel computes with them."""
    return (x / scale).round_().clamp_(-128, 127).mul_(scale)
