"""The words in which families, the plan and the converter talk about tensors. PURE: integers and names only.

A weight is always spoken of as [out, in]; a norm or bias as [out]. `Axis` says what the elements of one axis are
(query heads, kv heads, ...), `Split` how a tensor is shared among the tensor-parallel ranks, and `Piece` is the result:
a window of one source tensor. Everything that one rank holds is a list of pieces stacked along dim 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import prod
from pathlib import Path


class Axis(Enum):
    """What one axis of a tensor counts; `ModelSpec.axis` gives its size and its smallest uncuttable unit."""

    HIDDEN = "hidden features"
    Q = "attention heads"
    KV = "key/value heads"
    INTER = "intermediate features"
    VOCAB = "tokens of the vocabulary"


class Split(Enum):
    """How the ranks of a tensor-parallel group share a tensor."""

    COPY = "whole on every rank"
    COLUMN = "by rows of the weight (its outputs); each stacked part separately"
    ROW = "by columns of the weight (its inputs); a bias stays whole and is added once after the all-reduce"
    VOCAB = "by rows, zero-padded to a multiple of tp"
    EMBED = "whole, or by rows or columns as the embedding options say"


class Stage(Enum):
    """Which pipeline stages hold a tensor."""

    FIRST = "first"
    LAYER = "layer"
    LAST = "last"


DTYPES: dict[str, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Config dtype name -> safetensors code, for everything that a checkpoint can be written in."""

DTYPE_BYTES: dict[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
}
"""Bytes per element of the safetensors dtypes that can be sized."""

READABLE = ("F64", "F32", "F16", "BF16")
"""Source dtypes that hold plain weights; anything else is a quantized checkpoint."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a source checkpoint as its header describes it; `start` and `stop` are byte offsets in `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Piece:
    """The window [start, stop) along dim `axis` of one source tensor."""

    source: str
    axis: int
    start: int
    stop: int


@dataclass(frozen=True)
class Job:
    """One tensor of one rank file: `pieces` stacked along dim 0, zero rows added up to `shape`, in `dtype`.

    `group` names the fuse group: jobs of all ranks with the same group read the same source tensors.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    group: str

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class RankJobs:
    """All tensors of one rank, in the order in which the file holds them."""

    rank: int
    tp_rank: int
    pp_rank: int
    layers: range
    jobs: tuple[Job, ...]

    @property
    def nbytes(self) -> int:
        return sum(job.nbytes for job in self.jobs)
