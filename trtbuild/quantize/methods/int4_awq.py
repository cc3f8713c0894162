"""Int4 weights in groups of inputs, activation-aware (W4A16_AWQ): ModelOpt INT4_AWQ_CFG (checkpoint format 4.3, 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.layout import GROUP, Field
from trtbuild.quantize.awq import int4_groups, shared_prequant
from trtbuild.quantize.method import Fields, InputStats, LinearGroup, Method, QuantOptions
from trtbuild.quantize.values import require_finite, require_stats, stacked

if TYPE_CHECKING:
    import torch

METHOD = Method(
    name="int4_awq",
    quant_algo="W4A16_AWQ",
    description="int4 weights in groups of inputs, scaled by calibrated activations (AWQ)",
    needs_calibration=True,
    needs_gram=True,
    weight_bits=4,
    dim_multiple=64,
    dtypes=("float16", "bfloat16"),
    fields=(
        Field("weight", "I8", packed=2),
        Field("weights_scaling_factor", "F32", 1, GROUP),
        Field("prequant_scaling_factor", "", 0, 1),
    ),
    group_sizes=(64, 128),
    config={"pre_quant_scale": True, "has_zero_point": False},
)


def quantize(group: LinearGroup, stats: InputStats | None, options: QuantOptions) -> dict[str, Fields]:
    """Fields of each module; the parts of one share p, modules do not (fc and gate keep their own).

    Raises:
        CheckpointError: weights that are not finite, statistics that are absent or cannot be.
    """
    require_finite(group)
    found = require_stats(METHOD.name, group, stats, gram=True)
    made: dict[str, Fields] = {}
    for module, parts in group.modules.items():
        p = shared_prequant(parts, found, options.group_size)
        made[module] = fields(stacked(parts) / p, p, options.group_size)
    return made


def fields(smoothed: torch.Tensor, p: torch.Tensor, group_size: int) -> Fields:
    """What is stored for weights W / p [.., out, in]."""
    q, scale = int4_groups(smoothed, group_size)
    return {
        "weight": q,
        "weights_scaling_factor": scale,
        "prequant_scaling_factor": p.expand(*smoothed.shape[:-2], -1).contiguous(),
    }
