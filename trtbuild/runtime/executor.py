"""The two executors of a program: native kernels, and plain torch (the readable reference, and the fallback).

Both work on the same buffers, weights and paged cache, so that one can be checked against the other op by op.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from trtbuild.errors import ToolError
from trtbuild.runtime.activations import ACTIVATIONS
from trtbuild.runtime.features import Activation
from trtbuild.runtime.forms import Round
from trtbuild.runtime.ops import Buffer, Op
from trtbuild.runtime.packed import linear, on_grid, prepared
from trtbuild.runtime.program import Program
from trtbuild.runtime.torch_experts import TorchExperts

if TYPE_CHECKING:
    from trtbuild.runtime.native.library import BatchStruct, OpStruct

_WTYPE = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.int8: 3,
    torch.uint8: 4,  # int4, as `int4.py` packs it
    torch.float8_e4m3fn: 5,
}


@dataclass
class Batch:
    """One step: T tokens of several sequences, R of which need logits. All int32.

    token_ids, positions, slots: [T]; block_tables: [sequence slots, max_blocks]; rows: [R] indices into T;
    lengths: [sequence slots] tokens of each sequence, those of later steps included (only long rope reads it).
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    block_tables: torch.Tensor
    rows: torch.Tensor
    lengths: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int32))

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_rows(self) -> int:
        return len(self.rows)


@dataclass
class State:
    """What a rank holds between steps. Cache layouts are those that kernels.c explains."""

    program: Program
    weights: dict[str, torch.Tensor]
    buffers: dict[Buffer, torch.Tensor]
    keys: torch.Tensor  # [layers, blocks, kv_heads, head_size, block_tokens] float32
    values: torch.Tensor  # [layers, blocks, kv_heads, block_tokens, head_size] float32
    cos: torch.Tensor  # [tables, max_seq_len, rotary_size / 2] float32
    sin: torch.Tensor
    block_tokens: int
    position_bias: torch.Tensor | None = None  # [heads, whole blocks of max_seq_len] float32

    def scale_of(self, weight: str) -> torch.Tensor | None:
        """Scales of a quantized weight, one an output row or one a group of inputs; None for another weight."""
        return self.weights.get(weight.removesuffix(".weight") + ".per_channel_scale")

    def zero_of(self, weight: str) -> torch.Tensor | None:
        """What is added to the weights of each group; None where nothing is."""
        return self.weights.get(weight.removesuffix(".weight") + ".zero")


class Executor(Protocol):
    @property
    def work(self) -> int:
        """Grows with every operation that is begun; other threads may ask while `run` runs."""

    def run(self, ops: Sequence[Op], batch: Batch) -> None:
        """Execute `ops`, none of which communicates."""


class NativeExecutor:
    """One call into kernels.c for each run of operations.

    Raises:
        ToolError: the kernels cannot be compiled here, or have not the form of some weight.
    """

    def __init__(self, state: State, num_threads: int) -> None:
        from trtbuild.runtime.native.library import BatchStruct, load_library

        _require_kernels(state.program)
        self._library = load_library()
        self._state = state
        self._compiled: dict[int, ctypes.Array[OpStruct]] = {}
        self._threads = num_threads
        self._work = ctypes.c_int64(0)
        self._scratch = torch.zeros(0)
        self._longest_row = max((op.k for op in state.program.ops), default=0)
        self._batch: BatchStruct = BatchStruct()
        shapes, features = state.program.shapes, state.program.features
        b = self._batch
        for buffer, tensor in state.buffers.items():
            b.buffer[buffer], b.width[buffer] = tensor.data_ptr(), tensor.shape[1]
        b.block_tokens, b.num_heads, b.num_kv_heads = state.block_tokens, shapes.num_heads, shapes.num_kv_heads
        b.head_size, b.score_scale, b.soft_cap = shapes.head_size, features.score_scale, features.attention_soft_cap
        b.rotary_size, b.rope_switch = features.rotary_size, features.rope_switch
        b.cos_table, b.sin_table, b.table_stride = state.cos.data_ptr(), state.sin.data_ptr(), state.cos.stride(0)
        if state.position_bias is not None:
            b.position_bias, b.bias_stride = state.position_bias.data_ptr(), state.position_bias.stride(0)
        b.keys, b.values = state.keys.data_ptr(), state.values.data_ptr()
        b.layer_stride, b.block_stride = state.keys.stride(0), state.keys.stride(1)
        b.num_threads, b.work = num_threads, ctypes.addressof(self._work)

    @property
    def work(self) -> int:
        return self._work.value

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
        b.lengths = batch.lengths.data_ptr()
        self._library.trtbuild_run(compiled, len(compiled), ctypes.byref(b))

    def _reserve(self, max_blocks: int) -> None:
        """Scratch of each thread: the scores of three heads, or what linear.h asks for."""
        floats = max(3 * max_blocks * self._state.block_tokens, 5 * self._longest_row + 64)
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
            struct.of_rows, struct.eps, struct.factor = op.of_rows, op.eps, op.factor
            struct.act, struct.window, struct.table = op.act, op.window, op.table
            if op.weight:
                weight = self._state.weights[op.weight]
                struct.weight, struct.wtype = weight.data_ptr(), _WTYPE[weight.dtype]
            if (scale := self._state.scale_of(op.weight)) is not None:
                struct.scale = scale.data_ptr()
                struct.group = op.k // scale.shape[-1] if scale.dim() == weight.dim() else 0
            if (zero := self._state.zero_of(op.weight)) is not None:
                struct.zero = zero.data_ptr()
            if op.bias:
                struct.bias = self._state.weights[op.bias].data_ptr()
        return compiled


class TorchExecutor(TorchExperts):
    """Each operation as the few lines of torch that define it."""

    def __init__(self, state: State, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._state = state
        self._shapes, self._features = state.program.shapes, state.program.features
        self.work = 0

    def run(self, ops: Sequence[Op], batch: Batch) -> None:
        for op in ops:
            self.work += 1
            getattr(self, f"_{op.kind.name.lower()}")(op, batch)

    def _get(self, buffer: Buffer, count: int) -> torch.Tensor:
        return self._state.buffers[buffer][:count]

    def _embed(self, op: Op, batch: Batch) -> None:
        table = self._state.weights[op.weight]
        out = self._get(op.out, batch.num_tokens).zero_()
        ids = batch.token_ids.long() - op.row
        mine = (ids >= 0) & (ids < op.n)
        out[mine, op.column : op.column + op.k] = table[ids[mine]].float() * op.factor

    def _add_position(self, op: Op, batch: Batch) -> None:
        table = self._state.weights[op.weight]
        positions = batch.positions.long() - op.row
        mine = (positions >= 0) & (positions < op.n)
        self._get(op.out, batch.num_tokens)[mine, op.column : op.column + op.k] += table[positions[mine]].float()

    def _residual(self, op: Op, batch: Batch) -> torch.Tensor:
        """The input of a norm, after the summand that waits for it."""
        count = batch.num_rows if op.of_rows else batch.num_tokens
        x = self._get(op.in_, count)
        if op.in2 is not None:
            x += self._get(op.in2, count)
        return x

    def _norm(self, op: Op, batch: Batch) -> None:
        x = self._residual(op, batch)
        self._get(op.out, len(x)).copy_(_rms_norm(x, self._state.weights[op.weight], op.eps))

    def _layer_norm(self, op: Op, batch: Batch) -> None:
        x = self._residual(op, batch)
        weight, bias = self._state.weights[op.weight], self._state.weights[op.bias]
        self._get(op.out, len(x)).copy_(torch.nn.functional.layer_norm(x, (op.k,), weight, bias, op.eps))

    def _head_norm(self, op: Op, batch: Batch) -> None:
        heads = self._get(op.in_, batch.num_tokens)[:, op.column : op.column + op.n * op.k].unflatten(1, (op.n, op.k))
        heads.copy_(_rms_norm(heads, self._state.weights[op.weight], op.eps))

    def _linear(self, op: Op, batch: Batch) -> None:
        count = batch.num_rows if op.of_rows else batch.num_tokens
        state, x = self._state, self._get(op.in_, count)[:, : op.k]
        y = linear(x, state.weights[op.weight], state.scale_of(op.weight), state.zero_of(op.weight))
        if op.bias:
            y += self._state.weights[op.bias]
        self._get(op.out, count)[:, op.column : op.column + op.n] = y

    def _prepare(self, op: Op, batch: Batch) -> None:
        if op.in2 is None:
            count = batch.num_rows if op.of_rows else batch.num_tokens
            x, out = (self._get(buffer, count)[:, : op.k] for buffer in (op.in_, op.out))
        else:
            pairs = len(self._routes(op, batch)[0])
            x, out = (self._pairs(buffer, pairs, op.k) for buffer in (op.in_, op.out))
        weights = self._state.weights
        prequant, step = (weights[name] if name else None for name in (op.weight, op.bias))
        out.copy_(prepared(x, prequant, step, Round(op.act)))

    def _rope_cache(self, op: Op, batch: Batch) -> None:
        s, f, state, tokens = self._shapes, self._features, self._state, batch.num_tokens
        qkv = self._get(op.in_, tokens).view(tokens, -1, s.head_size)
        positions, slots, half = batch.positions.long(), batch.slots.long(), f.rotary_size // 2
        table = torch.full_like(positions, op.table)
        if f.rope_switch:
            table += batch.lengths[slots] > f.rope_switch
        cos, sin = state.cos[table, positions, None], state.sin[table, positions, None]
        rotated = qkv[:, : s.num_heads + s.num_kv_heads]
        a, b = rotated[..., :half].clone(), rotated[..., half : 2 * half].clone()
        rotated[..., :half], rotated[..., half : 2 * half] = a * cos - b * sin, b * cos + a * sin
        blocks = batch.block_tables[slots, positions // state.block_tokens].long()
        at = positions % state.block_tokens
        if op.act:  # what attention reads is what an int8 or fp8 cache holds
            scale, stored = state.weights[op.weight], qkv[:, s.num_heads :]
            stored.copy_(on_grid(stored / scale, Round(op.act)) * scale)
        state.keys[op.layer, blocks, :, :, at] = qkv[:, s.num_heads : s.num_heads + s.num_kv_heads]
        state.values[op.layer, blocks, :, at] = qkv[:, s.num_heads + s.num_kv_heads :]

    def _attention(self, op: Op, batch: Batch) -> None:
        s, state, tokens = self._shapes, self._state, batch.num_tokens
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
            y = self._attend(queries[mine].transpose(0, 1), keys, values, batch.positions[mine, None], op.window)
            out[mine] = y.transpose(0, 1)

    def _attend(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor, window: int
    ) -> torch.Tensor:
        """q [heads, t, head_size] at `positions` [t, 1] over keys, values [kv_heads, context, head_size]."""
        f, bias, at = self._features, self._state.position_bias, torch.arange(keys.shape[1])
        visible = at <= positions
        if window:
            visible &= at > positions - window
        hidden = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)
        mask = hidden if bias is None else hidden + bias[:, None, : len(at)]
        if not f.attention_soft_cap:
            y = torch.nn.functional.scaled_dot_product_attention(
                q[None], keys[None], values[None], attn_mask=mask, scale=f.score_scale, enable_gqa=True
            )
            return y[0]
        repeat = len(q) // len(keys)
        scores = q @ keys.repeat_interleave(repeat, 0).mT * f.score_scale
        scores = f.attention_soft_cap * torch.tanh(scores / f.attention_soft_cap) + mask
        return scores.softmax(-1) @ values.repeat_interleave(repeat, 0)

    def _act_mul(self, op: Op, batch: Batch) -> None:
        halves = self._get(op.in_, batch.num_tokens).split(op.n, dim=1)
        activated, other = halves if op.column == 0 else halves[::-1]
        self._get(op.out, batch.num_tokens).copy_(ACTIVATIONS[Activation(op.act)](activated) * other)

    def _act(self, op: Op, batch: Batch) -> None:
        self._get(op.out, batch.num_tokens).copy_(ACTIVATIONS[Activation(op.act)](self._get(op.in_, batch.num_tokens)))

    def _soft_cap(self, op: Op, batch: Batch) -> None:
        x = self._get(op.in_, batch.num_rows if op.of_rows else batch.num_tokens)
        self._get(op.out, len(x)).copy_(op.factor * torch.tanh(x / op.factor))

    def _add(self, op: Op, batch: Batch) -> None:
        assert op.in2 is not None
        self._get(op.in_, batch.num_tokens).add_(self._get(op.in2, batch.num_tokens))

    def _take_rows(self, op: Op, batch: Batch) -> None:
        self._get(op.out, batch.num_rows).copy_(self._get(op.in_, batch.num_tokens)[batch.rows.long()])


EXECUTORS: dict[str, type[NativeExecutor] | type[TorchExecutor]] = {"native": NativeExecutor, "torch": TorchExecutor}


_GROUP_UNIT = 32  # of the native kernels


def _require_kernels(program: Program) -> None:
    """Raise ToolError where the native kernels have not the form of a weight."""
    groups = {weight.form.group for weight in program.weights if weight.form}
    odd = [str(group) for group in sorted(groups) if group % _GROUP_UNIT]
    if odd:
        raise ToolError(f"the native kernels take groups of multiples of {_GROUP_UNIT}, not of {', '.join(odd)}")


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight
