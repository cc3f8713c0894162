"""Rotary tables, computed as transformers does (float32 angles), so that logits agree to rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trtbuild.runtime.features import Config, Rope, scaling_kind

if TYPE_CHECKING:
    import torch

    Scaled = tuple[torch.Tensor, float]


def rope_tables(ropes: Sequence[Rope], rotary_size: int, max_seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, float32 [tables, max_seq_len, rotary_size / 2]; at least one table, empty without rotation."""
    import torch

    cos = torch.empty(max(1, len(ropes)), max_seq_len, rotary_size // 2)
    sin = torch.empty_like(cos)
    for table, rope in enumerate(ropes):
        inverse, factor = _SCALINGS[scaling_kind(rope.scaling)](rope.base, rotary_size, rope.scaling)
        angles = torch.outer(torch.arange(max_seq_len, dtype=torch.float32), inverse)
        cos[table], sin[table] = angles.cos() * factor, angles.sin() * factor
    return cos, sin


def _powers(base: float, size: int) -> torch.Tensor:
    """base^(2i / size), float32 [size / 2]."""
    import torch

    powers: torch.Tensor = base ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
    return powers


def _default(base: float, size: int, scaling: Config) -> Scaled:
    return 1.0 / _powers(base, size), 1.0


def _linear(base: float, size: int, scaling: Config) -> Scaled:
    return 1.0 / _powers(base, size) / float(scaling.get("factor", 1.0)), 1.0


def _llama3(base: float, size: int, scaling: Config) -> Scaled:
    """Llama 3.1: long wavelengths are slowed by `factor`, short ones kept, those between are blended."""
    import torch

    inverse, factor = 1.0 / _powers(base, size), float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    context = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi / inverse
    blend = (context / wavelength - low) / (high - low)
    between = (1 - blend) * inverse / factor + blend * inverse
    slowed = torch.where(wavelength > context / low, inverse / factor, inverse)
    return torch.where((wavelength <= context / low) & (wavelength >= context / high), between, slowed), 1.0


def _yarn(base: float, size: int, scaling: Config) -> Scaled:
    """YaRN (https://arxiv.org/abs/2309.00071): fast frequencies kept, slow ones interpolated, a ramp between."""
    import torch

    factor, context = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    fast, slow = float(scaling.get("beta_fast") or 32), float(scaling.get("beta_slow") or 1)

    def dimension(rotations: float) -> float:
        return size * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(fast), dimension(slow)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = (torch.arange(size // 2, dtype=torch.float32) - low) / ((high - low) or 0.001)
    kept = 1 - ramp.clamp(0, 1)
    powers = _powers(base, size)
    inverse = 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept
    return inverse, _yarn_attention(scaling, factor)


def _yarn_attention(scaling: Config, factor: float) -> float:
    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if (given := scaling.get("attention_factor")) is not None:
        return float(given)
    over, under = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return scale(float(over)) / scale(float(under)) if over and under else scale(1.0)


def _longrope(base: float, size: int, scaling: Config) -> Scaled:
    """One of the two tables of LongRoPE: a factor for each frequency."""
    import torch

    factors = torch.tensor(scaling["factors"], dtype=torch.float32)
    return 1.0 / (factors * _powers(base, size)), float(scaling["attention_factor"])


_SCALINGS: dict[str, Callable[[float, int, Config], Any]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
