"""`trtbuild.json`: what made an artefact, written into each output directory.

Holds no clock, host name or absolute path of the output, so the same inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from collections.abc import Mapping as Dict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trtbuild import __version__

MANIFEST = "trtbuild.json"
SCHEMA = 1


def sha256_file(path: Path, go_on: Callable[[], None] = lambda: None) -> str:
    """Hex SHA-256 of a file, read in 4 MiB pieces; what `go_on` raises after one of them ends it there."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while piece := handle.read(1 << 22):
            digest.update(piece)
            go_on()
    return digest.hexdigest()


def tool_versions(*packages: str) -> dict[str, str]:
    """Installed versions of `packages`, without importing them; absent ones are left out."""
    found = {"trtbuild": __version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def all_digests(directory: Path, known: Dict[str, str], leave_out: Collection[str]) -> dict[str, str]:
    """SHA-256 of every file by its path relative to `directory`, but for locks of writers and `leave_out`.

    `known`: those that need not be read again.
    """
    found = dict(known)
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and not p.name.startswith(".lock")):
        name = path.relative_to(directory).as_posix()
        if name not in leave_out and name not in found:
            found[name] = sha256_file(path)
    return found


def write_manifest(
    directory: Path,
    *,
    kind: str,
    source: Dict[str, Any],
    options: Dict[str, Any],
    versions: Dict[str, str],
    files: Dict[str, str] | None = None,
) -> None:
    """Write `trtbuild.json`: artefact kind, source, options, versions, and SHA-256 of every file.

    `files` holds digests that are already known (path relative to `directory` -> hex); the rest is hashed here.
    """
    document = {
        "schema": SCHEMA,
        "kind": kind,
        "versions": dict(versions),
        "source": dict(source),
        "options": dict(options),
        "files": dict(sorted(all_digests(directory, files or {}, (MANIFEST,)).items())),
    }
    (directory / MANIFEST).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of an artefact, or an empty dict when it has none."""
    try:
        loaded = json.loads((directory / MANIFEST).read_text())
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}
