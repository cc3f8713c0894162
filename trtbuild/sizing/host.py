"""Host memory, disk and time of each stage. PURE.

Times are models with stated constants, meant to tell minutes from hours: conversion and quantization were measured by
scripts/bench_convert.py and scripts/bench_quantize.py (2 cores), the engine build was read off public logs.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtbuild.plan import ModelPlan
from trtbuild.spec import CALIBRATION, CALIBRATION_LENGTH, calibration_samples

BUILD_BASE_BYTES = 6_000_000_000
"""Python, torch, tensorrt_llm and TensorRT's kernels of one trtllm-build process (6.4 to 7.0 GB in 0.20 and 1.2.1)."""
BUILD_WEIGHTS = 2.5
"""Times the engine, in host memory: the shard, TensorRT's copy, and the serialized plan (2.1 to 2.5 in public logs)."""
_DISK_RATE = 1.0e9  # bytes/s; conversion runs at 0.8 to 1.1 times cp + sha256sum
_NETWORK_RATE = 1.0e8  # bytes/s of the hub, at 1 Gbit/s
_CALIBRATION_RATE = (
    1.4e10  # parameters x tokens/s on 2 cores: 1.1e9 over 16 x 256 tokens in 322 s, int4_awq's search too
)
_ROUNDING_RATE = 3.0e7  # parameters/s on 2 cores, of methods that look at no text
_VERIFY_TOKENS = 2048  # of the model and again of its engine
_PROCESS_BYTES = 1_000_000_000
_REPOSITORY_BYTES = 50_000_000  # the tokenizer's files, and models of a few KB; the engine stays where it is
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
    """What each stage takes of one host, in their order; engines are built all at once, one process a GPU.

    Time and memory of `download`, `verify` and `repo` were not measured with large models.
    """
    here = sorted(engine_bytes, reverse=True)[:gpus_per_node]
    built = Stage(
        "engine",
        sum(build_memory(size) for size in here),
        sum(engine_bytes),
        build_seconds(max(engine_bytes, default=0)),
        _BUILD_SPREAD,
        f"{len(here)} rank(s) at once on a host; with --processes 1 they come one after the other in "
        f"{build_memory(here[0] if here else 0) / 1e9:.0f} GB",
    )
    reads = plan.source_bytes
    fetched = Stage(
        "download", 0, reads, reads / _NETWORK_RATE, 10, "from the hub at 100 MB/s; nothing where it is here"
    )
    repository = Stage("repo", _PROCESS_BYTES // 4, _REPOSITORY_BYTES, 5, 2, "the engine is named by its path")
    return fetched, _checkpoint(plan), _verify(plan), built, repository


def _checkpoint(plan: ModelPlan) -> Stage:
    """Converting or quantizing; a quantized KV cache runs the model over the calibration text, as most methods do."""
    methods = {method.name: method for part in plan.parts for method in part.methods}
    quantized = [] if plan.imported else [name for name, method in methods.items() if method.fields]
    watched = [name for name in quantized if methods[name].needs_calibration]
    if not plan.imported and plan.options.kv_cache_algo is not None:
        watched.append(f"KV cache {plan.options.kv_cache}")
    written = plan.checkpoint_bytes + plan.scratch_bytes
    seconds = (plan.source_bytes + written) / _DISK_RATE
    note = "streams the source once"
    if quantized:
        seconds += plan.parameters / _ROUNDING_RATE
        note = f"quantizes by {' and '.join(quantized)} layer by layer on 2 cores; more cores are faster"
    if watched:
        gram = any(CALIBRATION.search in methods[name].gram_for for name in quantized)
        samples = calibration_samples(gram)
        seconds += plan.parameters * samples * CALIBRATION_LENGTH / _CALIBRATION_RATE
        note = (
            f"calibrates {' and '.join(watched)} on up to {samples} x {CALIBRATION_LENGTH} tokens on 2 cores; more "
            "cores are faster, and so are fewer --calib-samples"
        )
    return Stage("checkpoint", plan.memory_bytes, written, seconds, 3, note)


def _verify(plan: ModelPlan) -> Stage:
    """The float32 model a layer at a time, and the checkpoint's cpu engine, which is mapped (`verify/README.md`)."""
    spec = plan.parts[0].spec
    layer = plan.parameters / spec.num_layers + spec.vocab_size * spec.hidden_size
    spooled = 4 * _VERIFY_TOKENS * ((spec.num_layers + 1) * spec.hidden_size + 2 * spec.vocab_size)
    seconds = (plan.source_bytes + 2 * plan.checkpoint_bytes) / _DISK_RATE
    seconds += 2 * plan.parameters * _VERIFY_TOKENS / _CALIBRATION_RATE
    note = f"optional; {_VERIFY_TOKENS} tokens through the model and through its cpu engine on 2 cores"
    memory = _PROCESS_BYTES + int(4 * layer)
    return Stage("verify", memory, plan.checkpoint_bytes + spooled, seconds, 3, note)


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
