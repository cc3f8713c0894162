"""SmoothQuant with int8 weights and activations that the norms scale per token (checkpoint format 4.9).

TensorRT-LLM's plugin form W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN, made by the formula of its converters
(tensorrt_llm/models/llama/convert.py, smooth_gemm and generate_int8): factors s = max |x|^alpha / max |w|^(1 - alpha)
of the input channels multiply the weights. Inputs of dense and proj are divided by them at run time (`smoother`), and
the norms before the others are divided once and for all; the norms' own scale, `scale_to_int`, is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.layout import Field
from trtbuild.quantization import DEFAULTS
from trtbuild.quantize.method import Fields, InputStats, LinearGroup, Method, QuantOptions
from trtbuild.quantize.values import positive, require_finite, require_stats, stacked

if TYPE_CHECKING:
    import torch

ALPHA = DEFAULTS["smoothquant_val"]
"""The default of TensorRT-LLM's QuantConfig, which a checkpoint's config.json says, too."""
_DEAD = 2.0**-31
"""An input channel that never exceeds it is left as it is, as by `int8_sq`: no norm is divided by almost 0."""
_LEAST = 1e-5

METHOD = Method(
    name="int8_sq_token",
    quant_algo="W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
    description="int8 weights, int8 activations scaled per token, difficulty moved to weights (SmoothQuant)",
    needs_calibration=True,
    weight_bits=8,
    dtypes=("float16", "bfloat16"),
    fields=(
        Field("weight", "I8"),
        Field("per_channel_scale", "F32", 1, 0, lead=True),
        Field("smoother", "F32", 0, 1, lead=True, only=("dense", "proj")),
    ),
    head=False,
    experts=False,
    norm_scales=True,
)


def quantize(group: LinearGroup, stats: InputStats | None, options: QuantOptions) -> dict[str, Fields]:
    """Fields of each module, which all share one smoother: where it is not stored, the norm before takes it.

    Raises:
        CheckpointError: weights that are not finite, statistics that are absent or cannot be.
    """
    import torch

    require_finite(group)
    found = require_stats(METHOD.name, group, stats)
    weights = {module: stacked(parts) for module, parts in group.modules.items()}
    weight_amax = torch.stack([weight.abs().amax(dim=0) for weight in weights.values()]).amax(dim=0)
    s = _smoother(found.amax.float(), weight_amax)
    made: dict[str, Fields] = {}
    for module, weight in weights.items():
        smoothed = weight * s
        amax = positive(smoothed.abs().amax(dim=-1))
        q = (smoothed * (127.0 / amax).unsqueeze(-1)).round_().clamp_(-127, 127).to(torch.int8)
        made[module] = {"weight": q, "per_channel_scale": amax / 127.0, "smoother": s.clone()}
    return made


def _smoother(amax: torch.Tensor, weight_amax: torch.Tensor) -> torch.Tensor:
    """s [in] of the greatest magnitudes of the inputs and of the weights; 1 where either never is anything."""
    import torch

    s = amax.pow(ALPHA) / weight_amax.pow(1 - ALPHA)
    return torch.where((amax <= _DEAD) | (weight_amax == 0), torch.ones_like(s), s.clamp(min=_LEAST))
