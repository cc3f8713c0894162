"""The vocabulary of a program: kinds of operations, buffers, and the records that name them. PURE.

T tokens of the batch, R rows that need logits, H hidden, P pairs of a token and one of its experts (`moe.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from trtbuild.runtime.forms import Form


class Kind(IntEnum):
    """Operations; the values below ALL_REDUCE are those of native/, the others are done by `model.py`."""

    EMBED = 0
    NORM = 1
    LINEAR = 2
    ROPE_CACHE = 3
    ATTENTION = 4
    ACT_MUL = 5
    ADD = 6
    TAKE_ROWS = 7
    LAYER_NORM = 20
    HEAD_NORM = 21
    ACT = 22
    SOFT_CAP = 23
    ADD_POSITION = 24
    ROUTE = 32
    GATHER = 33
    EXPERT_LINEAR = 34
    EXPERT_ACT = 35
    COMBINE = 36
    GATED_ADD = 37
    PREPARE = 38
    ALL_REDUCE = 100
    RECEIVE = 101
    SEND = 102
    GATHER_LOGITS = 103


EXPERT_KINDS = (Kind.ROUTE, Kind.GATHER, Kind.EXPERT_LINEAR, Kind.EXPERT_ACT, Kind.COMBINE, Kind.GATED_ADD)


class Buffer(IntEnum):
    """Activations, float32 [T, width] (ROWS, LOGITS: [R, width])."""

    X = 0  # residual stream, [T, H]
    H = 1  # normed input of a block, [T, H]
    QKV = 2
    ATT = 3
    FC_GATE = 4
    MLP = 5
    PART = 6  # output of a row-parallel linear: this rank's summand of the residual, [T, H]
    ROWS = 7
    LOGITS = 8
    MLP_PART = 9  # as PART, of the MLP where it runs beside attention
    ROUTER = 10  # router logits, then the weights of the chosen experts, [T, experts]
    SHARED_GATE = 11  # [T, 1]
    EXPERT = 12  # input, then output of every pair, [P, H]
    EXPERT_FC = 13
    EXPERT_ACT = 14
    PREPARED = 15  # input of a linear whose form changes inputs, [T, inputs of the widest such linear]


@dataclass(frozen=True)
class Op:
    """One operation. `weight` and `bias` are engine tensor names; n outputs, k inputs.

    `row` and `column` say where a rank's part of a table begins; for ACT_MUL the column is where the activated half
    begins, for HEAD_NORM where the n heads begin, for LINEAR where its outputs begin. For ROUTE k is top-k, and `row` 1
    renormalizes; the other operations on experts work on `column` of them, from `row` on. `factor` scales an embedding,
    or is the cap of SOFT_CAP. `window`, `table`: `features.Layer`.

    PREPARE: `weight` and `bias` are the names of prequant
    and act_scale, `act` a `forms.Round`; with `in2`, the routes, it works on pairs. ROPE_CACHE: `weight` is the name of
    the scale of a rounded cache, `act` its Round.
    """

    kind: Kind
    out: Buffer = Buffer.X
    in_: Buffer = Buffer.X
    in2: Buffer | None = None
    weight: str = ""
    bias: str = ""
    n: int = 0
    k: int = 0
    layer: int = 0
    row: int = 0
    column: int = 0
    eps: float = 0.0
    of_rows: bool = False
    act: int = 0
    window: int = 0
    table: int = 0
    factor: float = 1.0


@dataclass(frozen=True)
class Weight:
    """An engine tensor: checkpoint tensors stacked along dim 0.

    `quantized`: a linear that methods may quantize; `form` says how this model has it, `shape` is then that of the
    plain weight (`forms.engine_tensors`).
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    quantized: bool = False
    float32: bool = False
    form: Form | None = None
