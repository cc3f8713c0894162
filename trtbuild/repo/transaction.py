"""Folders and files that go into a repository together, or not at all. EDGE.

They are made beside the repository and renamed into it; the manifest is replaced at the end. What fails in between is
taken back by renames alone, which work on a full disk, too.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from trtbuild.errors import EngineError
from trtbuild.manifest import MANIFEST, read_manifest, sha256_file
from trtbuild.staging import write_error

Move = tuple[Path, Path]
"""(What was made, where it goes)."""


@contextmanager
def locked(out: Path) -> Iterator[dict[str, Any]]:
    """The manifest of a repository that nobody else adds to meanwhile.

    Raises:
        EngineError: `out` is no repository of ours. OutputError: the file system refuses what is done in between.
    """
    manifest = read_manifest(out)
    if manifest.get("kind") != "repository" or "target" not in manifest.get("source", {}):
        raise EngineError(
            f"{out} is not a repository of `trtbuild repo`", hint="Make it first, without --add, then add to it."
        )
    handle = os.open(out, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield read_manifest(out)
    except OSError as error:
        raise write_error(out, error) from error
    finally:
        os.close(handle)


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A folder on the file system of `out`, which is gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.add-", dir=out.resolve().parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_in(
    partial: Path, out: Path, manifest: Mapping[str, Any], moves: Sequence[Move], chains: Mapping[str, Any]
) -> None:
    """Rename in the order of `moves`, then replace the manifest by one with `chains`; an error takes all of it back.

    `partial`: the folder of `beside`, where the files that are replaced are kept until then.
    """
    kept = {}
    for number, (_source, target) in enumerate(moves):
        if target.is_file():
            kept[target] = partial / f"kept-{number}"
            shutil.copy2(target, kept[target])
    with ExitStack() as undo:
        for source, target in moves:
            source.replace(target)
            if target in kept:
                undo.callback(kept[target].replace, target)
            else:
                undo.callback(shutil.rmtree, target, ignore_errors=True)
        _write_manifest(partial, out, manifest, [target for _source, target in moves], chains)
        undo.pop_all()


def _write_manifest(
    partial: Path, out: Path, manifest: Mapping[str, Any], moved: Sequence[Path], chains: Mapping[str, Any]
) -> None:
    files = dict(manifest.get("files", {}))
    for target in moved:
        for path in sorted(target.rglob("*")) if target.is_dir() else [target]:
            if path.is_file():
                files[path.relative_to(out).as_posix()] = sha256_file(path)
    document = {
        **manifest,
        "source": {**manifest["source"], "chains": dict(chains)},
        "files": dict(sorted(files.items())),
    }
    fresh = partial / MANIFEST
    fresh.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    fresh.replace(out / MANIFEST)
