"""What decides the bytes of each stage, told to the cache: one function a stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild.cache import facts
from trtbuild.cache.stage import Cache, Files, Run
from trtbuild.manifest import read_manifest
from trtbuild.progress import Progress, silent
from trtbuild.spec import AUTO, CalibrationOptions, ConvertOptions

if TYPE_CHECKING:
    from trtbuild.hub.snapshot import ModelSource

_CONFIGS = ("config.json", "hf_quant_config.json")
_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*")


def checkpoint_run(
    cache: Cache,
    source: ModelSource,
    options: ConvertOptions,
    calibration: CalibrationOptions,
    *,
    allow_pickle: bool = False,
    progress: Progress = silent,
) -> Run:
    """A model -> a checkpoint. Where it is calibrated, the tokenizer and the processor that computes count too."""
    calibrated = _is_calibrated(options)
    asked = {
        "convert": options,
        "calibration": calibration_of(calibration) if calibrated else None,
        "allow_pickle": allow_pickle,
    }
    machine = facts.machine() if calibrated else {}
    copied: tuple[str, ...] = ()
    if options.target == "llmapi":
        from trtbuild.llmapi.shards import COPIED as copied  # loads much, which a hit of the others would wait for
    files = _model_files(source, calibrated, allow_pickle, copied)
    return Run(cache, "checkpoint", files, asked, machine=machine, progress=progress)


def reshard_run(cache: Cache, given: Path, options: ConvertOptions, progress: Progress = silent) -> Run:
    """A checkpoint -> the same one in another layout."""
    return Run(cache, "reshard", _checkpoint_files(given), {"convert": options}, progress=progress)


def engine_run(
    cache: Cache,
    given: ModelSource | Path,
    options: ConvertOptions,
    limits: Any,
    calibration: CalibrationOptions,
    *,
    allow_pickle: bool = False,
    gpus: Sequence[str] | None = None,
    progress: Progress = silent,
) -> Run:
    """A model, or the folder of a checkpoint -> an engine, which is made for this machine; `gpus`: see `machine`."""
    calibrated = not isinstance(given, Path) and _is_calibrated(options)
    asked = {
        "convert": options,
        "build": limits,
        "calibration": calibration_of(calibration) if calibrated else None,
        "allow_pickle": allow_pickle,
    }
    versions = facts.versions(*(facts.TENSORRT if options.target == "tensorrt" else ()))
    machine = facts.machine(gpus=gpus, cpu=options.target == "cpu" or calibrated)
    files = _checkpoint_files(given) if isinstance(given, Path) else _model_files(given, calibrated, allow_pickle)
    return Run(cache, "engine", files, asked, versions=versions, machine=machine, progress=progress)


def calibration_of(options: CalibrationOptions) -> CalibrationOptions:
    """The options with the bundled text's path, so that its content is part of the key and of the lock."""
    return replace(options, text=options.text or facts.PACKAGE / "data" / "calibration.txt")


def _is_calibrated(options: ConvertOptions) -> bool:
    """Whether a model may be run in order to quantize it. A model that is quantized already (auto) is not."""
    from trtbuild.quantize.methods import METHODS

    methods = [METHODS[options.quant]] if options.quant in METHODS else []
    assert methods or options.quant == AUTO, options.quant
    return bool(options.quant_layers) or options.kv_cache_algo is not None or any(m.fields for m in methods)


def _model_files(source: ModelSource, calibrated: bool, allow_pickle: bool, copied: tuple[str, ...] = ()) -> Files:
    """`copied`: patterns of files that the artefact takes as they are."""
    from trtbuild.checkpoint.source import weight_files

    folder = source.path
    names = [name for name in _CONFIGS if (folder / name).is_file()]
    names += weight_files(folder, allow_pickle=allow_pickle)
    patterns = (*(_TOKENIZER if calibrated else ()), *copied)
    names += sorted({path.name for pattern in patterns for path in folder.glob(pattern)} - set(names))
    present = tuple(name for name in names if (folder / name).is_file())  # what is missing, the plan complains about
    return Files(folder, present, source.repo_id or folder.resolve().name, source.repo_id, source.revision)


def _checkpoint_files(folder: Path) -> Files:
    """All that a stage reads of a TensorRT-LLM checkpoint, in both halves of a model that has two."""
    patterns = ("config.json", "quant_cfg.json", "trtbuild.json", "rank*.safetensors")
    found = {path for pattern in patterns for path in (*folder.glob(pattern), *folder.glob(f"*/{pattern}"))}
    names = sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())
    recorded = read_manifest(folder).get("files", {})
    return Files(folder, tuple(names), folder.resolve().name, recorded=recorded if isinstance(recorded, dict) else {})
