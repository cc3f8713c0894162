"""Reads some tensors of a plan into memory: what calibration needs of one block, never more."""

from __future__ import annotations

import os
from collections.abc import Callable
from collections.abc import Mapping as Dict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild.checkpoint.blocks import blocks
from trtbuild.checkpoint.reader import Reader
from trtbuild.checkpoint.values import Values
from trtbuild.layout import DTYPES, Job, RankJobs, TensorInfo

if TYPE_CHECKING:
    import torch

_NAMES = {code: name for name, code in DTYPES.items()}


def read_tensors(
    rank: RankJobs, index: Dict[str, TensorInfo], wanted: Callable[[Job], bool], scratch: Path | None = None
) -> dict[str, torch.Tensor]:
    """The tensors of a plan whose jobs are `wanted`, by name: the bytes that a conversion would write.

    With `scratch` they lie in that file, which is made, and in memory only as far as the kernel sees fit.

    Raises:
        CheckpointError: a weight is NaN or infinite, beyond the range of the dtype, or cannot be read.
        OSError: no room for `scratch`.
    """
    import numpy as np
    import torch

    jobs = tuple(job for job in rank.jobs if wanted(job))
    size = sum(job.nbytes for job in jobs)
    space = np.empty(size, np.uint8) if scratch is None or not size else _mapped(scratch, size)
    with Reader(index) as reader:
        values = Values(reader, index)
        for block in blocks((replace(rank, jobs=jobs),), index):
            raw = values.source(block)
            for share in block.shares:
                room = np.empty(share.nbytes, np.uint8) if values.need_room(block) else None
                data = values.of(block, share, raw, room).reshape(-1)
                for copy in share.copies:
                    space[copy.start : copy.start + share.nbytes] = data
            del raw, room, data  # they may lie in the file's memory map, which is closed next
    found, start = {}, 0
    for job in jobs:
        number = torch.from_numpy(space[start : start + job.nbytes]).view(getattr(torch, _NAMES[job.dtype]))
        found[job.name] = number.reshape(job.shape)
        start += job.nbytes
    return found


def _mapped(path: Path, size: int) -> Any:
    """A file of `size` bytes as an array. It is reserved first: a map that meets a full disk kills the process."""
    import numpy as np

    with path.open("wb") as handle:
        os.posix_fallocate(handle.fileno(), 0, size)
    return np.memmap(path, np.uint8, "r+", 0, (size,))
