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
    HEADS = "heads (one row each)"
    HEAD_SIZE = "channels of a head"
    POSITIONS = "positions"
    EXPERTS = "experts"
    EXPERT_INTER = "intermediate features of an expert"
    SHARED_INTER = "intermediate features of the shared expert"
    BUCKETS = "relative position buckets"
    TYPES = "token types"
    LABELS = "labels"
    ONE = "one row"


class Split(Enum):
    """How the ranks of a tensor-parallel group share a tensor."""

    COPY = "whole on every rank"
    FIRST_RANK = "whole on the first rank, zeros on the others: summed once by the all-reduce"
    COLUMN = "by rows of the weight (its outputs); each stacked part separately"
    ROW = "by columns of the weight (its inputs); a bias stays whole and is added once after the all-reduce"
    VOCAB = "by rows, zero-padded to a multiple of tp"
    EMBED = "whole, or by rows or columns as the embedding options say"


class Stage(Enum):
    """Which pipeline stages hold a tensor."""

    FIRST = "first"
    LAYER = "layer"
    LAST = "last"
    EVERY = "every"


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

KV_SCALES = tuple(f"{which}_cache_scaling_factor" for which in ("kv", "k", "v"))
"""Scales of an attention's KV cache, float32 [1]: of both, of k, of v. ModelOpt writes all three; TensorRT-LLM makes
the first of the others where these are there, the larger (modeling_utils.py, preprocess_weights)."""

READABLE = ("F64", "F32", "F16", "BF16")
"""Source dtypes that hold plain weights; anything else is a quantized checkpoint."""

SCALED = ("F8_E4M3", "F8_E5M2")
"""Source dtypes that are read where they come with a `Scale`."""

BLOCK_BYTES = 1 << 20
"""Target size of what a conversion reads, casts, writes and hashes at a time: it stays in a core's cache."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a source checkpoint as its header describes it; `start` and `stop` are byte offsets in `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int
    scale: Scale | None = None
    parts: tuple[tuple[str, TensorInfo], ...] = ()
    """For a linear of a quantized model, which no tensor holds whole: (suffix, tensor) of all that it is made of."""

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that hold it, its scale and its parts."""
        others = [info for _, info in self.parts] + ([self.scale.info] if self.scale else [])
        return tuple(dict.fromkeys([self.file, *(info.file for info in others)]))


@dataclass(frozen=True)
class Scale:
    """What a quantized tensor is multiplied by: each element of `info` holds for `block` (rows, columns) of it."""

    info: TensorInfo
    block: tuple[int, int]


Window = tuple[int, int]
"""[start, stop) of elements."""

GROUP = -1
"""As `Field.cols`: one stored column for every group of `group_size` inputs."""


@dataclass(frozen=True)
class Field:
    """One logical tensor of a quantized linear layer whose plain weight is [out, in] (experts: [E, out, in]).

    `rows` and `cols` say how many outputs and inputs stand behind one of its elements along these dims: 1 each, 0 = it
    has no such dim, GROUP = a group of inputs. So a weight is (1, 1), a scale per output (1, 0), one per group
    (1, GROUP), a factor of the inputs (0, 1), a scalar (0, 0) with shape [1] (experts: [E, 1]).
    `suffix` takes the place of "weight" in the tensor's name; `dtype` is a safetensors code, or "" for the
    checkpoint's own dtype. `packed`: elements of that many consecutive outputs share one stored byte, the first of
    them in its lowest bits. `shared`: a scalar of which all experts have the same one: [1].
    `transposed`: stored with its last two dims swapped. `kernel_bits`: a weight stored as the kernels of one SM read
    it, with so many bits an element: [in, out * bits / 16], its bytes seen as the checkpoint's own dtype. `lead`: a
    vector stored with a dim of 1 in front. `only`: the modules that have it, by the last part of their name.
    """

    suffix: str
    dtype: str
    rows: int = 1
    cols: int = 1
    packed: int = 1
    shared: bool = False
    transposed: bool = False
    kernel_bits: int = 0
    lead: bool = False
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A window of one source tensor: rows (outputs) in the given order, and columns (inputs; None = all of them).

    `transposed`: the source lies as [in, out] (GPT-2's Conv1D), so `rows` count along its dim 1.
    An empty `source` stands for that many rows of zeros.
    """

    source: str
    rows: tuple[Window, ...]
    cols: Window | None = None
    transposed: bool = False

    @property
    def num_rows(self) -> int:
        return sum(stop - start for start, stop in self.rows)


@dataclass(frozen=True)
class Job:
    """One tensor of one rank file: the rows of `pieces` stacked, zero rows added up to `shape`, in `dtype`.

    A tensor of three dims (experts) is stacked as if its first two were one. `add` is added in float32 before the
    cast. `group` names the fuse group: jobs of all ranks with the same group read the same source tensors.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    group: str
    add: float = 0.0

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def rows(self) -> int:
        """Rows of the stack: all dims but the last, or the elements of a vector."""
        return prod(self.shape[:-1]) if len(self.shape) > 1 else self.shape[0]

    @property
    def is_matrix(self) -> bool:
        """Whether pieces count rows; where they have more of them than the shape has, each element is one."""
        return len(self.shape) > 1 and sum(piece.num_rows for piece in self.pieces) <= self.rows

    @property
    def columns(self) -> int:
        """Elements of what pieces count as a row."""
        return self.shape[-1] if self.is_matrix else 1

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
