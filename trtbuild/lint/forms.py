"""How each quantization stores a linear layer: the tensors that take the place of `X.weight`. PURE.

Source: checkpoint format 4.2 to 4.10. Legend: a rank's plain weight is [..., out, in], `...` = experts or nothing;
g = group size. A scalar may be stored as [1] or as [].
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from trtbuild.layout import KV_SCALES, Job
from trtbuild.lint import tables
from trtbuild.lint.quantization import Quant

FLOATS = ("F32", "F16", "BF16")
ONE = ((1,), ())
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Expected:
    """One tensor that must be there: dtypes that are right (the first is written), and shapes that are."""

    name: str
    dtypes: tuple[str, ...]
    shapes: tuple[Shape, ...]
    values: str = "finite"
    """What its numbers must be: `finite`, `positive`, `not negative` (scales), `weight` (finite, not all zeros), `fp8`
    (bytes of e4m3), or `bits` (anything)."""
    same: bool = False
    """Whether every tensor-parallel rank of the stage should hold the same bytes."""
    doubtful: tuple[Shape, ...] = ()
    """Shapes of which nobody knows whether the loader takes them."""
    job: Job | None = None
    """Where a plain tensor's rows come from."""


_LINEAR = re.compile(r"(?:^|\.)(qkv|dense|fc|gate|proj|lm_head|router|shared_expert_gate)\.weight$")
_INNER = re.compile(r"\.layers\.\d+\..*\b(qkv|dense|fc|gate|proj)\.weight$")


def quantized(job: Job, quant: Quant, first_or_last: bool, stored: str) -> list[Expected] | None:
    """The tensors of a quantized linear, or None where `job` stays plain.

    `stored` is the dtype found in the file: weight-only has two forms, told apart by it (format 4.2).
    """
    match = _LINEAR.search(job.name)
    if match is None or len(job.shape) < 2:
        return None
    module, whole = job.name.removesuffix(".weight"), job.group.removesuffix(".weight")
    if quant.algo in tables.PLUGIN_SQ:
        return _plugin(job, module, quant) if _INNER.search(job.name) else None
    if quant.algo == "MIXED_PRECISION":
        quant = quant.layers.get(whole, Quant())
    elif quant.excludes(module):
        return None
    if quant.algo not in _FORMS or (quant.algo in ("W8A16", "W4A16") and stored not in ("I8", "U8")):
        return None
    if quant.algo == "FP8_PER_CHANNEL_PER_TOKEN":
        skipped = quant.meta_recipe and (first_or_last or ".attention." in job.name)
        if skipped or not _INNER.search(job.name):
            return None
    return _FORMS[quant.algo](job, module, quant)


def is_linear(name: str) -> bool:
    """Whether a weight belongs to a linear layer of the transformer's layers: what quantization is about."""
    return _INNER.search(name) is not None


def dim_multiple(quant: Quant, tp_size: int) -> int:
    """What both whole dims of a quantized linear must be multiples of; 0 = free (format 4.1)."""
    if quant.algo in ("W8A16", "W4A16"):
        return 64 * tp_size
    if quant.group_wise:
        return max(128 if quant.algo == "W4A8_AWQ" else 64, quant.group_size) * tp_size
    return 0


def attention_extras(jobs: tuple[Job, ...], quant: Quant, names: set[str]) -> list[Expected]:
    """Scales of attention and norms that belong to no weight: KV cache, plugin SmoothQuant."""
    found: list[Expected] = []
    for job in jobs:
        if quant.kv_algo and job.name.endswith("attention.qkv.weight"):
            at = job.name.removesuffix("qkv.weight")
            both, *split = (at + name for name in KV_SCALES)
            # TensorRT-LLM takes the larger of the two where they are there, whatever the one for both says.
            divided = any(name in names for name in split)
            wanted = [*([both] if both in names or not divided else []), *(split if divided else [])]
            found += [Expected(name, ("F32",), ONE, "positive", same=True) for name in wanted]
        if quant.algo not in tables.PLUGIN_SQ:
            continue
        static = not quant.algo.endswith("PER_TOKEN_PLUGIN")
        if job.name.endswith(("input_layernorm.weight", "post_layernorm.weight")) and ".layers." in job.name:
            at = job.name.removesuffix("weight")
            found.append(Expected(f"{at}scale_to_int", FLOATS, ONE, "positive", same=True))
        if static and job.name.endswith((".attention.dense.weight", ".mlp.proj.weight")):
            at = job.name.rsplit(".", 2)[0]
            found.append(Expected(f"{at}.quantization_scaling_factor", ("F32",), ONE, "positive", same=True))
    return found


def _weight_only(bits: int) -> Callable[[Job, str, Quant], list[Expected]]:
    def form(job: Job, module: str, _quant: Quant) -> list[Expected]:
        *lead, out, width = job.shape
        return [
            Expected(job.name, ("I8",), ((*lead, width, out * bits // 8),), "weight"),
            Expected(f"{module}.per_channel_scale", (job.dtype,), ((*lead, out),), "not negative"),
        ]

    return form


def _awq(job: Job, module: str, quant: Quant) -> list[Expected]:
    *lead, out, width = job.shape
    groups = width // quant.group_size
    found = [
        Expected(job.name, ("I8",), ((*lead, out // 2, width),), "weight"),
        Expected(f"{module}.weights_scaling_factor", FLOATS, ((*lead, out, groups),), "positive"),
    ]
    if quant.pre_quant_scale or quant.algo == "W4A8_AWQ":
        same = not _by_rows(module)
        found.append(Expected(f"{module}.prequant_scaling_factor", (job.dtype,), ((*lead, width),), "positive", same))
    if quant.algo == "W4A8_AWQ":
        scalar = ((lead[0], 1), *ONE, (lead[0],)) if lead else ONE
        for name in ("activation_scaling_factor", "weights_scaling_factor_2"):
            found.append(Expected(f"{module}.{name}", ("F32",), scalar, "positive", same=not lead))
    return found


def _gptq(bits: int) -> Callable[[Job, str, Quant], list[Expected]]:
    def form(job: Job, module: str, quant: Quant) -> list[Expected]:
        *lead, out, width = job.shape
        groups = width // quant.group_size
        size = {"F32": 32}.get(job.dtype, 16)
        return [
            # Bytes under the model's dtype: as numbers they mean nothing, NaN included.
            Expected(job.name, (job.dtype,), ((*lead, width, out * bits // size),), "bits"),
            Expected(f"{module}.weights_scaling_factor", (job.dtype,), ((*lead, groups, out),), "not negative"),
            Expected(f"{module}.zero", (job.dtype,), ((*lead, groups, out),), "finite"),
        ]

    return form


def _fp8(job: Job, module: str, _quant: Quant) -> list[Expected]:
    *lead, _out, _width = job.shape
    per_weight = ((lead[0], 1),) if lead else ONE
    return [
        Expected(job.name, ("F8_E4M3", "I8"), (job.shape,), "fp8"),
        Expected(f"{module}.weights_scaling_factor", ("F32",), per_weight, "positive", not lead, (tuple(lead),)),
        Expected(f"{module}.activation_scaling_factor", ("F32",), ONE, "positive", same=not lead),
    ]


def _fp8_rowwise(job: Job, module: str, _quant: Quant) -> list[Expected]:
    return [
        Expected(job.name, ("F8_E4M3", "I8"), (job.shape,), "fp8"),
        Expected(f"{module}.per_channel_scale", ("F32",), (job.shape[:-1],), "positive"),
    ]


def _smooth(job: Job, module: str, _quant: Quant) -> list[Expected]:
    *lead, out, width = job.shape
    same = not _by_rows(module)
    return [
        Expected(job.name, ("I8",), (job.shape,), "weight"),
        Expected(f"{module}.weights_scaling_factor", ("F32",), ((*lead, out),), "positive"),
        Expected(f"{module}.activation_scaling_factor", ("F32",), ONE, "positive", same=not lead),
        Expected(f"{module}.prequant_scaling_factor", (job.dtype,), ((*lead, width),), "positive", same=same),
    ]


def _plugin(job: Job, module: str, quant: Quant) -> list[Expected]:
    out, width = job.shape[-2:]
    per_channel = "SQ_PER_CHANNEL" in quant.algo or module.endswith("qkv")
    scale: tuple[Shape, ...] = ((1, out),) if per_channel else ((1, 1),)
    found = [
        Expected(job.name, ("I8",), (job.shape,), "weight"),
        Expected(f"{module}.per_channel_scale", ("F32",), scale, "not negative"),
    ]
    if not quant.algo.endswith("PER_TOKEN_PLUGIN"):
        found.append(Expected(f"{module}.act_scale", ("F32",), ((1, 1),), "positive", same=True))
    if module.endswith((".attention.dense", ".mlp.proj")):
        found.append(Expected(f"{module}.smoother", ("F32",), ((1, width),), "positive"))
    return found


def _by_rows(module: str) -> bool:
    """Whether a linear is cut along its inputs, so that what belongs to its outputs is the same on every rank."""
    return module.endswith(("dense", "proj"))


_FORMS: dict[str, Callable[[Job, str, Quant], list[Expected]]] = {
    "W8A16": _weight_only(8),
    "W4A16": _weight_only(4),
    "W4A16_AWQ": _awq,
    "W4A8_AWQ": _awq,
    "W4A16_GPTQ": _gptq(4),
    "W8A16_GPTQ": _gptq(8),
    "FP8": _fp8,
    "FP8_PER_CHANNEL_PER_TOKEN": _fp8_rowwise,
    "W8A8_SQ_PER_CHANNEL": _smooth,
}
