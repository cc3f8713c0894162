"""Rotary tables, computed as transformers does (float32 angles), so that logits agree to rounding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SCALING_TYPES = ("default", "linear", "llama3")


def rope_tables(config: dict[str, Any], rotary_size: int, max_seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, float32 [max_seq_len, rotary_size / 2]; `rotary_scaling` is one of SCALING_TYPES."""
    import torch

    base = float(config.get("rotary_base", 10000.0))
    inverse = 1.0 / (base ** (torch.arange(0, rotary_size, 2, dtype=torch.int64).float() / rotary_size))
    inverse = _scaled(inverse, config.get("rotary_scaling") or {})
    angles = torch.outer(torch.arange(max_seq_len, dtype=torch.float32), inverse)
    return angles.cos().contiguous(), angles.sin().contiguous()


def _scaled(inverse: torch.Tensor, scaling: dict[str, Any]) -> torch.Tensor:
    import torch

    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return inverse
    factor = float(scaling.get("factor", 1.0))
    if kind == "linear":
        return inverse / factor
    assert kind == "llama3", kind  # build_program refused the others
    # Llama 3.1: long wavelengths are slowed by `factor`, short ones kept, those between are blended.
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    context = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi / inverse
    blend = (context / wavelength - low) / (high - low)
    between = (1 - blend) * inverse / factor + blend * inverse
    slowed = torch.where(wavelength > context / low, inverse / factor, inverse)
    return torch.where((wavelength <= context / low) & (wavelength >= context / high), between, slowed)
