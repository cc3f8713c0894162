"""Jobs on tensors: cut each part, then stack. Pure, and knows no family, method or rank."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from typing import TYPE_CHECKING

from trtbuild.layout import Job, Piece

if TYPE_CHECKING:
    import torch


def cut(sources: Dict[str, torch.Tensor], job: Job) -> torch.Tensor:
    """The tensor of one rank: the job's windows of `sources` stacked along dim 0, zero rows up to `job.shape`.

    Returns a contiguous tensor of `job.shape`, in the dtype of the sources; it may share memory with a source.
    """
    import torch

    parts = [_piece(sources, piece, job) for piece in job.pieces]
    rows = sum(part.shape[0] for part in parts)
    if rows < job.rows:
        parts.append(parts[0].new_zeros(job.rows - rows, *job.shape[1:]))
    result = (parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)).reshape(job.shape)
    return result


def _piece(sources: Dict[str, torch.Tensor], piece: Piece, job: Job) -> torch.Tensor:
    import torch

    if not piece.source:
        some = next(iter(sources.values()))
        return some.new_zeros(piece.num_rows, *job.shape[-1:] if len(job.shape) > 1 else ())
    source = sources[piece.source].T if piece.transposed else sources[piece.source]
    if piece.cols is not None:
        source = source[:, slice(*piece.cols)]
    rows = [source[slice(*window)] for window in piece.rows]
    return rows[0] if len(rows) == 1 else torch.cat(rows)
