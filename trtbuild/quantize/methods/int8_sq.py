"""SmoothQuant with int8 weights and activations (W8A8_SQ_PER_CHANNEL): ModelOpt's form (checkpoint format 4.8).

SmoothQuant: Xiao et al., 2022, https://arxiv.org/abs/2211.10438. Factors p = max |w|^(1 - alpha) / max |x|^alpha of the
input channels move the range from inputs to weights.
"""

from __future__ import annotations

from trtbuild.layout import Field
from trtbuild.quantize.method import Fields, InputStats, LinearGroup, Method, QuantOptions
from trtbuild.quantize.values import positive, require_finite, require_stats, stacked

_DEAD = 2.0**-31
"""An input channel that never exceeds it is left as it is, as in ModelOpt."""
_ALPHA = {"fine": 0.8, "modelopt": 1.0, "compensate": 0.8}
"""Search -> alpha. Where a channel of one token is hundreds of times beyond all others, 1.0 leaves that range to the
weights, and outputs lose the rest of theirs; 0.8 shares it (figures: quantize/README.md)."""

METHOD = Method(
    name="int8_sq",
    quant_algo="W8A8_SQ_PER_CHANNEL",
    description="int8 weights and activations, difficulty moved from activations to weights (SmoothQuant)",
    needs_calibration=True,
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
    import torch

    require_finite(group)
    found = require_stats(METHOD.name, group, stats)
    amax = found.amax.float().reshape(-1, found.amax.shape[-1]).amax(dim=0)
    alpha = _ALPHA[options.search]
    made: dict[str, Fields] = {}
    for module, parts in group.modules.items():
        weight = stacked(parts)
        weight_amax = weight.abs().reshape(-1, weight.shape[-1]).amax(dim=0)
        p = weight_amax.pow(1 - alpha) / amax.pow(alpha)
        p = torch.where(amax <= _DEAD, torch.ones_like(p), p).clamp(min=1e-4, max=1e4)
        # The factor is rounded before it multiplies, as ModelOpt does it.
        smoothed = weight * (1.0 / p)
        scale = positive(smoothed.abs().amax(dim=-1) / 127.0)
        made[module] = {
            "weight": (smoothed / scale.unsqueeze(-1)).round_().clamp_(-128, 127).to(torch.int8),
            "weights_scaling_factor": scale,
            "activation_scaling_factor": positive((amax * p).max().reshape(1) / 127.0),
            "prequant_scaling_factor": p.expand(*weight.shape[:-2], -1).contiguous(),
        }
    return made
