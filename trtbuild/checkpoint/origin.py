"""Where a checkpoint came from: for its manifest, and so that only the same conversion is resumed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild import __version__
from trtbuild.manifest import read_manifest, sha256_file
from trtbuild.spec import ConvertOptions

if TYPE_CHECKING:
    from trtbuild.hub.snapshot import ModelSource
    from trtbuild.layout import TensorInfo
    from trtbuild.plan import ModelPlan


def describe_parent(given: Path, layout: ConvertOptions, dropped: set[str]) -> dict[str, Any]:
    """Where the parent's weights came from, and the parent itself; `dropped`: tensors of it that have no place."""
    manifest = read_manifest(given)
    name = given.resolve().name
    parent = {
        "name": name,
        "layout": {"tp_size": layout.tp_size, "pp_size": layout.pp_size},
        "options": manifest.get("options"),
        "dropped": sorted(dropped),
        "config_sha256": {
            path.relative_to(given).as_posix(): sha256_file(path)
            for path in sorted((*given.glob("config.json"), *given.glob("*/config.json")))
        },
        # What trtbuild.json recorded; for a checkpoint of others the sizes tell the files apart.
        "files": manifest.get("files")
        or {
            path.relative_to(given).as_posix(): path.stat().st_size
            for path in sorted((*given.glob("rank*.safetensors"), *given.glob("*/rank*.safetensors")))
        },
    }
    source = manifest.get("source")
    return {**(source if isinstance(source, dict) else {"model": name}), "parent": parent}


def describe_source(source: ModelSource, index: dict[str, TensorInfo]) -> dict[str, Any]:
    """Where the weights came from, without a path of this machine."""
    from trtbuild.checkpoint.source import describe_files, hub_digests

    return {
        "model": source.repo_id or source.path.resolve().name,
        "repo_id": source.repo_id,
        "revision": source.revision,
        "config_sha256": sha256_file(source.path / "config.json"),
        "files": describe_files(source.path, index),
        "hub_sha256": hub_digests(source.path, index),
    }


def fingerprint(
    plan: ModelPlan, configs: list[dict[str, Any]], made_of: dict[str, Any], index: dict[str, TensorInfo]
) -> str:
    """SHA-256 over all that decides a checkpoint's bytes, so that only the same conversion is resumed."""
    files = sorted({file for info in index.values() for file in info.files})
    times = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    ranks = [(part.ranks, part.whole) for part in plan.parts]
    parts = (__version__, ranks, plan.dtype, configs, made_of, times)
    return hashlib.sha256(repr(parts).encode()).hexdigest()
