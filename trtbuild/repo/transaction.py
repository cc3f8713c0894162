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

    `partial`: the folder of `beside`. Everything is written there before the first rename.
    """
    document = {
        **manifest,
        "source": {**manifest["source"], "chains": dict(chains)},
        "files": dict(sorted({**manifest.get("files", {}), **_digests(out, moves)}.items())),
    }
    fresh = partial / MANIFEST
    fresh.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    every = [*moves, (fresh, out / MANIFEST)]
    kept = {target: partial / f"kept-{number}" for number, (_, target) in enumerate(every) if target.is_file()}
    for target, copy in kept.items():
        shutil.copy2(target, copy)
    with ExitStack() as undo:
        for source, target in every:
            undo.callback(_take_back, source, target, kept.get(target))
            source.replace(target)
        undo.pop_all()


def _digests(out: Path, moves: Sequence[Move]) -> dict[str, str]:
    """SHA-256 of each file that goes in, by its path in the repository."""
    found = {}
    for source, target in moves:
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if path.is_file():
                found[(target / path.relative_to(source)).relative_to(out).as_posix()] = sha256_file(path)
    return found


def _take_back(source: Path, target: Path, kept: Path | None) -> None:
    if source.exists():  # the rename did not come to pass
        return
    if kept is None:
        shutil.rmtree(target, ignore_errors=True)
    else:
        kept.replace(target)
