"""The float8 format e4m3fn: its greatest number, and a cast that stops there. Imports torch late."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

E4M3_MAX = 448.0
LEAST_STEP = 1.0 / (E4M3_MAX * 512.0)
"""The smallest scale of a row or a token (NVIDIA/TensorRT-LLM tensorrt_llm/quantization/functional.py)."""


def e4m3(ratio: torch.Tensor) -> torch.Tensor:
    """Cast with saturation, which a plain cast of torch does not have: far above 448 it gives NaN."""
    import torch

    return ratio.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
