"""Int8 weight-only (W8A16): one scale for each output channel, activations unquantized.

The portable checkpoint keeps plain weights and sets `quant_algo`; the target's engine build quantizes each rank's
shard by `quantize`, which is TensorRT-LLM's formula (cutlass_preprocessors.cpp, symmetric_quantize).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.quantize.method import Method

if TYPE_CHECKING:
    import torch

METHOD = Method(
    name="int8",
    quant_algo="W8A16",
    description="int8 weights, one scale per output channel; quantized by the engine build",
    weight_bits=8,
    dim_multiple=64,
    dtypes=("float16", "bfloat16"),
)


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize a weight [out, in] -> (q int8 [out, in], scale float32 [out]); q * scale approximates the weight.

    Scale = amax / 128, so a channel's positive maximum saturates at 127: that is upstream's choice. Rounds half away
    from zero; a channel of zeros has scale 0 and q 0. Store the scale cast to the model's dtype.
    """
    import torch

    wide = weight.detach().to(torch.float32)
    scale = wide.abs().amax(dim=1) / 128.0
    ratio = wide / torch.where(scale == 0, torch.ones_like(scale), scale).unsqueeze(1)
    # torch.round rounds half to even. Adding 0.5 would itself round just below a half, so the fraction decides.
    whole = ratio.trunc()
    away = whole + torch.where((ratio - whole).abs() >= 0.5, ratio.sign(), torch.zeros_like(ratio))
    return away.clamp_(-128, 127).to(torch.int8), scale
