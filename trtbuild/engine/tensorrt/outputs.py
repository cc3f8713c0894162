"""EDGE: what is looked at when all ranks have ended (engine-build 12.7), and what is recorded of the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping as Dict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtbuild.errors import ToolError
from trtbuild.quantization import MIXED

VERSION = "1.2.1"
"""The release that all facts here are of."""
_NOT_COMPARED = ("input_timing_cache", "output_timing_cache", "lora_config", "dtype")


@dataclass(frozen=True)
class Built:
    """What a finished engine says of itself; `effective` is build_config as it was saved, plugin_config in it."""

    version: str
    effective: dict[str, Any]
    warnings: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def check_outputs(
    folder: Path, world_size: int, expected: Dict[str, Any], pretrained: Dict[str, Any], facts: Dict[str, Any]
) -> Built:
    """Look at an engine directory; `expected` is the build_config that was predicted.

    Raises:
        ToolError: everything that is missing or contradicts itself, though the build said it was done.
    """
    config, problems = _config(folder / "config.json")
    problems += [
        f"rank{rank}.engine is {'empty' if (folder / f'rank{rank}.engine').exists() else 'missing'}"
        for rank in range(world_size)
        if not _size(folder / f"rank{rank}.engine")
    ]
    build = config.get("build_config", {})
    plugins = build.get("plugin_config") or {}
    if plugins.get("manage_weights"):
        names = [f"rank{rank}_managed_weights.safetensors" for rank in range(world_size)]
        problems += [f"{name} is missing, which holds the weights" for name in names if not _size(folder / name)]
    if (pretrained.get("quantization") or {}).get("quant_algo") == MIXED and not _size(folder / "quant_cfg.json"):
        problems.append("quant_cfg.json is missing, which says how each layer is quantized")
    saved = (config.get("pretrained_config") or {}).get("mapping") or {}
    if config and saved.get("world_size", world_size) != world_size:
        problems.append(f"config.json is of {saved['world_size']} ranks, not {world_size}")
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise ToolError(
            f"the engine build ended without an error, but its output is not whole:{listed}",
            hint="Nothing was published. The logs say what the ranks did; a full disk or another build in the same "
            "place is the usual reason.",
        )
    warnings = [*_version_warnings(str(config["version"])), *differences(build, expected)]
    return Built(str(config["version"]), build, tuple(warnings), dict(facts))


def differences(saved: Dict[str, Any], expected: Dict[str, Any]) -> list[str]:
    """Where TensorRT-LLM decided otherwise than was predicted; what it saved is what holds."""
    plugins, predicted = saved.get("plugin_config") or {}, expected["plugin_config"]
    pairs = [(name, saved.get(name), value) for name, value in expected.items() if name != "plugin_config"]
    pairs += [(name, plugins[name], value) for name, value in predicted.items() if name in plugins]
    return [
        f"TensorRT-LLM saved {name} {found}, where {value} was expected; the engine has {found}"
        for name, found, value in pairs
        if name not in _NOT_COMPARED and not _same(found, value, plugins.get("dtype"))
    ]


def _same(found: Any, value: Any, dtype: Any) -> bool:
    """Spellings that mean one thing: "PAGED" and "paged", "auto" and the model's dtype."""
    if isinstance(found, str) and isinstance(value, str):
        return found.lower() == value.lower() or (value == "auto" and found == dtype) or (found == "auto")
    return bool(found == value)


def _config(path: Path) -> tuple[dict[str, Any], list[str]]:
    try:
        config = json.loads(path.read_text())
        lacking = [key for key in ("version", "pretrained_config", "build_config") if key not in config]
    except FileNotFoundError:
        return {}, ["config.json is missing"]
    except (OSError, ValueError, TypeError) as error:
        return {}, [f"config.json cannot be read: {error}"]
    return ({}, [f"config.json lacks {', '.join(lacking)}"]) if lacking else (config, [])


def _version_warnings(version: str) -> list[str]:
    if version == VERSION:
        return []
    return [f"the engine is of TensorRT-LLM {version}, and must be served by that release; trtbuild knows {VERSION}"]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
