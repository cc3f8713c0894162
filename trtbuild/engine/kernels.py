"""Chooses the executor of a cpu engine by measuring: kernels differ wildly by CPU and dtype."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from trtbuild.errors import ToolError
from trtbuild.mapping import Mapping
from trtbuild.runtime.executor import EXECUTORS, Batch, State
from trtbuild.runtime.info import default_threads
from trtbuild.runtime.model import load_weights
from trtbuild.runtime.program import Kind, build_program

_BATCHES = (1, 8, 64)
_SECONDS = 0.4


def choose_executor(rank_file: Path, config: dict[str, Any], mapping: Mapping) -> dict[str, Any]:
    """Time every linear of one layer with 1, 8 and 64 tokens on each executor that works here.

    Returns the `trtbuild` section of the engine's config.json: the executor with the best decode step (one token,
    which is what a user waits for), this CPU, and the measured microseconds.
    """
    program = build_program(config, mapping)
    weights = load_weights(rank_file, program)
    ops = tuple(op for op in program.ops if op.kind is Kind.LINEAR and op.layer == 0 and not op.of_rows)[:4]
    empty = torch.zeros(1, 1, 1, 1, 1)
    measured: dict[str, dict[str, int]] = {}
    reasons: dict[str, str] = {}
    for name, executor_type in EXECUTORS.items():
        buffers = {buffer: torch.randn(max(_BATCHES), width) for buffer, width in program.shapes.widths().items()}
        state = State(program.shapes, weights, buffers, empty, empty, empty[0, 0, 0], empty[0, 0, 0], 32)
        try:
            executor = executor_type(state, default_threads(mapping.tp_size))
        except ToolError as error:
            reasons[name] = error.message.splitlines()[0]
            continue
        measured[name] = {str(count): _microseconds(executor, ops, count) for count in _BATCHES}
    best = min(measured, key=lambda name: measured[name]["1"])
    return {"executor": best, "cpu": _cpu(), "measured_us_per_layer": measured, "unavailable": reasons}


def _microseconds(executor: Any, ops: Any, count: int) -> int:
    zeros = torch.zeros(count, dtype=torch.int32)
    batch = Batch(zeros, zeros, zeros, torch.zeros(1, 1, dtype=torch.int32), zeros[:0])
    executor.run(ops, batch)
    best, until = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < until:
        start = time.perf_counter()
        executor.run(ops, batch)
        best = min(best, time.perf_counter() - start)
    return round(best * 1e6)


def _cpu() -> str:
    from trtbuild.runtime.native.library import cpu_name

    return cpu_name()
