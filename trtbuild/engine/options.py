"""Limits that are fixed when an engine is built, by the names of TensorRT-LLM's BuildConfig."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trtbuild.errors import PlanError

_SCALING_WITHOUT_FACTOR = ("su", "longrope", "llama3")


@dataclass(frozen=True)
class BuildOptions:
    """`max_seq_len` None: deduced from the checkpoint, as trtllm-build does."""

    max_batch_size: int = 64
    max_seq_len: int | None = None
    max_num_tokens: int = 128

    def require(self) -> None:
        """Raise PlanError with every limit that is impossible or contradicts another."""
        limits = {"max_batch_size": self.max_batch_size, "max_num_tokens": self.max_num_tokens}
        problems = [f"{name} {value} must be at least 1" for name, value in limits.items() if value < 1]
        if self.max_seq_len is not None and self.max_seq_len < 2:
            problems.append(f"max_seq_len {self.max_seq_len} must be at least 2")
        if 0 < self.max_num_tokens < self.max_batch_size:
            problems.append(
                f"max_num_tokens {self.max_num_tokens} is below max_batch_size {self.max_batch_size}: "
                "a step could not give every sequence its next token"
            )
        if problems:
            raise PlanError(problems)

    def build_config(self, pretrained: dict[str, Any]) -> dict[str, Any]:
        """The `build_config` of the engine's config.json."""
        longest = self.max_seq_len or deduced_seq_len(pretrained)
        return {
            "max_input_len": longest - 1,
            "max_seq_len": longest,
            "max_batch_size": self.max_batch_size,
            "max_beam_width": 1,
            "max_num_tokens": self.max_num_tokens,
            "opt_num_tokens": min(self.max_batch_size, self.max_num_tokens),
            "kv_cache_type": "paged",
            "gather_context_logits": False,
            "gather_generation_logits": False,
        }


def deduced_seq_len(pretrained: dict[str, Any]) -> int:
    """max_position_embeddings (2048 without) times the rotary scaling factor (engine-build rules of trtllm-build)."""
    scaling = pretrained.get("rotary_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    factor = 1.0 if kind in _SCALING_WITHOUT_FACTOR else float(scaling.get("factor", 1.0))
    return int((pretrained.get("max_position_embeddings") or 2048) * factor)
