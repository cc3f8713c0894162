"""One rank of an engine: its memory-mapped weights, its part of the paged KV cache, and the forward step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from trtbuild.errors import EngineError, ToolError
from trtbuild.mapping import Mapping
from trtbuild.runtime.alibi import position_bias
from trtbuild.runtime.architectures import require_seq_len
from trtbuild.runtime.comm import Comm
from trtbuild.runtime.executor import EXECUTORS, Batch, Executor, State
from trtbuild.runtime.features import Position
from trtbuild.runtime.forms import engine_tensors
from trtbuild.runtime.info import TOKENS_PER_BLOCK, EngineInfo, default_threads
from trtbuild.runtime.ops import Buffer, Kind, Op
from trtbuild.runtime.program import Program, build_program
from trtbuild.runtime.rope import rope_tables

_SHOWN = 8


def load_weights(path: Path, program: Program) -> dict[str, torch.Tensor]:
    """Tensors of a rank file, memory-mapped: pages are read when first used, and shared between processes.

    Raises:
        EngineError: the file is damaged, or does not hold what the program needs; names all that is wrong.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as handle:
            weights = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise EngineError(f"{path} is damaged: {error}", hint="Build the engine again.") from error
    problems = []
    for weight in program.weights:
        for name, (dtype, shape) in engine_tensors(weight.name, weight.shape, weight.form).items():
            tensor = weights.get(name)
            if tensor is None or tuple(tensor.shape) != shape:
                found = None if tensor is None else tuple(tensor.shape)
                problems.append(f"{name} has shape {found}, expected {shape}")
            elif dtype and tensor.dtype is not getattr(torch, dtype):
                problems.append(f"{name} is {str(tensor.dtype).removeprefix('torch.')}, expected {dtype}")
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        text = "; ".join(problems[:_SHOWN])
        raise EngineError(f"{path}: {text}{more}", hint="Build the engine again.")
    return weights


class RankModel:
    """Weights, cache and program of one rank."""

    def __init__(
        self, info: EngineInfo, comm: Comm, *, max_batch_size: int, kv_blocks: int, executor: str = ""
    ) -> None:
        self.info, self.comm = info, comm
        self._parts = 0  # of steps, that were begun
        self.program = build_program(info.pretrained, comm.mapping)
        self.max_seq_len: int = info.build["max_seq_len"]
        self.max_num_tokens: int = info.build["max_num_tokens"]
        weights = load_weights(info.directory / f"rank{comm.mapping.rank}.engine", self.program)
        f, s, rows = self.program.features, self.program.shapes, max(max_batch_size, self.max_num_tokens)
        require_seq_len(f, self.max_seq_len)
        cos, sin = rope_tables(f.ropes, f.rotary_size, self.max_seq_len)
        buffers = {buffer: torch.zeros(rows, width) for buffer, width in s.widths().items()}
        cache = (s.num_layers, kv_blocks, s.num_kv_heads)
        # empty, not zeros: untouched pages of the pool cost no memory
        keys = torch.empty(*cache, s.head_size, TOKENS_PER_BLOCK)
        values = torch.empty(*cache, TOKENS_PER_BLOCK, s.head_size)
        bias = _position_bias(self.program, comm.mapping, self.max_seq_len)
        self._state = State(self.program, weights, buffers, keys, values, cos, sin, TOKENS_PER_BLOCK, bias)
        threads = default_threads(comm.mapping.tp_size)
        self.executor = make_executor(executor or info.executor, self._state, threads)
        self._segments = segments(self.program.ops)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The memory-mapped tensors of this rank's engine."""
        return self._state.weights

    @property
    def buffers(self) -> dict[Buffer, torch.Tensor]:
        """The activations of the last step."""
        return self._state.buffers

    @property
    def work(self) -> int:
        """Grows while this rank computes: with every operation, also inside of a long step."""
        return self._parts + self.executor.work

    def forward(self, batch: Batch) -> None:
        """Run this rank's part of one step; rank 0 finds the logits with `logits`."""
        self.run(self._segments, batch)

    def run(self, parts: Sequence[tuple[Op, ...]], batch: Batch) -> None:
        """Run `segments` of operations; they must live as long as this model does."""
        for ops in parts:
            self._parts += 1
            if ops[0].kind < Kind.ALL_REDUCE:
                self.executor.run(ops, batch)
            else:
                self._communicate(ops[0], batch)

    def logits(self, num_rows: int) -> NDArray[Any]:
        """Rank 0, after `forward`: float32 [R, vocab_size], valid until the next step."""
        return self.comm.logits(num_rows, self.program.shapes.vocab_rows)[:, : self.program.shapes.vocab_size]

    def _communicate(self, op: Op, batch: Batch) -> None:
        if op.kind is Kind.ALL_REDUCE:
            self.comm.all_reduce(self._rows(op.out, batch.num_tokens))
        elif op.kind is Kind.RECEIVE:
            self.comm.receive_hidden(self._rows(op.out, batch.num_tokens))
        elif op.kind is Kind.SEND:
            self.comm.send_hidden(self._rows(op.in_, batch.num_tokens))
        else:
            self.comm.gather_logits(self._rows(op.in_, batch.num_rows))

    def _rows(self, buffer: Buffer, count: int) -> NDArray[Any]:
        view: NDArray[Any] = self._state.buffers[buffer][:count].numpy()
        return view


def _position_bias(program: Program, mapping: Mapping, max_seq_len: int) -> torch.Tensor | None:
    """The alibi bias of this rank's heads, for whole blocks of keys; None for models without."""
    f, mine = program.features, program.shapes.num_heads
    if f.position is not Position.ALIBI:
        return None
    heads = range(mapping.tp_rank * mine, (mapping.tp_rank + 1) * mine)
    length = -(-max_seq_len // TOKENS_PER_BLOCK) * TOKENS_PER_BLOCK
    return position_bias(mine * mapping.tp_size, heads, length, scale=f.alibi_scale, rounded=f.alibi_rounded)


def make_executor(name: str, state: State, threads: int) -> Executor:
    """The executor that the engine chose, or the torch one, with a word in the log, where this machine lacks it."""
    try:
        return EXECUTORS[name](state, threads)
    except ToolError as error:
        print(f"warning: the {name} executor is not available here, using torch (slower): {error.message}", flush=True)
        return EXECUTORS["torch"](state, threads)


def segments(ops: tuple[Op, ...]) -> list[tuple[Op, ...]]:
    """Runs of local operations, each communication on its own."""
    found: list[list[Op]] = []
    for op in ops:
        local = op.kind < Kind.ALL_REDUCE
        if local and found and found[-1][0].kind < Kind.ALL_REDUCE:
            found[-1].append(op)
        else:
            found.append([op])
    return [tuple(segment) for segment in found]
