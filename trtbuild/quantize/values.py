"""What every method checks of its inputs, and the scale rules that methods share. Legend: E experts or 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.errors import CheckpointError
from trtbuild.float8 import E4M3_MAX
from trtbuild.quantize.method import InputStats, LinearGroup

if TYPE_CHECKING:
    import torch


def require_finite(group: LinearGroup) -> None:
    """Raise CheckpointError that names every module with NaN or infinite weights and how many of them."""
    import torch

    found = []
    for module, parts in group.modules.items():
        bad = sum(int((~torch.isfinite(part)).sum()) for part in parts)
        if bad:
            found.append(f"{module}: {bad} of {sum(part.numel() for part in parts)} weights are NaN or infinite")
    if found:
        raise CheckpointError("\n".join(["these weights cannot be quantized:", *(f"  - {text}" for text in found)]))


def require_stats(
    method: str, group: LinearGroup, stats: InputStats | None, *, gram: bool = False, seen: bool = True
) -> InputStats:
    """The statistics, checked against the weights.

    `seen`: without a token that calibration ran through these layers there is no activation scale.

    Raises:
        CheckpointError: there are none, or their shapes, signs or numbers cannot be what calibration saw.
    """
    import torch

    names = ", ".join(group.modules)
    if stats is None:
        raise CheckpointError(f"{method} needs calibration, but {names} has none", hint="Calibrate the model first.")
    first = next(iter(group.modules.values()))[0]
    width, experts = first.shape[-1], first.shape[0] if first.dim() == 3 else 0
    shapes = {(width,), (experts, width)} if experts else {(width,)}
    found = [] if stats.tokens >= 0 else [f"tokens is {stats.tokens}"]
    for name in ("amax", "abs_mean"):
        value: torch.Tensor = getattr(stats, name)
        if tuple(value.shape) not in shapes:
            found.append(f"{name} has shape {list(value.shape)}, but the layer has {width} inputs")
        elif not bool(torch.isfinite(value).all()):
            found.append(f"{name} has {int((~torch.isfinite(value)).sum())} NaN or infinite values")
        elif bool((value < 0).any()):
            found.append(f"{name} has {int((value < 0).sum())} negative values, the least {float(value.min()):g}")
    if gram and stats.gram is None and stats.tokens:
        found.append("gram is absent")
    if gram and stats.gram is not None:
        if tuple(stats.gram.shape) not in {(*shape, width) for shape in shapes}:
            found.append(f"gram has shape {list(stats.gram.shape)}, but the layer has {width} inputs")
        elif not bool(torch.isfinite(stats.gram).all()):
            found.append(f"gram has {int((~torch.isfinite(stats.gram)).sum())} NaN or infinite values")
        elif bool((stats.gram.diagonal(dim1=-2, dim2=-1) < 0).any()):
            found.append("gram has negative values on its diagonal")
    if found:
        lines = "\n".join(f"  - {text}" for text in found)
        raise CheckpointError(
            f"the calibration of {names} cannot be used by {method}:\n{lines}", hint="Calibrate the model again."
        )
    if seen and not stats.tokens:
        raise CheckpointError(
            f"calibration never ran {names}: {method} has no activation scale for it",
            hint="Calibrate with more samples.",
        )
    return stats


def positive(scale: torch.Tensor) -> torch.Tensor:
    """Scales with 1 in place of 0: what is all zeros is zero at any scale."""
    import torch

    return torch.where(scale > 0, scale, torch.ones_like(scale))


def stacked(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Parts [.., out, in] -> one weight [.., out, in], float32."""
    import torch

    return torch.cat([part.detach().to(torch.float32) for part in parts], dim=-2)


def kv_cache_scale(algo: str, k_amax: float, v_amax: float) -> torch.Tensor:
    """kv_cache_scaling_factor [1] of `algo` INT8 or FP8, as ModelOpt: an FP8 scale is never below 1.

    Raises:
        CheckpointError: a greatest magnitude that is NaN, infinite or negative, or an unknown algorithm.
    """
    import torch

    amax = max(k_amax, v_amax)
    if not all(0 <= value < float("inf") for value in (k_amax, v_amax)):
        raise CheckpointError(f"KV cache amax cannot be k {k_amax:g}, v {v_amax:g}", hint="Calibrate the model again.")
    if algo not in ("INT8", "FP8"):
        raise CheckpointError(f"unknown KV cache quantization {algo!r}; supported: INT8, FP8")
    scale = torch.tensor([amax], dtype=torch.float32)
    return positive(scale / 127) if algo == "INT8" else (scale / E4M3_MAX).clamp(min=1.0)


def symmetric(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [out, in] -> (q int8 [out, in] of `bits` 8 or 4, scale float32 [out]): q * scale approximates the weight.

    TensorRT-LLM's formula (cutlass_preprocessors.cpp, symmetric_quantize). Scale = amax / 128 or amax / 8, so a
    channel's positive maximum saturates: that is upstream's choice. Rounds half away from zero; a channel of zeros has
    scale 0 and q 0.
    """
    import torch

    top = 1 << (bits - 1)
    wide = weight.detach().to(torch.float32)
    scale = wide.abs().amax(dim=1) / float(top)
    ratio = wide / torch.where(scale == 0, torch.ones_like(scale), scale).unsqueeze(1)
    # torch.round rounds half to even. Adding 0.5 would itself round just below a half, so the fraction decides.
    whole = ratio.trunc()
    away = whole + torch.where((ratio - whole).abs() >= 0.5, ratio.sign(), torch.zeros_like(ratio))
    return away.clamp_(-top, top - 1).to(torch.int8), scale
