"""EDGE: streams the bytes of rank files and tells numbers apart: counts, digests, comparisons. Needs numpy only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild.layout import DTYPE_BYTES, TensorInfo

if TYPE_CHECKING:
    import numpy

CHUNK = 1 << 24
_EXPONENT = {"F16": (2, 0x7C00), "BF16": (2, 0x7F80), "F32": (4, 0x7F800000), "F64": (8, 0x7FF0000000000000)}


@dataclass(frozen=True)
class Numbers:
    """What one tensor holds: elements that are NaN or infinite, that are not zero, zero, or negative."""

    count: int
    nonfinite: int
    nonzero: int
    negative: int


def measure(info: TensorInfo, fp8: bool = False) -> Numbers:
    """Count over a tensor's bytes; `fp8`: take one-byte elements as e4m3 whatever the header says.

    Raises:
        OSError: the file cannot be read, or ends early.
    """
    import numpy as np

    nonfinite = nonzero = negative = 0
    size = DTYPE_BYTES.get(info.dtype, 1)
    for chunk in chunks(info.file, info.start, info.stop):
        bits = chunk.view(np.dtype(f"u{size}"))
        sign = 1 << (8 * size - 1)
        if info.dtype in _EXPONENT:
            mask = bits.dtype.type(_EXPONENT[info.dtype][1])
            nonfinite += int(np.count_nonzero((bits & mask) == mask))
            nonzero += int(np.count_nonzero(bits & bits.dtype.type(sign - 1)))
            negative += int(np.count_nonzero(bits > bits.dtype.type(sign)))
        elif fp8 or info.dtype == "F8_E4M3":
            nonfinite += int(np.count_nonzero((bits & 0x7F) == 0x7F))
            nonzero += int(np.count_nonzero(bits & 0x7F))
        else:
            nonzero += int(np.count_nonzero(bits))
    return Numbers(info.nbytes // size, nonfinite, nonzero, negative)


def digest(file: Path, start: int, stop: int) -> str:
    """A hash of bytes [start, stop)."""
    made = hashlib.blake2b(digest_size=16)
    for chunk in chunks(file, start, stop):
        made.update(chunk.data)
    return made.hexdigest()


def is_zero(file: Path, start: int, stop: int) -> bool:
    """Whether bytes [start, stop) are all zero."""
    return not any(chunk.any() for chunk in chunks(file, start, stop))


def values(info: TensorInfo) -> Any:
    """A small float tensor as numpy float64, flat."""
    import numpy as np

    raw = np.concatenate([np.empty(0, np.uint8), *chunks(info.file, info.start, info.stop)])
    if info.dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw.view({"F16": np.float16, "F32": np.float32, "F64": np.float64}[info.dtype]).astype(np.float64)


def rectangle(info: TensorInfo) -> Any:
    """A tensor's bytes as a memory map [rows, bytes of a row]; dims but the last count as rows."""
    import numpy as np

    width = (info.shape[-1] if len(info.shape) > 1 else 1) * DTYPE_BYTES[info.dtype]
    if not info.nbytes:
        return np.zeros((0, width), np.uint8)
    data = np.memmap(info.file, np.uint8, "r", info.start, (info.nbytes,))
    return data.reshape(-1, width)


def same_rectangles(a: Any, b: Any) -> bool:
    """Whether two views of equal shape hold the same bytes, compared a few MB at a time."""
    step = max(1, CHUNK // max(1, a.shape[1]))
    return all(bool((a[row : row + step] == b[row : row + step]).all()) for row in range(0, a.shape[0], step))


def chunks(file: Path, start: int, stop: int) -> Iterator[numpy.ndarray[Any, numpy.dtype[numpy.uint8]]]:
    """Bytes [start, stop) of a file as uint8 arrays of at most CHUNK.

    Raises:
        OSError: the file cannot be read, or ends early.
    """
    import numpy as np

    with file.open("rb", buffering=0) as handle:
        handle.seek(start)
        while start < stop:
            buffer = np.empty(min(CHUNK, stop - start), np.uint8)
            filled = 0
            while filled < len(buffer):
                count = handle.readinto(buffer[filled:].data)
                if not count:
                    raise OSError(f"{file.name} ends early")
                filled += count
            yield buffer
            start += len(buffer)
