"""Int4 weights in groups of inputs, each with a zero point (W4A16_GPTQ): read from GPTQ and AWQ models, never made.

Stored as the kernels of one SM read it (checkpoint format 4.5): TensorRT-LLM's build changes nothing of it.
Source: postprocess_weight_only_groupwise in tensorrt_llm/quantization/functional.py.
"""

from __future__ import annotations

from trtbuild.layout import GROUP, Field
from trtbuild.quantize.method import Method

METHOD = Method(
    name="int4_gptq",
    quant_algo="W4A16_GPTQ",
    description="int4 weights in groups of inputs with zero points; only read from GPTQ, AWQ and such models",
    weight_bits=4,
    dim_multiple=64,
    dtypes=("float16", "bfloat16"),
    # A weight is q * weights_scaling_factor + zero.
    fields=(
        Field("weight", "I8", kernel_bits=4),
        Field("weights_scaling_factor", "", 1, GROUP, transposed=True),
        Field("zero", "", 1, GROUP, transposed=True),
    ),
    group_sizes=(64, 128),
    config={"pre_quant_scale": False, "has_zero_point": True},
    experts=False,
    imported=True,
    bias_once=True,
)
