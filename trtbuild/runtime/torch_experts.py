"""The expert operations of the torch executor: what `native/moe.h` computes, as the few lines that define it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from trtbuild.runtime.activations import ACTIVATIONS
from trtbuild.runtime.features import Activation
from trtbuild.runtime.ops import Buffer, Op
from trtbuild.runtime.packed import linear

if TYPE_CHECKING:
    from trtbuild.runtime.executor import Batch, State


class TorchExperts:
    """Mixed into `TorchExecutor`; P pairs of a token and an expert of this rank, ordered as `moe.py` says."""

    _state: State

    def _tokens(self, buffer: Buffer, batch: Batch) -> torch.Tensor:
        """The rows of the batch's tokens in a buffer, [T, width]."""
        return self._state.buffers[buffer][: batch.num_tokens]

    def _routes(self, op: Op, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Token of each pair [P], its expert's weight [P], and the number of pairs of each expert."""
        assert op.in2 is not None
        routes = self._tokens(op.in2, batch)[:, op.row : op.row + op.column].T  # [experts of this rank, T]
        experts, tokens = routes.nonzero(as_tuple=True)
        return tokens, routes[experts, tokens], experts.bincount(minlength=op.column).tolist()

    def _pairs(self, buffer: Buffer, count: int, width: int) -> torch.Tensor:
        return self._state.buffers[buffer].view(-1)[: count * width].view(count, width)

    def _route(self, op: Op, batch: Batch) -> None:
        router = self._tokens(op.out, batch)
        # a stable sort, not topk: of equals the first, on every rank and in both executors
        best, experts = router.softmax(-1).sort(dim=-1, descending=True, stable=True)
        best, experts = best[:, : op.k], experts[:, : op.k]
        if op.row:
            best = best / best.sum(-1, keepdim=True)
        router.zero_().scatter_(1, experts, best)

    def _gather(self, op: Op, batch: Batch) -> None:
        tokens, _, _ = self._routes(op, batch)
        self._pairs(op.out, len(tokens), op.k).copy_(self._tokens(op.in_, batch)[tokens, : op.k])

    def _expert_linear(self, op: Op, batch: Batch) -> None:
        tokens, _, counts = self._routes(op, batch)
        weight, scale = self._state.weights[op.weight], self._state.scale_of(op.weight)
        zero = self._state.zero_of(op.weight)
        rows = self._pairs(op.in_, len(tokens), op.k).split(counts)
        outs = self._pairs(op.out, len(tokens), op.n).split(counts)
        for expert, (x, out) in enumerate(zip(rows, outs, strict=True)):
            if len(x):
                own = (None if numbers is None else numbers[expert] for numbers in (scale, zero))
                out.copy_(linear(x, weight[expert], *own))

    def _expert_act(self, op: Op, batch: Batch) -> None:
        tokens, _, _ = self._routes(op, batch)
        up, gate = self._pairs(op.in_, len(tokens), 2 * op.n).split(op.n, dim=1)
        self._pairs(op.out, len(tokens), op.n).copy_(ACTIVATIONS[Activation(op.act)](gate) * up)

    def _combine(self, op: Op, batch: Batch) -> None:
        tokens, weights, _ = self._routes(op, batch)
        y = self._pairs(op.in_, len(tokens), op.k) * weights[:, None]
        self._tokens(op.out, batch).zero_().index_add_(0, tokens, y)

    def _gated_add(self, op: Op, batch: Batch) -> None:
        assert op.in2 is not None
        gate = self._tokens(op.in2, batch).sigmoid()
        self._tokens(op.out, batch).add_(gate * self._tokens(op.in_, batch))
