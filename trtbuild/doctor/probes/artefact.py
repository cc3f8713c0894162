"""What a checkpoint, engine or repository directory says of what it needs; ours or anyone's."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from trtbuild.doctor.facts import Artefact
from trtbuild.manifest import read_manifest
from trtbuild.quantization import LAYERS, MIXED

_HALVES = ("encoder", "decoder")
_SUFFIXES = {"engine": ".engine", "checkpoint": ".safetensors"}


def probe_artefact(path: Path) -> Artefact:
    """Faults of the directory become `problems`; a repository also carries the facts of its engine."""
    path = path.resolve()
    if not path.is_dir():
        return Artefact(path=str(path), problems=(f"{path} is not a directory",))
    if (path / "tensorrt_llm" / "config.pbtxt").is_file():
        return _repository(path)
    folders = [path / half for half in _HALVES if (path / half / "config.json").is_file()]
    if not (path / "config.json").is_file() and folders:
        halves = [_ranks(folder) for folder in folders]
        ranks = tuple(sum(sizes) for sizes in zip(*(half.rank_bytes for half in halves), strict=False))
        problems = tuple(problem for half in halves for problem in half.problems)
        return replace(halves[-1], path=str(path), rank_bytes=ranks, problems=problems)
    return _ranks(path)


def _ranks(path: Path) -> Artefact:
    """A directory with config.json and a file for each rank."""
    try:
        config: Any = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        return Artefact(path=str(path), problems=(f"{path} is no checkpoint, engine or repository: {error}",))
    if not isinstance(config, dict):
        return Artefact(path=str(path), problems=(f"{path / 'config.json'} is not an object",))
    pretrained = config.get("pretrained_config", config)
    if "pretrained_config" in config:
        kind = "engine"
    elif "architecture" in config:
        kind = "checkpoint"
    else:
        return Artefact(path=str(path), problems=(f"{path} is a Hugging Face model, or not a model at all",))
    manifest = read_manifest(path) or read_manifest(path.parent)  # of both halves, beside their folders
    options, versions = manifest.get("options", {}), manifest.get("versions", {})
    mapping, quantization = pretrained.get("mapping") or {}, pretrained.get("quantization") or {}
    cpu = (config.get("trtbuild") or {}).get("target") == "cpu"
    target = "cpu" if cpu else str(options.get("target") or "tensorrt")
    world = int(mapping.get("world_size") or 1)
    files = [path / f"rank{rank}{_SUFFIXES[kind]}" for rank in range(world)]
    missing = [file.name for file in files if not file.is_file()]
    return Artefact(
        path=str(path),
        kind=kind,
        target=target,
        world_size=world,
        tensorrt_llm="" if cpu or kind != "engine" else str(config.get("version", "")),
        tensorrt=str(versions.get("tensorrt", "")),
        sm=_built_sm(options, path.name) if kind == "engine" and not cpu else None,
        quant_algo=str(quantization.get("quant_algo") or ""),
        kv_cache_algo=str(quantization.get("kv_cache_quant_algo") or ""),
        layer_algos=_layer_algos(path, pretrained),
        rank_bytes=tuple(_size(path, file) for file in files),
        problems=(f"{path} lacks {', '.join(missing)}",) if missing else (),
    )


def _layer_algos(path: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """What the modules of a MIXED_PRECISION checkpoint or engine have, by the file beside its config.json."""
    if (config.get("quantization") or {}).get("quant_algo") != MIXED:
        return ()
    try:
        table = json.loads((path / "quant_cfg.json").read_text())[LAYERS]
        return tuple(sorted({str(own["quant_algo"]) for own in table.values() if own.get("quant_algo")}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()  # `trtbuild check` says what is wrong with it


def _built_sm(options: dict[str, Any], half: str) -> int | None:
    """The architecture that built an engine: as its ranks saw it, else as it was asked for."""
    built = options.get("built") or {}
    seen = built.get("sm", (built.get(half) or {}).get("sm", options.get("sm")))
    return seen if isinstance(seen, int) else None


def _repository(path: Path) -> Artefact:
    manifest = read_manifest(path)
    text = (path / "tensorrt_llm" / "config.pbtxt").read_text(errors="replace")
    left = sorted(set(re.findall(r"\$\{\w+\}", text)))
    problems = [f"tensorrt_llm/config.pbtxt has unfilled {', '.join(left)}"] if left else []
    named = re.search(r'key:\s*"gpt_model_path"\s*value:?\s*{\s*string_value:\s*"([^"]*)"', text)
    engine = str(manifest.get("source", {}).get("engine") or (named[1] if named else ""))
    if not (Path(engine) / "config.json").is_file():
        problems.append(f"its engine is not here: {engine or 'no gpt_model_path in tensorrt_llm/config.pbtxt'}")
        source = manifest.get("source", {})
        return Artefact(
            path=str(path),
            kind="repository",
            target=str(source.get("target", "tensorrt")),
            world_size=int(source.get("world_size", 1)),
            engine=engine,
            problems=tuple(problems),
        )
    facts = _ranks(Path(engine))
    return replace(facts, path=str(path), kind="repository", engine=engine, problems=(*problems, *facts.problems))


def _size(folder: Path, rank_file: Path) -> int:
    """Bytes of a rank's file, and of the weights that a fast build leaves beside it (section 6)."""
    managed = folder / f"{rank_file.stem}_managed_weights.safetensors"
    return sum(file.stat().st_size for file in (rank_file, managed) if file.is_file())
