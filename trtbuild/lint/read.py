"""EDGE: a folder's JSON files and safetensors headers -> values; whatever lies there, problems become findings."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtbuild.checkpoint.source import read_header
from trtbuild.errors import CheckpointError
from trtbuild.layout import TensorInfo
from trtbuild.lint.finding import Finding, find
from trtbuild.manifest import read_manifest

_RANK = re.compile(r"rank(\d{1,6})\.safetensors")
_MAX_JSON = 50_000_000
KINDS = {
    "checkpoint": "a TensorRT-LLM checkpoint",
    "encoder-decoder": "the two TensorRT-LLM checkpoints of an encoder-decoder model",
    "hugging-face": "a Hugging Face model: convert it first with `trtbuild checkpoint`",
    "engine": "an engine: give the checkpoint that it was built from",
    "repository": "a Triton model repository",
    "unknown": "nothing that trtbuild knows: a checkpoint is config.json and rankN.safetensors",
    "missing": "no folder",
}


@dataclass
class Files:
    """What was read of one checkpoint folder; headers are by rank, then by tensor name."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    quant_cfg: Any = None
    manifest: dict[str, Any] = field(default_factory=dict)
    headers: dict[int, dict[str, TensorInfo]] = field(default_factory=dict)
    ranks: list[int] = field(default_factory=list)
    """Ranks that have a file, readable or not."""
    findings: list[Finding] = field(default_factory=list)


def kind_of(folder: Path) -> str:
    """What a folder is, one of KINDS, by the files in it."""
    try:
        if not folder.is_dir():
            return "missing"
        if all((folder / half / "config.json").is_file() for half in ("encoder", "decoder")):
            return "encoder-decoder"
        if any(folder.glob("*/config.pbtxt")):
            return "repository"
        names = {path.name for path in folder.iterdir()}
    except OSError:
        return "missing"
    config = _json(folder / "config.json")
    if isinstance(config, dict) and "architecture" not in config:
        if "pretrained_config" in config or "build_config" in config:
            return "engine"
        if "architectures" in config or "model_type" in config:
            return "hugging-face"
    if "config.json" in names or any(_RANK.fullmatch(name) for name in names):
        return "checkpoint"
    if any(name.endswith(".engine") for name in names):
        return "engine"
    return "unknown"


def parts_of(folder: Path) -> list[str]:
    """Subfolders of a TensorRT-LLM checkpoint that hold rank files ("" is the folder itself); empty for others."""
    halves = ("encoder", "decoder") if kind_of(folder) == "encoder-decoder" else ("",)
    try:
        return [half for half in halves if any(_RANK.fullmatch(path.name) for path in (folder / half).iterdir())]
    except OSError:
        return []


def read_files(folder: Path) -> Files:
    """Everything but the tensors' bytes."""
    files = Files(folder)
    config = _json(folder / "config.json")
    if isinstance(config, dict):
        files.config = config
    else:
        found = config if isinstance(config, str) else "no such file" if config is None else "no object"
        files.findings.append(find("config-unreadable", "config.json", "a JSON object", found))
    files.quant_cfg = _json(folder / "quant_cfg.json")
    files.manifest = manifest_of(folder)
    try:
        paths = sorted((int(m[1]), path) for path in folder.iterdir() if (m := _RANK.fullmatch(path.name)))
    except OSError:
        paths = []
    for rank, path in paths:
        files.ranks.append(rank)
        try:
            files.headers[rank] = {info.name: info for info in read_header(path)}
        except CheckpointError as error:
            found = error.message.removeprefix(f"{path.name} ")
            hint = "Copy or convert it again."
            files.findings.append(
                find("rank-file-unreadable", path.name, "a whole safetensors file", found, hint, rank)
            )
        except (RecursionError, OverflowError, MemoryError) as error:
            text = f"its header cannot be parsed ({type(error).__name__})"
            files.findings.append(find("rank-file-unreadable", path.name, "a whole safetensors file", text, "", rank))
    return files


def manifest_of(folder: Path) -> dict[str, Any]:
    """trtbuild.json, or nothing where it is absent or broken."""
    try:
        return read_manifest(folder)
    except RecursionError:
        return {}


def _json(path: Path) -> Any:
    """A parsed file; None where there is none, and a sentence where it cannot be parsed."""
    try:
        if path.stat().st_size > _MAX_JSON:
            return f"{path.stat().st_size} bytes, which is no config"
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        return f"it cannot be parsed: {error}"
    return "a JSON null or string" if parsed is None or isinstance(parsed, str) else parsed
