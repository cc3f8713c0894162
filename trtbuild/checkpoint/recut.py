"""Executes a re-sharding: copies blocks of old rank files into new ones. One new tensor in memory, any dtype."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Mapping as Dict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild.checkpoint.writer import write_file
from trtbuild.layout import DTYPE_BYTES, TensorInfo
from trtbuild.progress import Progress, silent

if TYPE_CHECKING:
    from trtbuild.reshard import Recut, RecutRank

Headers = Dict[int, Dict[str, TensorInfo]]


def recut(ranks: Sequence[RecutRank], headers: Headers, folder: Path, progress: Progress = silent) -> dict[str, str]:
    """Write rankN.safetensors into `folder`; returns SHA-256 in hex by file name.

    `headers`: the old tensors by rank and name. `progress` counts bytes written.

    Raises:
        OSError: a file cannot be read or written.
    """
    total, done = sum(rank.nbytes for rank in ranks), 0
    digests: dict[str, str] = {}

    def tensors(rank: RecutRank) -> Iterator[memoryview]:
        nonlocal done
        for part in rank.tensors:
            progress(done, total, part.job.group)
            yield _tensor(part, headers).data
            done += part.job.nbytes

    for rank in ranks:
        name = f"rank{rank.rank}.safetensors"
        digests[name] = write_file(folder / name, [part.job for part in rank.tensors], tensors(rank))
    progress(done, total, "")
    return digests


def _tensor(part: Recut, headers: Headers) -> Any:
    """The bytes of a new tensor, numpy uint8 [rows, bytes of a row]."""
    import numpy as np

    job = part.job
    size = DTYPE_BYTES[job.dtype]
    made = np.zeros((job.elements // max(job.columns, 1), job.columns * size), np.uint8)
    for block in part.blocks:
        info = headers[block.rank][block.tensor]
        old = _matrix(info, size * (info.shape[-1] if job.is_matrix else 1))
        (top, bottom), (left, right), (row, col) = block.rows, block.cols, block.at
        made[row : row + bottom - top, col * size : (col + right - left) * size] = old[
            top:bottom, left * size : right * size
        ]
    return made


def _matrix(info: TensorInfo, width: int) -> Any:
    """An old tensor as a memory map, uint8 [rows, bytes of a row]; `width`: of a row."""
    import numpy as np

    return np.memmap(info.file, np.uint8, "r", info.start, (info.nbytes,)).reshape(-1, width)
