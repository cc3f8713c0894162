"""How a decoder computes, without names of families: what `program.py`, the executors and the tables build on. PURE."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any

from trtbuild.runtime.moe import Moe

Config = Dict[str, Any]


class Norm(Enum):
    RMS = "rms"
    LAYER = "layer"  # mean and variance, with bias


class Position(Enum):
    ROPE = "rope"
    LEARNED = "learned"
    ALIBI = "alibi"


class Mlp(Enum):
    GATED = "gated"  # act(fc) * gate, two tensors
    FUSED_GATED = "fused gated"  # one tensor mlp.fc = [up; gate]; the second half is activated; experts too
    PLAIN = "plain"  # act(fc)


class Activation(IntEnum):
    """The values are those of native/ops.h."""

    SILU = 0
    GELU = 1
    GELU_TANH = 2
    RELU = 3
    SQUARED_RELU = 4


@dataclass(frozen=True)
class Rope:
    """One rotary table: the base, and the scaling as Hugging Face writes it (`rope.py` knows the types)."""

    base: float
    scaling: Config = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """What may differ from layer to layer: tokens that attention looks back to (0: all), and the rotary table."""

    window: int = 0
    rope: int = 0


@dataclass(frozen=True)
class Features:
    """How a decoder computes. Names of norms are those inside a layer of the checkpoint; "" where there is none."""

    layers: tuple[Layer, ...]
    """All layers of the model, not of one stage."""
    norm_eps: float
    activation: Activation
    score_scale: float
    norm: Norm = Norm.RMS
    mlp: Mlp = Mlp.GATED
    moe: Moe | None = None
    """Experts in the place of the MLP of every layer."""
    position: Position = Position.ROPE
    rotary_size: int = 0
    ropes: tuple[Rope, ...] = ()
    rope_switch: int = 0
    """Sequences longer than this use the second rotary table instead of the first (long rope); 0: never."""
    alibi_scale: float = 1.0
    alibi_rounded: bool = False
    """Whether transformers rounds the bias to bfloat16 (Falcon)."""
    max_positions: int = 0
    """Positions that the model has, where they are a table; 0: any number."""
    parallel: bool = False
    """Attention and MLP both read the residual, and their sum is added to it."""
    attention_norm: str = "input_layernorm"
    after_attention: str = ""
    mlp_norm: str = "post_layernorm"
    """Empty in the parallel form: the MLP reads what attention reads."""
    after_mlp: str = ""
    qk_norm: bool = False
    embedding_norm: bool = False
    embedding_scale: float = 1.0
    qkv_bias: bool = False
    dense_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    attention_soft_cap: float = 0.0
    final_soft_cap: float = 0.0


def scaling_kind(scaling: Config) -> str:
    """The type of a Hugging Face rope scaling."""
    return str(scaling.get("rope_type") or scaling.get("type") or "default")
