"""Reads single tensors of a plan whole: what calibration needs of one block, never more."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping as Dict
from typing import TYPE_CHECKING

from trtbuild.checkpoint.convert import finished, load
from trtbuild.checkpoint.cut import cut
from trtbuild.layout import Job, TensorInfo

if TYPE_CHECKING:
    import torch


def read_jobs(jobs: Iterable[Job], index: Dict[str, TensorInfo]) -> dict[str, torch.Tensor]:
    """The tensors of `jobs` by name, each in its job's dtype.

    Raises:
        CheckpointError: as `convert.load`.
    """
    found = {}
    for job in jobs:
        code = "F32" if job.add else job.dtype
        sources = {piece.source: load(index[piece.source], code) for piece in job.pieces if piece.source}
        found[job.name] = finished(cut(sources, job), job)
    return found
