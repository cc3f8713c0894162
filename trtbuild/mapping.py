"""Rank arithmetic of a TP x PP layout, integers only (TensorRT-LLM `Mapping` with cp_size 1)."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mapping:
    """One rank of `tp_size * pp_size`; rank = pp_rank * tp_size + tp_rank."""

    tp_size: int = 1
    pp_size: int = 1
    rank: int = 0
    moe_ep_size: int = 1
    """Tensor-parallel ranks that share the experts; the rest of tp_size cuts each expert."""

    @classmethod
    def of_config(cls, sizes: Dict[str, Any], rank: int = 0) -> Mapping:
        """From the `mapping` of a checkpoint's config.json."""
        return cls(sizes["tp_size"], sizes["pp_size"], rank, max(1, sizes.get("moe_ep_size") or 1))

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size

    @property
    def tp_rank(self) -> int:
        return self.rank % self.tp_size

    @property
    def pp_rank(self) -> int:
        return self.rank // self.tp_size

    @property
    def is_first_stage(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    @property
    def moe_tp_size(self) -> int:
        return self.tp_size // self.moe_ep_size

    @property
    def moe_tp_rank(self) -> int:
        return self.tp_rank // self.moe_ep_size

    @property
    def moe_ep_rank(self) -> int:
        return self.tp_rank % self.moe_ep_size

    def experts(self, num_experts: int) -> range:
        """Global indices of the experts that this rank holds."""
        each = num_experts // self.moe_ep_size
        return range(self.moe_ep_rank * each, (self.moe_ep_rank + 1) * each)

    def layers(self, num_layers: int) -> range:
        """Global indices of this stage's layers: the first `num_layers % pp_size` stages hold one more.

        This is the tensor_split rule of TensorRT-LLM 1.x (its pull request 4399).
        """
        base, extra = divmod(num_layers, self.pp_size)
        start = self.pp_rank * base + min(self.pp_rank, extra)
        return range(start, start + base + (1 if self.pp_rank < extra else 0))

    def kv_heads(self, num_kv_heads: int) -> int:
        """Kv heads held by one rank; fewer kv heads than ranks are repeated (grouped-query attention)."""
        return -(-num_kv_heads // self.tp_size)

    def at(self, rank: int) -> Mapping:
        return Mapping(self.tp_size, self.pp_size, rank, self.moe_ep_size)
