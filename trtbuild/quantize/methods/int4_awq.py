"""Int4 weights in groups of inputs, activation-aware (W4A16_AWQ; checkpoint format 4.3, 6).

With search "modelopt" it is ModelOpt's INT4_AWQ_CFG; "fine" then also searches the scale of each group,
and "compensate" rounds weights so that the errors of the inputs of a linear make up for each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.layout import GROUP, Field
from trtbuild.quantize.awq import clipped_groups, compensated_groups, int4_groups, shared_prequant
from trtbuild.quantize.method import Fields, InputStats, LinearGroup, Method, QuantOptions
from trtbuild.quantize.values import require_finite, require_stats, stacked
from trtbuild.spec import SEARCHES

if TYPE_CHECKING:
    import torch

METHOD = Method(
    name="int4_awq",
    quant_algo="W4A16_AWQ",
    description="int4 weights in groups of inputs, scaled by calibrated activations (AWQ)",
    needs_calibration=True,
    gram_for=SEARCHES,
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
    found = require_stats(METHOD.name, group, stats, gram=True, seen=False)
    made: dict[str, Fields] = {}
    for module, parts in group.modules.items():
        p = shared_prequant(parts, found, options.group_size)
        made[module] = made_with(p, parts, found, options)
    return made


def made_with(p: torch.Tensor, parts: tuple[torch.Tensor, ...], stats: InputStats, options: QuantOptions) -> Fields:
    """Fields of a module whose parts have the factors p [in]."""
    smoothed = stacked(parts) / p
    if options.search == "modelopt" or stats.gram is None or not stats.tokens:
        return fields(smoothed, p, options.group_size)
    return searched_fields(smoothed, p, stats.gram, options)


def searched_fields(smoothed: torch.Tensor, p: torch.Tensor, gram: torch.Tensor, options: QuantOptions) -> Fields:
    """As `fields`, with the scales (and weights) that the inputs' gram [in, in] or [E, in, in] favours."""
    import torch

    groups = compensated_groups if options.search == "compensate" else clipped_groups
    met = (gram * p).mul_(p.unsqueeze(1))
    if smoothed.dim() == 2:
        q, scale = groups(smoothed, met, options.group_size)
    else:
        grams = met if met.dim() == 3 else met.expand(len(smoothed), -1, -1)
        pairs = [groups(weight, own, options.group_size) for weight, own in zip(smoothed, grams, strict=True)]
        q, scale = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
    return _stored(q, scale, p)


def fields(smoothed: torch.Tensor, p: torch.Tensor, group_size: int) -> Fields:
    """What is stored for weights W / p [.., out, in]."""
    return _stored(*int4_groups(smoothed, group_size), p)


def _stored(q: torch.Tensor, scale: torch.Tensor, p: torch.Tensor) -> Fields:
    return {
        "weight": q,
        "weights_scaling_factor": scale,
        "prequant_scaling_factor": p.expand(*q.shape[:-2], -1).contiguous(),
    }
