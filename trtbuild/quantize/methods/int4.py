"""Int4 weight-only (W4A16): one scale for each output channel, activations unquantized.

The portable checkpoint keeps plain weights and sets `quant_algo`, as with int8; the target's engine build quantizes
each rank's shard by `quantize`, which is TensorRT-LLM's formula. For most models int4_awq is far more exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.quantize.method import Method
from trtbuild.quantize.values import symmetric

if TYPE_CHECKING:
    import torch

METHOD = Method(
    name="int4",
    quant_algo="W4A16",
    description="int4 weights, one scale per output channel; quantized by the engine build",
    weight_bits=4,
    dim_multiple=64,
    dtypes=("float16", "bfloat16"),
)


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize a weight [out, in] -> (q int8 [out, in] in -8..7, scale float32 [out]); q * scale approximates it.

    The formula is that of `values.symmetric`. Store the scale cast to the model's dtype.
    """
    return symmetric(weight, 4)
