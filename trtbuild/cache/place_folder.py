"""Artefacts in a folder of this machine, or of a file server. EDGE."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from trtbuild.cache.files import reflink
from trtbuild.errors import OutputError, RemoteError
from trtbuild.progress import Progress
from trtbuild.staging import staged_dir, write_error

_PIECE = 1 << 24  # bytes


class FolderPlace:
    """A folder that appears whole or not at all, and shares no byte with the one that it is made from."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._folder = folder

    def files(self) -> dict[str, int]:
        """Size in bytes by path."""
        try:
            found = [path for path in self._folder.rglob("*") if path.is_file()]
            return {path.relative_to(self._folder).as_posix(): path.stat().st_size for path in found}
        except OSError as error:
            raise RemoteError(f"{self.name} cannot be read: {error.strerror or error}") from error

    def read(self, name: str) -> bytes:
        """A small file; raises RemoteError where it cannot be read."""
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise RemoteError(f"{self._folder / name} cannot be read: {error.strerror or error}") from error

    def put(self, folder: Path, names: Collection[str], stale: Collection[str], progress: Progress) -> None:
        """Copy into a new folder and rename it; `stale` is not in that."""
        if folder.resolve() in self._folder.resolve().parents:
            raise OutputError(f"{self.name} lies in the artefact itself", hint="Choose a place outside of it.")
        with staged_dir(self._folder, force=True) as staged:
            _copy(folder, names, staged, progress)

    def fetch(self, names: Collection[str], folder: Path, progress: Progress) -> None:
        """Copy from here."""
        try:
            _copy(self._folder, names, folder, progress)
        except OSError as error:
            raise write_error(folder, error) from error


def _copy(source: Path, names: Collection[str], target: Path, progress: Progress) -> None:
    """Raises RemoteError where a file cannot be read, and OSError where one cannot be written."""
    with _read(source):
        sizes = {name: (source / name).stat().st_size for name in names}
    total, done = sum(sizes.values()) or 1, 0
    for name, size in sizes.items():
        progress(done, total, name)
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with _read(source / name):
            reader = (source / name).open("rb")
        with reader:
            if not reflink(source / name, place):
                with place.open("wb") as writer:
                    while piece := _piece(reader, source / name):
                        writer.write(piece)
        done += size
    progress(done, total, "")


def _piece(reader: BinaryIO, path: Path) -> bytes:
    with _read(path):
        return reader.read(_PIECE)


@contextmanager
def _read(path: Path) -> Iterator[None]:
    """Whatever fails in the block is the fault of `path`."""
    try:
        yield
    except OSError as error:
        raise RemoteError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
