"""SmoothQuant with int8 weights and activations (W8A8_SQ_PER_CHANNEL): ModelOpt's form (checkpoint format 4.8).

With search "modelopt" it is ModelOpt's INT8_SMOOTHQUANT_CFG; "fine" searches the factors of each linear, and rounds
weights so that the errors of its inputs make up for each other.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from trtbuild.layout import Field
from trtbuild.quantize.compensate import compensated
from trtbuild.quantize.method import Fields, InputStats, LinearGroup, Method, QuantOptions
from trtbuild.quantize.smoothing import input_scale, rounded_inputs, row_scales, searched_smoothing, smoothing
from trtbuild.quantize.values import require_finite, require_seen, require_stats, stacked

if TYPE_CHECKING:
    import torch

METHOD = Method(
    name="int8_sq",
    quant_algo="W8A8_SQ_PER_CHANNEL",
    description="int8 weights and activations, difficulty moved from activations to weights (SmoothQuant)",
    needs_calibration=True,
    gram_for=("fine",),
    weight_bits=8,
    dtypes=("float16", "bfloat16"),
    fields=(
        Field("weight", "I8"),
        Field("weights_scaling_factor", "F32", 1, 0),
        Field("activation_scaling_factor", "F32", 0, 0, shared=True),
        Field("prequant_scaling_factor", "", 0, 1),
    ),
)


def quantize(group: LinearGroup, stats: InputStats | None, options: QuantOptions) -> dict[str, Fields]:
    """Fields of each module; its parts (and experts) share p.

    Raises:
        CheckpointError: weights that are not finite, statistics that are absent or cannot be.
    """
    require_finite(group)
    found = require_stats(METHOD.name, group, stats)
    require_seen(METHOD.name, group, found)
    width = found.amax.shape[-1]
    amax = found.amax.float().reshape(-1, width).amax(dim=0)
    fine = options.search == "fine" and found.gram is not None and found.sample is not None
    made: dict[str, Fields] = {}
    for module, parts in group.modules.items():
        weight = stacked(parts)
        made[module] = _searched(weight, amax, found) if fine else _fields(weight, amax, options.alpha)
    return made


def _fields(weight: torch.Tensor, amax: torch.Tensor, alpha: float) -> Fields:
    """ModelOpt's numbers of a weight [.., out, in]."""
    p = smoothing(weight.abs().reshape(-1, weight.shape[-1]).amax(dim=0), amax, alpha)
    smoothed = weight * (1.0 / p)  # the factor is rounded before it multiplies, as ModelOpt does it
    return _stored(smoothed, row_scales(smoothed), p, amax)


def _searched(weight: torch.Tensor, amax: torch.Tensor, stats: InputStats) -> Fields:
    """As `_fields`, with the factors and weights that leave least error on the calibration inputs."""
    import torch

    assert stats.gram is not None
    assert stats.sample is not None
    width = weight.shape[-1]
    grams = stats.gram.reshape(-1, width, width)
    p = searched_smoothing(weight.reshape(-1, width), amax, grams.mean(dim=0), stats.sample)
    x = stats.sample * p
    noise = (rounded_inputs(x, input_scale(amax, p)) - x).square_().mean(dim=0)
    smoothed = weight * (1.0 / p)
    scale = row_scales(smoothed)
    values = []
    for number, own in enumerate(smoothed.reshape(-1, *weight.shape[-2:])):
        met = grams[number % len(grams)] * p.unsqueeze(1) * p
        met.diagonal().add_(noise)  # the inputs that the weights meet are rounded too
        values.append(compensated(own, met, partial(_rounded, scale.reshape(-1, scale.shape[-1])[number])))
    return _stored(torch.stack(values).reshape(weight.shape), scale, p, amax)


def _rounded(scale: torch.Tensor, column: torch.Tensor, _channel: int) -> torch.Tensor:
    return (column / scale).round_().clamp_(-128, 127).mul_(scale)


def _stored(smoothed: torch.Tensor, scale: torch.Tensor, p: torch.Tensor, amax: torch.Tensor) -> Fields:
    import torch

    return {
        "weight": (smoothed / scale.unsqueeze(-1)).round_().clamp_(-128, 127).to(torch.int8),
        "weights_scaling_factor": scale,
        "activation_scaling_factor": input_scale(amax, p),
        "prequant_scaling_factor": p.expand(*smoothed.shape[:-2], -1).contiguous(),
    }
