"""Plain weights in the model's dtype."""

from __future__ import annotations

from trtbuild.quantize.method import Method

METHOD = Method(name="none", quant_algo=None, description="weights in float16, bfloat16 or float32")
