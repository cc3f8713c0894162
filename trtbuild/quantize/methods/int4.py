"""Int4 weight-only (W4A16): one scale for each output channel, activations unquantized.

The portable checkpoint keeps plain weights and sets `quant_algo`, as with int8; the target's engine build quantizes
each rank's shard by `values.symmetric`, which is TensorRT-LLM's formula. For most models int4_awq is far more exact.
"""

from __future__ import annotations

from trtbuild.quantize.method import Method

METHOD = Method(
    name="int4",
    quant_algo="W4A16",
    description="int4 weights, one scale per output channel; quantized by the engine build",
    weight_bits=4,
    dim_multiple=64,
    dtypes=("float16", "bfloat16"),
)
