"""Fp8 weights and activations with one scale per tensor (FP8): ModelOpt's FP8_DEFAULT_CFG (checkpoint format 4.6).

The scales are ModelOpt's. Each weight is rounded to its nearest; with search "compensate" so that the errors of the
inputs of a linear make up for each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.float8 import E4M3_MAX, e4m3
from trtbuild.layout import Field
from trtbuild.quantize.compensate import compensated
from trtbuild.quantize.method import Fields, InputStats, LinearGroup, Method, QuantOptions
from trtbuild.quantize.values import positive, require_finite, require_stats, stacked

if TYPE_CHECKING:
    import torch

METHOD = Method(
    name="fp8",
    quant_algo="FP8",
    description="fp8 (e4m3) weights and activations, one calibrated scale per tensor",
    needs_calibration=True,
    gram_for=("compensate",),
    weight_bits=8,
    dtypes=("float16", "bfloat16"),
    fields=(
        Field("weight", "F8_E4M3"),
        Field("weights_scaling_factor", "F32", 0, 0),
        Field("activation_scaling_factor", "F32", 0, 0, shared=True),
    ),
)


def quantize(group: LinearGroup, stats: InputStats | None, options: QuantOptions) -> dict[str, Fields]:
    """Fields of each module; q, k, v share a scale, and fc and gate do (the engine build fuses them).

    Raises:
        CheckpointError: weights that are not finite, statistics that are absent or cannot be.
    """
    require_finite(group)
    found = require_stats(METHOD.name, group, stats)
    activation = positive(found.amax.float().max().reshape(1) / E4M3_MAX)
    weights = {module: stacked(parts) for module, parts in group.modules.items()}
    scales: dict[str, torch.Tensor] = {}  # by block ("mlp"): [1], or [E, 1]
    for module, weight in weights.items():
        block = module.rpartition(".")[0]
        amax = weight.abs().amax(dim=(-2, -1)).unsqueeze(-1) / E4M3_MAX
        scales[block] = amax.maximum(scales[block]) if block in scales else amax
    gram = found.gram if options.search == "compensate" else None
    made: dict[str, Fields] = {}
    for module, weight in weights.items():
        scale = positive(scales[module.rpartition(".")[0]])
        made[module] = {
            "weight": e4m3(weight / scale.unsqueeze(-1)) if gram is None else _compensated(weight, scale, gram),
            "weights_scaling_factor": scale.clone(),
            "activation_scaling_factor": activation.clone(),
        }
    return made


def _compensated(weight: torch.Tensor, scale: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """Weights [.., out, in] of a scale [.., 1] in e4m3; `gram` [in, in] or [E, in, in]."""
    import torch

    width = weight.shape[-1]
    grams = gram.reshape(-1, width, width)
    found = [
        e4m3(compensated(own, grams[number % len(grams)], lambda column, _: e4m3(column).float())).view(torch.int8)
        for number, own in enumerate((weight / scale.unsqueeze(-1)).reshape(-1, *weight.shape[-2:]))
    ]
    return torch.stack(found).reshape(weight.shape).view(torch.float8_e4m3fn)
