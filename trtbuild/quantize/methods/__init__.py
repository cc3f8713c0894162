"""The table of methods: add a file beside this one and a row here. Declarations only, nothing heavy."""

from __future__ import annotations

from collections.abc import Callable

from trtbuild.quantize.method import Fields, InputStats, LinearGroup, Method, QuantOptions
from trtbuild.quantize.methods import (
    fp8,
    fp8_rowwise,
    int4,
    int4_awq,
    int4_gptq,
    int8,
    int8_gptq,
    int8_sq,
    int8_sq_token,
    none,
    w4a8_awq,
)

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD
    for module in (
        *(none, int8, int4, int4_awq, w4a8_awq, int8_sq, fp8, fp8_rowwise),
        *(int4_gptq, int8_gptq, int8_sq_token),
    )
}

Quantize = Callable[[LinearGroup, InputStats | None, QuantOptions], dict[str, Fields]]

QUANTIZE: dict[str, Quantize] = {
    module.METHOD.name: module.quantize for module in (int4_awq, w4a8_awq, int8_sq, int8_sq_token, fp8, fp8_rowwise)
}
"""The arithmetic of each method that has fields and is not only read from quantized models."""
