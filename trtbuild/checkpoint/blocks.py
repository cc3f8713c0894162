"""Jobs -> blocks: a few megabytes of source rows at a time, and what every rank takes of them. PURE: integers only.

A block is read once. A tensor that several ranks hold whole is one block with a copy for each; a tensor cut by columns
is one block of whole rows, of which every rank takes its columns. Blocks come in the order in which every rank's file
holds them, and for each rank without a gap, so files can be hashed as they grow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Mapping as Dict
from dataclasses import dataclass, replace
from math import prod

from trtbuild.layout import BLOCK_BYTES, DTYPE_BYTES, Job, Piece, RankJobs, TensorInfo, Window


@dataclass(frozen=True)
class Copy:
    """One rank's share of a block: bytes from `start` on of its file's data. `finishes` names a job that ends here."""

    position: int
    start: int
    finishes: str = ""


@dataclass(frozen=True)
class Share:
    """Columns of a block (None = all of them), and the copies that are equal byte for byte."""

    cols: Window | None
    nbytes: int
    copies: tuple[Copy, ...]


@dataclass(frozen=True)
class Block:
    """`rows` of one source tensor (of its dim 1 where it is `transposed`), or zeros where `source` is empty."""

    group: str
    source: str
    rows: Window
    transposed: bool
    dtype: str
    add: float
    shares: tuple[Share, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that the block adds to all files together."""
        return sum(share.nbytes * len(share.copies) for share in self.shares)


@dataclass(frozen=True)
class _Place:
    """Where a job goes: rank number `position` in the list, first byte of the tensor in its file's data."""

    position: int
    start: int


def blocks(
    ranks: Sequence[RankJobs], index: Dict[str, TensorInfo], finished: Sequence[int] | None = None
) -> Iterator[Block]:
    """All blocks of a conversion; `finished` leading jobs of each rank are left out (they are in its file already)."""
    groups: dict[str, list[tuple[_Place, Job]]] = {}
    # Stages in order, so that the groups come in the order in which every rank's file holds them.
    for position, rank in sorted(enumerate(ranks), key=lambda item: item[1].pp_rank):
        start = 0
        for number, job in enumerate(rank.jobs):
            # Finished ones keep the place of their group: ranks that stopped at different tensors must not disagree
            # on the order, or blocks would wait for others that come after them.
            group = groups.setdefault(job.group, [])
            if finished is None or number >= finished[position]:
                group.append((_Place(position, start), job))
            start += job.nbytes
    for jobs in groups.values():
        for alike in _alike(jobs):
            yield from _of_jobs(alike, index)


def _alike(jobs: list[tuple[_Place, Job]]) -> list[list[tuple[_Place, Job]]]:
    """Jobs of a group, together where they stack the same rows of the same sources and differ in columns at most."""
    found: dict[object, list[tuple[_Place, Job]]] = {}
    for place, job in jobs:
        stacked = tuple(replace(piece, cols=None) if piece.cols else piece for piece in job.pieces)
        found.setdefault((stacked, job.rows, job.dtype, job.add), []).append((place, job))
    return list(found.values())


def _of_jobs(jobs: list[tuple[_Place, Job]], index: Dict[str, TensorInfo]) -> Iterator[Block]:
    """Blocks of jobs that stack the same rows."""
    first = jobs[0][1]
    planned = sum(piece.num_rows for piece in first.pieces)
    if planned > first.rows:
        raise RuntimeError(f"{first.name}: {planned} rows are planned for shape {list(first.shape)}")
    done = 0
    parts = [(piece, number) for number, piece in enumerate(first.pieces)]
    parts += [(Piece("", ((0, first.rows - planned),)), 0)] if planned < first.rows else []
    for piece, number in parts:
        for start, stop in piece.rows:
            step = _rows_at_once(piece, first, index)
            for row in range(start, stop, step):
                rows = (row, min(row + step, stop))
                count = rows[1] - rows[0]
                shares = _shares(jobs, number, done, count)
                yield Block(first.group, piece.source, rows, piece.transposed, first.dtype, first.add, shares)
                done += count


def _rows_at_once(piece: Piece, job: Job, index: Dict[str, TensorInfo]) -> int:
    """Rows that make a block of about BLOCK_BYTES, as read or as written, whichever is more."""
    written = row_bytes(job)
    if not piece.source:
        return max(1, BLOCK_BYTES // written)
    info = index[piece.source]
    rows = info.shape[-1] if piece.transposed else info.shape[0]
    read = max(1, prod(info.shape) * DTYPE_BYTES[info.dtype] // max(rows, 1))
    return max(1, BLOCK_BYTES // max(read, written))


def row_bytes(job: Job) -> int:
    """Bytes of one row of the stack; a vector's rows are its elements."""
    return (job.shape[-1] if len(job.shape) > 1 else 1) * DTYPE_BYTES[job.dtype]


def _shares(jobs: list[tuple[_Place, Job]], number: int, done: int, count: int) -> tuple[Share, ...]:
    """Which columns of `count` rows go where, when `done` rows of each job are written; `number` is the piece's."""
    copies: dict[Window | None, list[Copy]] = {}
    sizes: dict[Window | None, int] = {}
    for place, job in jobs:
        cols = job.pieces[number].cols
        width = row_bytes(job)
        ends = job.name if done + count == job.rows else ""
        copies.setdefault(cols, []).append(Copy(place.position, place.start + done * width, ends))
        sizes[cols] = count * width
    return tuple(Share(cols, sizes[cols], tuple(found)) for cols, found in copies.items())
