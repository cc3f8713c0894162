"""What is known of a cpu engine without loading it: its description, limits, and the sizes that follow. No torch."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtbuild.errors import EngineError
from trtbuild.mapping import Mapping
from trtbuild.runtime.program import build_program

TOKENS_PER_BLOCK = 32
_KV_SHARE_OF_FREE_MEMORY = 0.25


@dataclass(frozen=True)
class RuntimeOptions:
    """Limits of a running engine; None takes the engine's own, or what memory allows."""

    max_batch_size: int | None = None
    max_tokens_in_paged_kv_cache: int | None = None
    executor: str = ""


@dataclass(frozen=True)
class EngineInfo:
    """`config.json` of a cpu engine directory."""

    directory: Path
    config: dict[str, Any]

    @property
    def pretrained(self) -> dict[str, Any]:
        return dict(self.config["pretrained_config"])

    @property
    def build(self) -> dict[str, Any]:
        return dict(self.config["build_config"])

    @property
    def executor(self) -> str:
        return str(self.config["trtbuild"]["executor"])

    def mapping(self, rank: int = 0) -> Mapping:
        return Mapping.of_config(self.config["pretrained_config"]["mapping"], rank)


def read_engine(directory: Path) -> EngineInfo:
    """The description of a cpu engine.

    Raises:
        EngineError: no engine there, an engine of another target, or rank files are missing.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise EngineError(f"{directory} is not an engine: cannot read {path.name}: {error.strerror}") from error
    except ValueError as error:
        raise EngineError(f"{path} is not valid JSON: {error}") from error
    if "pretrained_config" not in config or "build_config" not in config:
        raise EngineError(f"{directory} is not an engine: {path.name} lacks pretrained_config or build_config")
    target = config.get("trtbuild", {}).get("target", "tensorrt")
    if target != "cpu":
        raise EngineError(
            f"{directory} is a {target} engine", hint="The cpu runtime needs one built with --target cpu."
        )
    info = EngineInfo(directory, config)
    missing = [
        f"rank{r}.engine" for r in range(info.mapping().world_size) if not (directory / f"rank{r}.engine").is_file()
    ]
    if missing:
        raise EngineError(f"engine {directory} lacks {', '.join(missing)}", hint="Build it again.")
    return info


def default_threads(tp_size: int) -> int:
    """Threads of a rank: the host's cores shared by the ranks that compute at once, which pipeline stages do not.

    The environment variable TRTBUILD_THREADS overrides.
    """
    chosen = os.environ.get("TRTBUILD_THREADS")
    return int(chosen) if chosen else max(1, len(os.sched_getaffinity(0)) // tp_size)


def kv_bytes_per_token(info: EngineInfo) -> int:
    """Bytes of keys and values of one token on the rank that holds most layers."""
    shapes = build_program(info.pretrained, info.mapping()).shapes
    return 2 * 4 * shapes.num_layers * shapes.num_kv_heads * shapes.head_size


def default_kv_blocks(info: EngineInfo, max_batch_size: int, max_tokens: int | None) -> int:
    """Blocks of the pool: what was asked for, else every sequence at full length, within a quarter of free memory."""
    if max_tokens is not None:
        return max(1, -(-max_tokens // TOKENS_PER_BLOCK))
    budget = _available_memory() * _KV_SHARE_OF_FREE_MEMORY / info.mapping().world_size
    affordable = int(budget) // kv_bytes_per_token(info) // TOKENS_PER_BLOCK
    longest: int = info.build["max_seq_len"]
    return max(1, min(max_batch_size * -(-longest // TOKENS_PER_BLOCK), affordable))


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 33
