"""Chooses the executor of a cpu engine by measuring: kernels differ wildly by CPU and dtype."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch

from trtbuild.errors import ToolError
from trtbuild.mapping import Mapping
from trtbuild.runtime.executor import EXECUTORS, Batch, Executor, State
from trtbuild.runtime.info import default_threads
from trtbuild.runtime.model import load_weights
from trtbuild.runtime.ops import EXPERT_KINDS, Kind, Op
from trtbuild.runtime.program import build_program

_BATCHES = (1, 8, 64)
_ROUNDS = 20
_MARGIN = (
    1.25  # the first executor, whose results do not depend on the batch, stays unless another one is clearly faster
)


def choose_executor(rank_file: Path, config: dict[str, Any], mapping: Mapping) -> dict[str, Any]:
    """Time every linear of one layer, experts too, with 1, 8 and 64 tokens on each executor that works here.

    Returns the content of `kernels.json`: the executor with the best decode step (one token, which is what a user
    waits for), this CPU, the measured microseconds, and why an executor is not there.
    """
    program = build_program(config, mapping)
    weights = load_weights(rank_file, program)
    ops = _linears(program.ops)
    empty = torch.zeros(1, 1, 1, 1, 1)
    executors: dict[str, Executor] = {}
    reasons: dict[str, str] = {}
    for name, executor_type in EXECUTORS.items():
        buffers = {buffer: torch.randn(max(_BATCHES), width) for buffer, width in program.shapes.widths().items()}
        state = State(program, weights, buffers, empty, empty, empty[0, 0], empty[0, 0], 32)
        try:
            executors[name] = executor_type(state, default_threads(mapping.tp_size))
        except ToolError as error:
            reasons[name] = error.message.splitlines()[0]
    measured = {name: {str(count): math.inf for count in _BATCHES} for name in executors}
    for _ in range(_ROUNDS):  # in turn, so that a busy moment of the machine hits all of them
        for name, executor in executors.items():
            for count in _BATCHES:
                measured[name][str(count)] = min(measured[name][str(count)], _microseconds(executor, ops, count))
    best = next(iter(executors))
    for name in executors:
        if measured[name]["1"] * _MARGIN < measured[best]["1"]:
            best = name
    return {"executor": best, "cpu": _cpu(), "measured_us_per_layer": measured, "unavailable": reasons}


def _linears(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """The linears of one layer, and the expert operations between them: what lies from one attention to the next."""
    starts = [index for index, op in enumerate(ops) if op.kind is Kind.ATTENTION]
    layer = ops[starts[0] : starts[1] if len(starts) > 1 else None] if starts else ()
    return tuple(op for op in layer if op.kind in {Kind.PREPARE, Kind.LINEAR, *EXPERT_KINDS} and not op.of_rows)


def _microseconds(executor: Executor, ops: tuple[Op, ...], count: int) -> float:
    zeros = torch.zeros(count, dtype=torch.int32)
    batch = Batch(zeros, zeros, zeros, torch.zeros(1, 1, dtype=torch.int32), zeros[:0])
    start = time.perf_counter()
    executor.run(ops, batch)
    return round((time.perf_counter() - start) * 1e6, 1)


def _cpu() -> str:
    from trtbuild.runtime.native.library import cpu_name

    return cpu_name()
