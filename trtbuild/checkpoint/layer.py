"""Reads some tensors of a plan into memory: what calibration needs of one block, never more."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping as Dict
from dataclasses import replace
from typing import TYPE_CHECKING

from trtbuild.checkpoint.blocks import blocks
from trtbuild.checkpoint.reader import Reader
from trtbuild.checkpoint.values import Values
from trtbuild.layout import Job, RankJobs, TensorInfo

if TYPE_CHECKING:
    import torch


def read_tensors(
    rank: RankJobs, index: Dict[str, TensorInfo], wanted: Callable[[Job], bool]
) -> dict[str, torch.Tensor]:
    """The tensors of a float32 plan whose jobs are `wanted`, by name: the bytes that a conversion would write.

    Raises:
        CheckpointError: a weight is NaN or infinite, beyond the range of the dtype, or cannot be read.
    """
    import numpy as np
    import torch

    jobs = tuple(job for job in rank.jobs if wanted(job))
    assert all(job.dtype == "F32" for job in jobs), "calibration computes in float32"
    space = np.empty(sum(job.nbytes for job in jobs), np.uint8)
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
    numbers, found, start = torch.from_numpy(space).view(torch.float32), {}, 0
    for job in jobs:
        found[job.name] = numbers[start : start + job.elements].reshape(job.shape)
        start += job.elements
    return found
