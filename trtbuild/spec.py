"""What a model is and what is asked of it: frozen and family-neutral. PURE."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass
from typing import Any

from trtbuild.layout import Axis

TARGETS: dict[str, str] = {
    "cpu": "the CPU runtime of trtbuild, with every rank as a process",
    "tensorrt": "TensorRT-LLM 1.2 engines, built by trtllm-build on a GPU host",
}


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only model, global sizes (never per rank)."""

    architecture: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    norm_epsilon: float
    hidden_act: str
    rotary_base: float
    rotary_scaling: Dict[str, Any] | None
    tied_embeddings: bool
    source_dtype: str
    flags: Dict[str, bool]
    """Switches that a family's rules and config refer to by name, for example `attn_bias`."""

    def axis(self, axis: Axis) -> tuple[int, int]:
        """(units, elements per unit) of an axis; a cut never divides a unit, which is a head for attention."""
        sizes = {
            Axis.HIDDEN: (self.hidden_size, 1),
            Axis.Q: (self.num_heads, self.head_size),
            Axis.KV: (self.num_kv_heads, self.head_size),
            Axis.INTER: (self.intermediate_size, 1),
            Axis.VOCAB: (self.vocab_size, 1),
        }
        return sizes[axis]

    def size(self, axis: Axis) -> int:
        """Elements along an axis of the whole model."""
        units, unit = self.axis(axis)
        return units * unit


@dataclass(frozen=True)
class ConvertOptions:
    """What the user asks of a conversion. `dtype` "auto" follows upstream: float32 becomes float16."""

    tp_size: int = 1
    pp_size: int = 1
    dtype: str = "auto"
    quant: str = "none"
    target: str = "cpu"
    use_parallel_embedding: bool = False
    embedding_sharding_dim: int = 0

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size


def resolved_dtype(spec: ModelSpec, options: ConvertOptions) -> str:
    """The dtype in which weights are written: the option, or upstream's rule for "auto"."""
    if options.dtype != "auto":
        return options.dtype
    return "float16" if spec.source_dtype == "float32" else spec.source_dtype
