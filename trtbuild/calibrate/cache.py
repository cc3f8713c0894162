"""The scale of an int8 KV cache by what it does to a layer's output.

Keys and values share one scale in the format, though keys can be many times larger, and rotary embedding turns keys
beyond what the linear gave. So clipping a few keys can cost less than coarse values, or the contrary: layers differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from trtbuild.runtime.blockwise import LayerRun

SEQUENCES = 3
"""Calibration sequences that a candidate runs on."""
_FACTORS = (1.0, 1.2, 1.1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


def searched_factor(run: LayerRun, scale: torch.Tensor, hidden: Sequence[torch.Tensor]) -> float:
    """The factor of `scale` [1] with which the outputs of a layer, hidden states [T, H], are nearest to exact ones.

    Errors count relative to each token's output: the first token's can be a thousand times as large as the others'.
    """
    exact = [run.run(states).clone() for states in hidden]

    def error(factor: float) -> float:
        rounded = run.with_cache("INT8", scale * factor)
        return sum(
            float(((rounded.run(states) - wanted).square().sum(1) / wanted.square().sum(1).clamp(min=1e-30)).sum())
            for states, wanted in zip(hidden, exact, strict=True)
        )

    return min(_FACTORS, key=error)
