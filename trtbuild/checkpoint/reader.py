"""Source tensors as arrays over memory maps: nothing is copied, and the kernel can drop what was read."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from collections.abc import Mapping as Dict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild.checkpoint.cast import STORAGE, widened
from trtbuild.errors import CheckpointError
from trtbuild.layout import TensorInfo, Window

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_POPULATE_READ = 22  # MADV_POPULATE_READ, Linux 5.14


class Reader:
    """Windows of the tensors of `index`; a context manager. Used by several threads."""

    def __init__(self, index: Dict[str, TensorInfo]) -> None:
        self._index = index
        self._maps: dict[Path, mmap.mmap] = {}
        self._pickled: dict[Path, dict[str, Array]] = {}
        self._scales: dict[str, Array] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        maps, self._maps = self._maps, {}
        for opened in maps.values():
            with contextlib.suppress(BufferError):  # an array that outlives us, after a failure; freed with it
                opened.close()

    def rows(self, name: str, rows: Window, *, transposed: bool = False) -> Array:
        """Rows [start, stop) of a tensor as STORAGE elements [rows, columns]; a vector has one column.

        `transposed` counts the rows along dim 1 of the source.

        Raises:
            CheckpointError: the file cannot be read.
        """
        info = self._index[name]
        whole = self._whole(info)
        if transposed:
            self._fetch(info, info.start, info.stop)
            return whole.T[rows[0] : rows[1]]
        width = whole.shape[1] * whole.itemsize
        self._fetch(info, info.start + rows[0] * width, info.start + rows[1] * width)
        return whole[rows[0] : rows[1]]

    def scale(self, name: str) -> Array:
        """The scales of a quantized tensor as float32 [rows of blocks, columns of blocks].

        Raises:
            CheckpointError: the file cannot be read, or a scale is negative, NaN or infinite.
        """
        import numpy as np

        with self._lock:
            if name not in self._scales:
                scale = self._index[name].scale
                assert scale is not None, name
                raw = self._whole(scale.info)
                shape = scale.info.shape if len(scale.info.shape) == 2 else (raw.shape[0], 1)
                found = widened(raw, scale.info.dtype).reshape(shape)
                wrong = int(np.count_nonzero(~np.isfinite(found) | (found < 0)))
                if wrong:
                    raise CheckpointError(
                        f"{name} cannot be multiplied out: {scale.info.name} holds {wrong} negative, NaN or infinite "
                        "scales",
                        hint="Fetch the model again; if its makers' file is like this, it cannot be used.",
                    )
                self._scales[name] = found
            return self._scales[name]

    def _whole(self, info: TensorInfo) -> Array:
        """All of a tensor [rows, columns], by reference."""
        import numpy as np

        if info.file.suffix == ".bin":
            raw = self._of_pickle(info)
        else:
            raw = np.frombuffer(self._map(info.file), np.uint8, info.nbytes, info.start)
        columns = prod(info.shape[1:])
        return raw.view(STORAGE[info.dtype]).reshape(prod(info.shape[:1]), columns)

    def _map(self, path: Path) -> mmap.mmap:
        found = self._maps.get(path)
        if found is None:
            try:
                with path.open("rb") as handle:
                    found = mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{path} cannot be read: {error}") from error
            found = self._maps.setdefault(path, found)
        return found

    def _of_pickle(self, info: TensorInfo) -> Array:
        from trtbuild.checkpoint.pickled import load

        found = self._pickled.get(info.file)
        if found is None:
            found = self._pickled.setdefault(info.file, load(info.file))
        return found[info.name]

    def _fetch(self, info: TensorInfo, start: int, stop: int) -> None:
        """Bring bytes into memory before they are touched: faster than faults, and an I/O error is no SIGBUS."""
        found = self._maps.get(info.file)
        if found is None:
            return
        start -= start % mmap.PAGESIZE
        try:
            found.madvise(_POPULATE_READ, start, min(stop, len(found)) - start)
        except OSError as error:
            if error.errno == errno.EINVAL:  # an older kernel
                return
            size = os.stat(info.file).st_size
            reason = f"it was cut to {size} bytes meanwhile" if size < stop else error.strerror
            raise CheckpointError(f"{info.file} cannot be read: {reason}") from error
