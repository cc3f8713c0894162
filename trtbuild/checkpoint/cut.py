"""Jobs on tensors: cut each part, then stack. Pure, and knows no family, method or rank."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from typing import TYPE_CHECKING

from trtbuild.layout import Job

if TYPE_CHECKING:
    import torch


def cut(sources: Dict[str, torch.Tensor], job: Job) -> torch.Tensor:
    """The tensor of one rank: the job's windows of `sources` stacked along dim 0, zero rows up to `job.shape`.

    Returns a contiguous tensor of `job.shape`, in the dtype of the sources; it may share memory with a source.
    """
    import torch

    parts = [sources[p.source].narrow(p.axis, p.start, p.stop - p.start) for p in job.pieces]
    rows = sum(part.shape[0] for part in parts)
    if rows < job.shape[0]:
        parts.append(parts[0].new_zeros(job.shape[0] - rows, *job.shape[1:]))
    result = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
    assert tuple(result.shape) == job.shape, (job.name, tuple(result.shape), job.shape)
    return result
