"""Int8 weights and activations, which the norms scale per token at run time: only read from quantized models.

TensorRT-LLM's plugin form W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN (checkpoint format 4.9; quantization/layers.py): inputs
of dense and proj are divided by `smoother`, norms multiply by `scale_to_int`; both are ones here.
"""

from __future__ import annotations

from trtbuild.layout import Field
from trtbuild.quantize.method import Method

METHOD = Method(
    name="int8_sq_token",
    quant_algo="W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
    description="int8 weights, int8 activations scaled per token; only read from models that have them",
    weight_bits=8,
    dtypes=("float16", "bfloat16"),
    fields=(
        Field("weight", "I8"),
        Field("per_channel_scale", "F32", 1, 0, lead=True),
        Field("smoother", "F32", 0, 1, lead=True, only=("dense", "proj")),
    ),
    experts=False,
    imported=True,
    norm_scales=True,
)
