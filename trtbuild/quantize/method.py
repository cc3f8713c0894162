"""What a quantization method declares about itself. PURE."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """`quant_algo` is TensorRT-LLM's name, None for plain weights.

    `dim_multiple`: both dims of every quantized linear must be multiples of this x tp in TensorRT-LLM; 0 = free.
    `dtypes`: model dtypes that its kernels take there.
    """

    name: str
    quant_algo: str | None
    description: str
    needs_calibration: bool = False
    weight_bits: int = 16
    dim_multiple: int = 0
    dtypes: tuple[str, ...] = ("float16", "bfloat16", "float32")
