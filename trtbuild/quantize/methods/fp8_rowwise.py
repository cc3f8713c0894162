"""Fp8 weights with a scale per output, activations scaled per token at run time (checkpoint format 4.7).

TensorRT-LLM calls it FP8_PER_CHANNEL_PER_TOKEN; the formula is that of its quantization/functional.py.
"""

from __future__ import annotations

from trtbuild.float8 import E4M3_MAX, LEAST_STEP, e4m3
from trtbuild.layout import Field
from trtbuild.quantize.method import Fields, InputStats, LinearGroup, Method, QuantOptions
from trtbuild.quantize.values import require_finite, stacked

METHOD = Method(
    name="fp8_rowwise",
    quant_algo="FP8_PER_CHANNEL_PER_TOKEN",
    description="fp8 (e4m3) weights, one scale per output channel; activations scaled per token, no calibration",
    weight_bits=8,
    dtypes=("float16", "bfloat16"),
    fields=(Field("weight", "F8_E4M3"), Field("per_channel_scale", "F32", 1, 0)),
    experts=False,
    head=False,
)


def quantize(group: LinearGroup, stats: InputStats | None, options: QuantOptions) -> dict[str, Fields]:
    """Fields of each module; `stats` and `options` are not needed. Raises CheckpointError for NaN or infinity."""
    require_finite(group)
    made: dict[str, Fields] = {}
    for module, parts in group.modules.items():
        weight = stacked(parts)
        scale = (weight.abs().amax(dim=-1) / E4M3_MAX).clamp(min=LEAST_STEP)
        made[module] = {"weight": e4m3(weight / scale.unsqueeze(-1)), "per_channel_scale": scale}
    return made
