"""Int8 weight-only (W8A16): one scale for each output channel, activations unquantized.

The portable checkpoint keeps plain weights and sets `quant_algo`; the target's engine build quantizes each rank's
shard by `quantize`, which is TensorRT-LLM's formula (cutlass_preprocessors.cpp, symmetric_quantize).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.quantize.method import Method
from trtbuild.quantize.values import symmetric

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

    The formula is that of `values.symmetric`. Store the scale cast to the model's dtype.
    """
    return symmetric(weight, 8)
