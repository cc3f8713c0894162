"""Which precisions TensorRT-LLM can run on a GPU, by release. PURE: every rule names its source.

"engine-build N" is a section of the collected facts on trtllm-build 1.2; each rule has a test that fails without it.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtbuild.quantization import (
    DATA_CENTER_BLACKWELL,
    KV_LEAST_SM,
    KV_NOT_ON_BLACKWELL,
    LEAST_SM,
    NOT_ON_BLACKWELL,
)
from trtbuild.sizing.gpus import Gpu

VERSIONS = (
    "0.17.0", "0.17.0.post1", "0.18.0", "0.18.1", "0.18.2", "0.19.0", "0.20.0", "0.21.0", "1.0.0", "1.1.0", "1.2.0",
    "1.2.1",
)  # fmt: skip
"""Releases with the engine backend that have a Triton container or a wheel (engine-build 8)."""
LATEST = VERSIONS[-1]

FP8_ATTENTION = frozenset({"FP8", "W4A8_AWQ", "NVFP4"})
"""Those that leave paged context attention on with an fp8 KV cache (engine-build 4.1)."""


@dataclass(frozen=True)
class Legality:
    problems: tuple[str, ...] = ()
    """Combinations that are refused by TensorRT-LLM, or have no kernels."""
    warnings: tuple[str, ...] = ()
    paged_context: bool = True
    """Whether prompts can be read in chunks and their KV blocks reused."""


def legality(gpu: Gpu, version: str, algos: frozenset[str], kv_cache_algo: str | None) -> Legality:
    """What is wrong with these quant_algo names and this KV cache on this GPU in this release."""
    where = f"{gpu.name} (SM {gpu.sm})"
    problems = [f"{gpu.name} cannot be used: {gpu.refused}"] if gpu.refused else []
    warnings = []
    problems += _version_problems(version)
    kv = {f"KV cache {kv_cache_algo}"} if kv_cache_algo else set()
    newer = {algo: LEAST_SM.get(algo, 0) for algo in sorted(algos)}
    newer |= {name: KV_LEAST_SM.get(kv_cache_algo or "", 0) for name in kv}
    lacking = [name for name, least in newer.items() if gpu.sm < least]
    if lacking and not gpu.refused:
        least = max(newer[name] for name in lacking)
        problems.append(f"{' and '.join(lacking)} needs fp8 tensor cores (SM {least} or newer); {where} has none")
    ints = sorted(algos & NOT_ON_BLACKWELL.keys()) + sorted(kv if kv_cache_algo in KV_NOT_ON_BLACKWELL else ())
    if ints and gpu.sm in DATA_CENTER_BLACKWELL:
        problems.append(
            f"{' and '.join(ints)} is refused by trtllm-build on SM 100 to 119, and so on {where}; "
            "fp8 or no quantization works there"
        )
    elif ints and gpu.sm >= 120:
        warnings.append(f"{' and '.join(ints)} on {where}: no public run of the TensorRT path is known; try it early")
    if gpu.sm >= 120 and _number(version) < (0, 19):
        warnings.append(f"{where} is known to work from TensorRT-LLM 0.19.0 on; {version} is older")
    paged = True
    if kv_cache_algo == "INT8":
        paged = False
        warnings.append("an int8 KV cache turns paged context attention off: no KV reuse, no chunked context")
    elif kv_cache_algo == "FP8" and not algos & FP8_ATTENTION:
        paged = False
        named = " and ".join(sorted(algos)) or "unquantized weights"
        warnings.append(
            f"an fp8 KV cache with {named} turns paged context attention off: no KV reuse, no chunked context"
        )
    return Legality(tuple(problems), tuple(warnings), paged)


def _version_problems(version: str) -> list[str]:
    if version in VERSIONS:
        return []
    if _number(version) > _number(LATEST):
        return [f"TensorRT-LLM {version} has no engine backend any more; {LATEST} is the last release with it"]
    return [f"TensorRT-LLM {version} is not among the releases that are known here: {', '.join(VERSIONS)}"]


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
