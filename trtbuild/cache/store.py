"""The cache on disk: artefacts under the key of what they are made of, their files under the SHA-256 of their content.

    entries/KEY.json     Entry: the key document, and path, SHA-256, size and time stamp of each file
    blobs/ab/abcd...     files by content, read-only; engines that differ in their limits alone share their rank files
    misses/KEY.json      documents that were looked for and not found, for `trtbuild cache why`
    hashes/              SHA-256 of source files (facts.Memo)

A file is added under another name and linked into place, an entry is written last, and pruning waits for everybody
else (an advisory lock), so that what is listed is whole. A hit compares sizes and time stamps, which any write through
a hard link changes; a file that differs is hashed, and an entry with a damaged file is removed and built again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trtbuild.cache.files import COPIED, place
from trtbuild.cache.key import Document, key_of
from trtbuild.manifest import sha256_file

SCHEMA = 1
_MISSES = 20


@dataclass(frozen=True)
class Blob:
    """A file of an artefact; `mtime_ns`: of the blob when it was last known to be good."""

    path: str
    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Entry:
    """An artefact in the cache. `created`, `used`: seconds since 1970."""

    key: str
    document: Document
    files: tuple[Blob, ...]
    created: float
    used: float

    @property
    def size(self) -> int:
        """Bytes of its files, of which others may share some."""
        return sum(blob.size for blob in self.files)


class Damaged(Exception):
    """A file of an entry is missing or has another content."""

    def __init__(self, blob: Blob) -> None:
        super().__init__(blob.path)
        self.blob = blob


class Store:
    """The cache in a folder, which is made when something is kept."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, key: str) -> Entry | None:
        """The entry of a key; one that cannot be read counts as absent."""
        return self._read(self._entry(key))

    def entries(self) -> list[Entry]:
        """All entries, the one used last first."""
        found = [self._read(path) for path in (self.root / "entries").glob("*.json")]
        return sorted((entry for entry in found if entry), key=lambda entry: (-entry.used, entry.key))

    def restore(self, entry: Entry, folder: Path) -> None:
        """Put the files of an entry into an empty folder.

        Raises:
            Damaged: a file is not what it was; the folder is then incomplete.
            OSError: the folder cannot be written.
        """
        with self._locked(fcntl.LOCK_SH):
            blobs = tuple(self._checked(blob) for blob in entry.files)
            for blob in blobs:
                target = folder / blob.path
                target.parent.mkdir(parents=True, exist_ok=True)
                if blob.size < COPIED:
                    content = self._blob(blob.sha256).read_bytes()
                    target.write_bytes(content)
                else:
                    place(self._blob(blob.sha256), target)
            with suppress(OSError):  # a read-only cache only forgets when it was used
                if blobs != entry.files:
                    self._write(replace(entry, files=blobs))
                os.utime(self._entry(entry.key))

    def keep(self, document: Document, folder: Path, files: Mapping[str, str]) -> Entry:
        """Add the files of an artefact (path -> SHA-256, all of them); big ones become read-only where they lie.

        Raises:
            OSError: the cache cannot be written.
        """
        key, now = key_of(document), time.time()
        with self._locked(fcntl.LOCK_SH):
            sound = {(blob.sha256, blob.mtime_ns) for entry in self.entries() for blob in entry.files}
            blobs = tuple(self._add(folder / name, name, digest, sound) for name, digest in sorted(files.items()))
            entry = Entry(key, document, blobs, now, now)
            self._write(entry)
        return entry

    def discard(self, entry: Entry, *blobs: Blob) -> None:
        """Remove an entry and its damaged files; other entries that have them find out by themselves."""
        with self._locked(fcntl.LOCK_EX):
            self._entry(entry.key).unlink(missing_ok=True)
            for blob in blobs:
                self._blob(blob.sha256).unlink(missing_ok=True)

    def remove(self, keys: Iterable[str]) -> int:
        """Remove entries, and files that no entry has any more; bytes that became free unless outputs link to them."""
        with self._locked(fcntl.LOCK_EX):
            for key in keys:
                self._entry(key).unlink(missing_ok=True)
            used = {blob.sha256 for entry in self.entries() for blob in entry.files}
            freed = 0
            for path in (self.root / "blobs").glob("*/*"):
                if path.name not in used:  # unfinished files of writers that died, too: no writer lives now
                    freed += path.stat().st_size
                    path.unlink()
            return freed

    def damaged(self, entry: Entry) -> list[str]:
        """Files of an entry whose content is not what it should be, all read; the paths in the artefact."""
        with self._locked(fcntl.LOCK_SH):
            return [blob.path for blob in entry.files if not self._is_good(blob)]

    def miss(self, document: Document) -> None:
        """Remember what was looked for; a cache that cannot be written only explains less."""
        folder = self.root / "misses"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_json(folder / f"{key_of(document)}.json", document)
            for path in self._misses()[_MISSES:]:
                path.unlink(missing_ok=True)
        except OSError:
            return

    def misses(self) -> list[Document]:
        """What was looked for and not found, the latest first."""
        found = [_read_json(path) for path in self._misses()]
        return [document for document in found if document]

    def _misses(self) -> list[Path]:
        return sorted((self.root / "misses").glob("*.json"), key=lambda path: -path.stat().st_mtime_ns)

    def _entry(self, key: str) -> Path:
        return self.root / "entries" / f"{key}.json"

    def _blob(self, digest: str) -> Path:
        return self.root / "blobs" / digest[:2] / digest

    def _read(self, path: Path) -> Entry | None:
        document = _read_json(path)
        try:
            files = tuple(Blob(**item) for item in document["files"])
            found = Entry(document["key"], document["document"], files, document["created"], path.stat().st_mtime)
        except (OSError, KeyError, TypeError):
            return None
        return found if found.key == path.stem else None

    def _write(self, entry: Entry) -> None:
        path = self._entry(entry.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"schema": SCHEMA, **asdict(entry)}
        del content["used"]
        _write_json(path, content)

    def _checked(self, blob: Blob) -> Blob:
        """The blob as it may be used: looked at, and read where it looks different or is small."""
        try:
            status = self._blob(blob.sha256).stat()
        except OSError as error:
            raise Damaged(blob) from error
        same = (status.st_size, status.st_mtime_ns) == (blob.size, blob.mtime_ns)
        if (not same or blob.size < COPIED) and not self._is_good(blob):
            raise Damaged(blob)
        return blob if same else replace(blob, mtime_ns=status.st_mtime_ns)

    def _is_good(self, blob: Blob) -> bool:
        try:
            path = self._blob(blob.sha256)
            return path.stat().st_size == blob.size and sha256_file(path) == blob.sha256
        except OSError:
            return False

    def _add(self, source: Path, name: str, digest: str, sound: set[tuple[str, int]]) -> Blob:
        """Put a file in; one that is there already stays if an entry vouches for it as it is (`sound`)."""
        blob = self._blob(digest)
        if not blob.exists() or (digest, blob.stat().st_mtime_ns) not in sound:
            blob.parent.mkdir(parents=True, exist_ok=True)
            partial = blob.with_name(f"{digest}.{os.getpid()}.{time.monotonic_ns()}")
            try:
                place(source, partial)
                partial.chmod(0o444)
                partial.replace(blob)
            finally:
                partial.unlink(missing_ok=True)
        status = blob.stat()
        return Blob(name, digest, status.st_size, status.st_mtime_ns)

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """Hold the lock of the cache: shared to read and add, exclusive to remove. A read-only cache needs none."""
        path = self.root / "lock"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if how == fcntl.LOCK_EX or error.errno not in (errno.EROFS, errno.EACCES):
                raise
            yield
            return
        try:
            fcntl.flock(handle, how)
            yield
        finally:
            os.close(handle)


def _write_json(path: Path, document: Any) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    partial.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty dict for anything else."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
