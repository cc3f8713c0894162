"""Int4 AWQ weights computed with in fp8 (W4A8_AWQ): ModelOpt's W4A8_AWQ_BETA_CFG (checkpoint format 4.4, 6).

With search "compensate" the int4 weights are made as int4_awq makes them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trtbuild.float8 import E4M3_MAX, e4m3
from trtbuild.layout import Field
from trtbuild.quantize.awq import dequantized, own_prequants
from trtbuild.quantize.method import Fields, InputStats, LinearGroup, QuantOptions
from trtbuild.quantize.methods import int4_awq
from trtbuild.quantize.values import positive, require_finite, require_stats, stacked

if TYPE_CHECKING:
    import torch

METHOD = replace(
    int4_awq.METHOD,
    name="w4a8_awq",
    quant_algo="W4A8_AWQ",
    description="int4 AWQ weights, fp8 activations with one calibrated scale per layer",
    dim_multiple=128,
    fields=(
        *int4_awq.METHOD.fields,
        Field("activation_scaling_factor", "F32", 0, 0),
        Field("weights_scaling_factor_2", "F32", 0, 0),
    ),
    group_sizes=(128,),
)


def quantize(group: LinearGroup, stats: InputStats | None, options: QuantOptions) -> dict[str, Fields]:
    """Fields of each module. Raises CheckpointError as int4_awq, and for a layer that calibration never ran."""
    require_finite(group)
    found = require_stats(METHOD.name, group, stats, gram=True)
    made: dict[str, Fields] = {}
    for module, parts in group.modules.items():
        # ModelOpt searches with the int4 rounding alone, and has the largest input that some part's own p would give.
        modelopt = options.search == "modelopt"
        owns = own_prequants(parts, found, options.group_size, None if modelopt else _through_fp8)
        p = owns.mean(dim=0)
        largest = owns.amax(dim=0) if modelopt else p
        if options.search == "compensate":
            own = int4_awq.made_with(p, parts, found, options)
        else:
            own = int4_awq.fields(stacked(parts) / p, p, options.group_size)
        weights = dequantized(own["weight"], own["weights_scaling_factor"])
        scale = positive(weights.abs().amax(dim=(-2, -1)) / E4M3_MAX)
        # Over all experts, of which some may never have run.
        act = positive((found.amax.float() * largest).max() / E4M3_MAX).expand_as(scale)
        shape = (-1, 1) if weights.dim() == 3 else (1,)
        own["activation_scaling_factor"] = act.reshape(shape).contiguous()
        own["weights_scaling_factor_2"] = scale.reshape(shape)
        made[module] = own
    return made


def _through_fp8(weight: torch.Tensor) -> torch.Tensor:
    """Weights rounded to e4m3 with one scale for all of them."""

    scale = positive(weight.abs().max() / E4M3_MAX)
    return e4m3(weight / scale).float() * scale
