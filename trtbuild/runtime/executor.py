"""The two executors of a program: native kernels, and plain torch (the readable reference, and the fallback).

Both work on the same buffers, weights and paged cache, so that one can be checked against the other op by op.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from trtbuild.runtime.ops import Buffer, Op
from trtbuild.runtime.program import Shapes
from trtbuild.runtime.torch_experts import TorchExperts

if TYPE_CHECKING:
    from trtbuild.runtime.native.library import BatchStruct, OpStruct

_WTYPE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}


@dataclass
class Batch:
    """One step: T tokens of several sequences, R of which need logits. All int32.

    token_ids, positions, slots: [T]; block_tables: [sequence slots, max_blocks]; rows: [R] indices into T.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    block_tables: torch.Tensor
    rows: torch.Tensor

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_rows(self) -> int:
        return len(self.rows)


@dataclass
class State:
    """What a rank holds between steps. Cache layouts are those that kernels.c explains."""

    shapes: Shapes
    weights: dict[str, torch.Tensor]
    buffers: dict[Buffer, torch.Tensor]
    keys: torch.Tensor  # [layers, blocks, kv_heads, head_size, block_tokens] float32
    values: torch.Tensor  # [layers, blocks, kv_heads, block_tokens, head_size] float32
    cos: torch.Tensor
    sin: torch.Tensor
    block_tokens: int

    def scale_of(self, weight: str) -> torch.Tensor | None:
        """Scales of an int8 weight, one an output row; None for a weight that is not quantized."""
        return self.weights.get(weight.removesuffix(".weight") + ".per_channel_scale")


class Executor(Protocol):
    def run(self, ops: Sequence[Op], batch: Batch) -> None:
        """Execute `ops`, none of which communicates."""


class NativeExecutor:
    """One call into kernels.c for each run of operations."""

    def __init__(self, state: State, num_threads: int) -> None:
        from trtbuild.runtime.native.library import BatchStruct, load_library

        self._library = load_library()
        self._state = state
        self._compiled: dict[int, ctypes.Array[OpStruct]] = {}
        self._threads = num_threads
        self._scratch = torch.zeros(0)
        self._batch: BatchStruct = BatchStruct()
        shapes = state.shapes
        b = self._batch
        for buffer, tensor in state.buffers.items():
            b.buffer[buffer], b.width[buffer] = tensor.data_ptr(), tensor.shape[1]
        b.block_tokens, b.num_heads, b.num_kv_heads = state.block_tokens, shapes.num_heads, shapes.num_kv_heads
        b.head_size, b.rotary_size, b.score_scale = shapes.head_size, shapes.rotary_size, shapes.head_size**-0.5
        b.cos_table, b.sin_table = state.cos.data_ptr(), state.sin.data_ptr()
        b.keys, b.values = state.keys.data_ptr(), state.values.data_ptr()
        b.layer_stride, b.block_stride = state.keys.stride(0), state.keys.stride(1)
        b.num_threads = num_threads

    def run(self, ops: Sequence[Op], batch: Batch) -> None:
        compiled = self._compiled.get(id(ops))
        if compiled is None:
            compiled = self._compiled[id(ops)] = self._compile(ops)
        b = self._batch
        b.num_tokens, b.num_rows, b.max_blocks = batch.num_tokens, batch.num_rows, batch.block_tables.shape[1]
        self._reserve(b.max_blocks)
        b.token_ids, b.positions, b.slots = (
            batch.token_ids.data_ptr(),
            batch.positions.data_ptr(),
            batch.slots.data_ptr(),
        )
        b.block_tables, b.rows = batch.block_tables.data_ptr(), batch.rows.data_ptr()
        self._library.trtbuild_run(compiled, len(compiled), ctypes.byref(b))

    def _reserve(self, max_blocks: int) -> None:
        """Scratch of each thread: the scores of the three heads that kernels.c takes at a time."""
        floats = 3 * max_blocks * self._state.block_tokens
        if self._scratch.numel() < floats * self._threads:
            self._scratch = torch.zeros(floats * self._threads)
            self._batch.scratch, self._batch.scratch_stride = self._scratch.data_ptr(), floats

    def _compile(self, ops: Sequence[Op]) -> ctypes.Array[OpStruct]:
        from trtbuild.runtime.native.library import OpStruct

        compiled = (OpStruct * len(ops))()
        for struct, op in zip(compiled, ops, strict=True):
            struct.kind, struct.in_, struct.out = op.kind, op.in_, op.out
            struct.in2 = -1 if op.in2 is None else op.in2
            struct.n, struct.k, struct.layer, struct.row, struct.column = op.n, op.k, op.layer, op.row, op.column
            struct.of_rows, struct.eps = op.of_rows, op.eps
            if op.weight:
                weight = self._state.weights[op.weight]
                struct.weight, struct.wtype = weight.data_ptr(), _WTYPE[weight.dtype]
            if (scale := self._state.scale_of(op.weight)) is not None:
                struct.scale = scale.data_ptr()
            if op.bias:
                struct.bias = self._state.weights[op.bias].data_ptr()
        return compiled


class TorchExecutor(TorchExperts):
    """Each operation as the few lines of torch that define it."""

    def __init__(self, state: State, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._state = state

    def run(self, ops: Sequence[Op], batch: Batch) -> None:
        for op in ops:
            getattr(self, f"_{op.kind.name.lower()}")(op, batch)

    def _get(self, buffer: Buffer, count: int) -> torch.Tensor:
        return self._state.buffers[buffer][:count]

    def _embed(self, op: Op, batch: Batch) -> None:
        table = self._state.weights[op.weight]
        out = self._get(op.out, batch.num_tokens).zero_()
        ids = batch.token_ids.long() - op.row
        mine = (ids >= 0) & (ids < op.n)
        out[mine, op.column : op.column + op.k] = table[ids[mine]].float()

    def _norm(self, op: Op, batch: Batch) -> None:
        count = batch.num_rows if op.of_rows else batch.num_tokens
        x = self._get(op.in_, count)
        if op.in2 is not None:
            x += self._get(op.in2, count)
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + op.eps)
        self._get(op.out, count).copy_(x * scale * self._state.weights[op.weight])

    def _linear(self, op: Op, batch: Batch) -> None:
        count = batch.num_rows if op.of_rows else batch.num_tokens
        y = torch.nn.functional.linear(self._get(op.in_, count), self._state.weights[op.weight].float())
        scale = self._state.scale_of(op.weight)
        if scale is not None:
            y *= scale
        if op.bias:
            y += self._state.weights[op.bias]
        self._get(op.out, count).copy_(y)

    def _rope_cache(self, op: Op, batch: Batch) -> None:
        s, state, tokens = self._state.shapes, self._state, batch.num_tokens
        qkv = self._get(op.in_, tokens).view(tokens, -1, s.head_size)
        positions = batch.positions.long()
        cos, sin, half = state.cos[positions, None], state.sin[positions, None], s.rotary_size // 2
        rotated = qkv[:, : s.num_heads + s.num_kv_heads]
        a, b = rotated[..., :half].clone(), rotated[..., half : 2 * half].clone()
        rotated[..., :half], rotated[..., half : 2 * half] = a * cos - b * sin, b * cos + a * sin
        blocks = batch.block_tables[batch.slots.long(), positions // state.block_tokens].long()
        at = positions % state.block_tokens
        state.keys[op.layer, blocks, :, :, at] = qkv[:, s.num_heads : s.num_heads + s.num_kv_heads]
        state.values[op.layer, blocks, :, at] = qkv[:, s.num_heads + s.num_kv_heads :]

    def _attention(self, op: Op, batch: Batch) -> None:
        s, state, tokens = self._state.shapes, self._state, batch.num_tokens
        queries = self._get(op.in_, tokens).view(tokens, -1, s.head_size)[:, : s.num_heads]
        out = self._get(op.out, tokens).view(tokens, s.num_heads, s.head_size)
        for slot in batch.slots.unique().tolist():
            mine = (batch.slots == slot).nonzero()[:, 0]
            context = int(batch.positions[mine].max()) + 1
            blocks = batch.block_tables[slot, : -(-context // state.block_tokens)].long()
            keys = (
                state.keys[op.layer, blocks].permute(1, 0, 3, 2).reshape(s.num_kv_heads, -1, s.head_size)[:, :context]
            )
            values = (
                state.values[op.layer, blocks].transpose(0, 1).reshape(s.num_kv_heads, -1, s.head_size)[:, :context]
            )
            mask = torch.arange(context) <= batch.positions[mine, None]
            q = queries[mine].transpose(0, 1)[None]
            y = torch.nn.functional.scaled_dot_product_attention(
                q, keys[None], values[None], attn_mask=mask, enable_gqa=True
            )
            out[mine] = y[0].transpose(0, 1)

    def _act_mul(self, op: Op, batch: Batch) -> None:
        fc, gate = self._get(op.in_, batch.num_tokens).split(op.n, dim=1)
        self._get(op.out, batch.num_tokens).copy_(torch.nn.functional.silu(fc) * gate)

    def _add(self, op: Op, batch: Batch) -> None:
        assert op.in2 is not None
        self._get(op.in_, batch.num_tokens).add_(self._get(op.in2, batch.num_tokens))

    def _take_rows(self, op: Op, batch: Batch) -> None:
        self._get(op.out, batch.num_rows).copy_(self._get(op.in_, batch.num_tokens)[batch.rows.long()])


EXECUTORS: dict[str, type[NativeExecutor] | type[TorchExecutor]] = {"native": NativeExecutor, "torch": TorchExecutor}
