"""Rank arithmetic of a TP x PP layout, integers only (TensorRT-LLM `Mapping` with cp_size 1)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mapping:
    """One rank of `tp_size * pp_size`; rank = pp_rank * tp_size + tp_rank."""

    tp_size: int = 1
    pp_size: int = 1
    rank: int = 0

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
        return Mapping(self.tp_size, self.pp_size, rank)
