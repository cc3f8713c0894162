"""Casts between weight dtypes with numpy alone, and the check that nothing is lost: no NaN, no infinity, in range.

Torch would take longer to import than a model of a billion parameters takes to convert. bfloat16 and fp8, which numpy
does not know, are handled as their bits; results equal torch's `.to()` bit for bit (round to nearest, ties to even).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

STORAGE: dict[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<u2",
    "BF16": "<u2",
    "F8_E4M3": "u1",
    "F8_E5M2": "u1",
}
"""The numpy dtype in which each safetensors dtype is read and written."""
LARGEST: dict[str, float] = {"F32": 3.4028234663852886e38, "F16": 65504.0, "BF16": 3.3895313892515355e38}
"""Largest finite value of each dtype that is written."""

_INFINITY = {"F64": 0x7FF0000000000000, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
# (bits of, cast to) -> bits of the least magnitude that the cast would round to infinity
_TOO_LARGE = {
    **{(code, code): bits for code, bits in _INFINITY.items()},
    ("BF16", "F16"): 0x4780,
    ("F16", "BF16"): 0x7C00,
    ("F16", "F32"): 0x7C00,
    ("BF16", "F32"): 0x7F80,
    ("F32", "F16"): 0x477FF000,
    ("F32", "BF16"): 0x7F7F8000,
}
_CHUNK = 1 << 16  # elements at a time, so that temporaries stay in the cache


def direct(source: str, target: str) -> bool:
    """Whether `source` bits become `target` bits without float32 in between."""
    return source == target or {source, target} == {"F16", "BF16"} or (source in ("F16", "BF16") and target == "F32")


def holds(values: Array, source: str, target: str) -> bool:
    """Whether all `values` (bits of `source`) are finite, and stay finite when cast to `target`.

    Two maxima and no temporary: as signed integers positive numbers order by magnitude, as unsigned ones negative.
    """
    import numpy as np

    if values.size == 0:
        return True
    too_large = _TOO_LARGE[source, target]
    size = values.dtype.itemsize
    sign = 1 << (8 * size - 1)
    return int(values.view(np.dtype(f"i{size}")).max()) < too_large and (
        int(values.view(np.dtype(f"u{size}")).max()) < sign + too_large
    )


def cast(values: Array, source: str, target: str, out: Array) -> None:
    """Fill `out` (STORAGE of `target`) with `values` (STORAGE of `source`), same shape, where `direct` says so."""
    import numpy as np

    if source == target:
        out[...] = values
    elif source == "BF16" and target == "F32":
        np.left_shift(values.astype(np.uint32), 16, out=out.view(np.uint32))
    else:
        _look_up(_table(source, target), values, out)


def widened(values: Array, source: str) -> Array:
    """`values` as float32; a float64 beyond its range becomes infinite."""
    import numpy as np

    out = np.empty(values.shape, np.float32)
    if source in ("F32", "F64"):
        with np.errstate(over="ignore"):
            out[...] = values
    elif source == "BF16":
        cast(values, source, "F32", out)
    else:
        _look_up(_table(source, "F32"), values, out)
    return out


def narrowed(values: Array, target: str, out: Array) -> None:
    """Fill `out` with float32 `values` that `holds` found in range, rounded to `target`."""
    import numpy as np

    if target == "F32":
        out[...] = values
        return
    flat, flat_out = values.reshape(-1), out.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        bits = part.view(np.uint32)
        if target == "BF16":
            flat_out[start : start + _CHUNK] = _rounded(bits, 16)
        else:
            flat_out[start : start + _CHUNK] = _float16(part, bits)


def _rounded(bits: Array, drop: int) -> Array:
    """uint32 bits without their lowest `drop`: to nearest, ties to even."""
    import numpy as np

    result = np.right_shift(bits, drop)
    result &= 1
    result += (1 << (drop - 1)) - 1
    result += bits
    result >>= drop
    return result


def _float16(values: Array, bits: Array) -> Array:
    """float32 in range -> float16 bits: exponents re-biased, sign moved; the few subnormals by numpy's own cast."""
    import numpy as np

    magnitude = bits & np.uint32(0x7FFFFFFF)
    small = np.flatnonzero(magnitude < 0x38800000)  # 2**-14
    magnitude -= np.uint32(0x38000000)  # 112 exponents
    result = _rounded(magnitude, 13).astype(np.uint16)
    result |= (bits >> np.uint32(16)).astype(np.uint16) & np.uint16(0x8000)
    if small.size:
        result[small] = values[small].astype(np.float16).view(np.uint16)
    return result


def _look_up(table: Array, values: Array, out: Array) -> None:
    import numpy as np

    if not (values.flags.c_contiguous and values.flags.aligned):
        values = np.ascontiguousarray(np.require(values, requirements="A"))
    flat, flat_out = values.reshape(-1), out.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        stop = start + _CHUNK
        # "clip" never clips here; it lets numpy write to `out` without a buffer.
        np.take(table, flat[start:stop], out=flat_out[start:stop], mode="clip")


@lru_cache(maxsize=8)
def _table(source: str, target: str) -> Array:
    """Every value of a dtype of one or two bytes, cast."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        if source == "BF16":
            wide = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
        elif source == "F16":
            wide = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
        else:
            wide = np.array([_float8(bits, *_FLOAT8[source]) for bits in range(256)], np.float32)
        if target == "F32":
            return wide
        if target == "F16":
            return wide.astype(np.float16).view(np.uint16)
        return _rounded(wide.view(np.uint32), 16).astype(np.uint16)


# Exponent bits, mantissa bits, and whether the top exponent means infinity (IEEE) or only all ones means NaN.
_FLOAT8 = {"F8_E4M3": (4, 3, False), "F8_E5M2": (5, 2, True)}


def _float8(bits: int, exponent_bits: int, mantissa_bits: int, ieee: bool) -> float:
    """The value of one 8-bit float (OCP 8-bit Floating Point Specification 1.0)."""
    sign = -1.0 if bits & 0x80 else 1.0
    exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1)
    mantissa = bits & ((1 << mantissa_bits) - 1)
    top = (1 << exponent_bits) - 1
    if exponent == top and (ieee or mantissa == (1 << mantissa_bits) - 1):
        return sign * float("inf") if ieee and not mantissa else float("nan")
    bias = (1 << (exponent_bits - 1)) - 1
    if exponent == 0:
        return sign * mantissa * 2.0 ** (1 - bias - mantissa_bits)
    return sign * (1 + mantissa / (1 << mantissa_bits)) * 2.0 ** (exponent - bias)
