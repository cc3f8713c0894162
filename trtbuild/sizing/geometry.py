"""The sizes of a model that its memory at run time depends on. PURE."""

from __future__ import annotations

from dataclasses import dataclass

from trtbuild.spec import ModelSpec


@dataclass(frozen=True)
class Geometry:
    """Global sizes, never per rank. `experts_per_token` 0: a dense model, whose MLP is `intermediate_size` wide.

    With experts, `intermediate_size` is that of one of them. `rope_elements`: entries of the table of rotary
    positions (positions x rotary channels), 0 without rotary embedding.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    rope_elements: int = 0
    experts_per_token: int = 0
    shared_intermediate_size: int = 0


def geometry_of(spec: ModelSpec) -> Geometry:
    """From the terms of TensorRT-LLM's config.json (checkpoint format 1.2)."""
    config = spec.config
    moe = config.get("moe") or {}
    rotary = int(config.get("rotary_embedding_dim") or spec.head_size * float(config.get("rotary_pct") or 1.0))
    has_rope = "rope" in str(config.get("position_embedding_type") or "")
    positions = int(config.get("max_position_embeddings") or 0)
    expert_width = int(config.get("moe_intermediate_size") or 0) if moe else 0
    return Geometry(
        hidden_size=spec.hidden_size,
        intermediate_size=expert_width or spec.intermediate_size,
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_size=spec.head_size,
        vocab_size=spec.vocab_size,
        rope_elements=positions * rotary if has_rope else 0,
        experts_per_token=int(moe.get("top_k") or 0),
        shared_intermediate_size=int(moe.get("shared_expert_intermediate_size") or 0),
    )
