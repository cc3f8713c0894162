"""Int8 weight-only (W8A16): one scale for each output channel, activations unquantized.

The portable checkpoint keeps plain weights and sets `quant_algo`; the target's engine build quantizes each rank's
shard by `values.symmetric`, which is TensorRT-LLM's formula (cutlass_preprocessors.cpp, symmetric_quantize).
"""

from __future__ import annotations

from trtbuild.quantize.method import Method

METHOD = Method(
    name="int8",
    quant_algo="W8A16",
    description="int8 weights, one scale per output channel; quantized by the engine build",
    weight_bits=8,
    dim_multiple=64,
    dtypes=("float16", "bfloat16"),
)
