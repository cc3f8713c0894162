"""Host memory, disk and time of each stage. PURE.

Times are models with stated constants, meant to tell minutes from hours: conversion and quantization were measured by
scripts/bench_convert.py and scripts/bench_quantize.py (2 cores), the engine build was read off public logs.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtbuild.plan import ModelPlan

BUILD_BASE_BYTES = 6_000_000_000
"""Python, torch, tensorrt_llm and TensorRT's kernels of one trtllm-build process (6.4 to 7.0 GB in 0.20 and 1.2.1)."""
BUILD_WEIGHTS = 2.5
"""Times the engine, in host memory: the shard, TensorRT's copy, and the serialized plan (2.1 to 2.5 in public logs)."""
_DISK_RATE = 1.0e9  # bytes/s; conversion runs at 0.8 to 1.1 times cp + sha256sum
_QUANTIZE_RATE = 3.4e6  # parameters/s on 2 cores: 1.1e9 in 322 s, int4_awq with its search
_BUILD_SECONDS = 60.0
_BUILD_RATE = 1.5e8  # engine bytes/s: TensorRT's compilation and writing the plan
_BUILD_SPREAD = 5


@dataclass(frozen=True)
class Stage:
    """`memory_bytes` at its peak, `disk_bytes` that it adds at most, `seconds` expected; `spread`: that many times
    more or less is normal. `note` says what counts."""

    name: str
    memory_bytes: int
    disk_bytes: int
    seconds: float
    spread: float
    note: str


def stages(plan: ModelPlan, engine_bytes: tuple[int, ...], gpus_per_node: int = 8) -> tuple[Stage, ...]:
    """What converting or quantizing, and building all ranks at once (one process a GPU), take of one host."""
    methods = {method.name: method for part in plan.parts for method in part.methods}
    calibrated = [name for name, method in methods.items() if method.fields and not plan.imported]
    reads, writes = plan.source_bytes, plan.checkpoint_bytes
    seconds = (reads + writes + plan.scratch_bytes) / _DISK_RATE
    note = "streams the source once"
    if calibrated:
        seconds += plan.parameters / _QUANTIZE_RATE
        note = f"quantizes by {' and '.join(calibrated)} layer by layer on 2 cores; more cores are faster"
    made = Stage("checkpoint", plan.memory_bytes, writes + plan.scratch_bytes, seconds, 3, note)
    here = sorted(engine_bytes, reverse=True)[:gpus_per_node]
    built = Stage(
        "engine",
        sum(build_memory(size) for size in here),
        sum(engine_bytes),
        build_seconds(max(engine_bytes, default=0)),
        _BUILD_SPREAD,
        f"{len(here)} rank(s) at once on a host; with --workers 1 they come one after the other in "
        f"{build_memory(here[0] if here else 0) / 1e9:.0f} GB",
    )
    return made, built


def build_memory(engine_bytes: int) -> int:
    """Host memory of one trtllm-build process for one rank.

    Against five public logs (0.8 to 0.20): 7 % less to 35 % more; releases before 0.20 have a smaller base.
    """
    return BUILD_BASE_BYTES + int(BUILD_WEIGHTS * engine_bytes)


def build_seconds(engine_bytes: int) -> float:
    """Time of one rank's build: compiling, timing kernels, writing the plan.

    Public logs of 1.2.1 say 150 to 236 s for a 7B model, older ones 24 s (timing cache) to 320 s for 6 to 9B.
    """
    return _BUILD_SECONDS + engine_bytes / _BUILD_RATE
