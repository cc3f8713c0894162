"""The bytes of one rank's share of a block: columns taken, scales and `add` applied in float32, cast, checked."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from typing import TYPE_CHECKING, Any

from trtbuild.checkpoint.blocks import Block, Share
from trtbuild.checkpoint.cast import LARGEST, STORAGE, cast, direct, holds, narrowed, widened
from trtbuild.checkpoint.reader import Reader
from trtbuild.errors import CheckpointError
from trtbuild.layout import DTYPES, TensorInfo, Window

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_SCAN_ROWS = 256


class Values:
    """Computes shares; used by several threads."""

    def __init__(self, reader: Reader, index: Dict[str, TensorInfo]) -> None:
        self._reader = reader
        self._index = index

    def need_room(self, block: Block) -> bool:
        """Whether the bytes differ from what lies in the source in one piece."""
        if not block.source:
            return True
        info = self._index[block.source]
        whole = all(share.cols is None for share in block.shares)
        return bool(block.add) or block.transposed or not whole or info.dtype != block.dtype

    def source(self, block: Block) -> Array | None:
        """The block as it lies in the source [rows, columns], read once for all shares; None for zeros."""
        return self._reader.rows(block.source, block.rows, transposed=block.transposed) if block.source else None

    def of(self, block: Block, share: Share, raw: Array | None, room: Array | None) -> Array:
        """The share's bytes: `room` filled (uint8), or the memory of `raw` where `need_room` is false.

        Raises:
            CheckpointError: a value that is not finite, or will not be.
        """
        if raw is None:
            assert room is not None
            room[:] = 0
            return room
        info = self._index[block.source]
        cols = share.cols or (0, raw.shape[1])
        raw = raw[:, cols[0] : cols[1]]
        if room is None:
            self._require(raw, info.dtype, block)
            return _bytes(raw)
        out = room.view(STORAGE[block.dtype]).reshape(raw.shape)
        if direct(info.dtype, block.dtype) and not block.add and info.scale is None:
            self._require(raw, info.dtype, block)
            cast(raw, info.dtype, block.dtype, out)
            return room
        wide = widened(raw, info.dtype)
        if info.scale is not None:
            self._multiply(wide, info, block.rows, cols)
        if block.add:
            wide += wide.dtype.type(block.add)
        self._require(wide, "F32", block)
        narrowed(wide, block.dtype, out)
        return room

    def _multiply(self, wide: Array, info: TensorInfo, rows: Window, cols: Window) -> None:
        """Multiply [rows, cols] of a tensor by its scales in place, in float32."""
        import numpy as np

        assert info.scale is not None
        scale, (high, broad) = self._reader.scale(info.name), info.scale.block
        columns = np.arange(*cols) // broad
        start = rows[0]
        while start < rows[1]:
            stop = min(rows[1], (start // high + 1) * high)
            wide[start - rows[0] : stop - rows[0]] *= scale[start // high][columns]
            start = stop

    def _require(self, values: Array, code: str, block: Block) -> None:
        if not holds(values, code, block.dtype):
            raise self._explained(block)

    def _explained(self, block: Block) -> CheckpointError:
        """What is wrong with a tensor; read again, as the largest value may be in another block."""
        import numpy as np

        info = self._index[block.source]
        where = f"{info.name} in {info.file.name}"
        largest = 0.0
        for start in range(0, info.shape[0], _SCAN_ROWS):
            rows = (start, min(start + _SCAN_ROWS, info.shape[0]))
            raw = self._reader.rows(info.name, rows)
            wide = raw.astype(np.float64) if info.dtype == "F64" else widened(raw, info.dtype)
            if info.scale is not None:
                self._multiply(wide, info, rows, (0, raw.shape[1]))
            if not np.isfinite(wide).all():
                return CheckpointError(f"{where} holds NaN or infinite weights")
            largest = max(largest, float(np.abs(wide + block.add).max()))
        name = next(name for name, code in DTYPES.items() if code == block.dtype)
        limit = LARGEST[block.dtype]
        message = f"{where} reaches {largest:g}, beyond {name}'s {limit:g}"
        return CheckpointError(message, hint="Use --dtype bfloat16 or float32.")


def _bytes(values: Array) -> Array:
    """The memory of a contiguous array as uint8 [n]."""
    import numpy as np

    return values.reshape(-1).view(np.uint8)
