"""Int8 weights in groups of inputs, each with a zero point (W8A16_GPTQ): as int4_gptq, with 8 bits."""

from __future__ import annotations

from dataclasses import replace

from trtbuild.layout import Field
from trtbuild.quantize.methods import int4_gptq

METHOD = replace(
    int4_gptq.METHOD,
    name="int8_gptq",
    quant_algo="W8A16_GPTQ",
    description="int8 weights in groups of inputs with zero points; only read from GPTQ and such models",
    weight_bits=8,
    fields=(Field("weight", "I8", kernel_bits=8), *int4_gptq.METHOD.fields[1:]),
)
