"""The cache on disk: artefacts under the key of what they are made of, their files under the SHA-256 of their content.

    entries/KEY.json     Entry: the key document, and path, SHA-256, size and time stamp of each file; with a checksum
    blobs/ab/abcd...     files by content, read-only; engines that differ in their limits alone share their rank files
    misses/KEY.json      Miss: what was looked for and not found, for `trtbuild cache why`
    hashes/              SHA-256 of source files (hashing.Memo)

A file is added under another name and renamed, an entry is written last, and only sweeping waits for everybody else
(an advisory lock), so that what is listed is whole. A hit reads small files, and of large ones compares size and time
stamp, which any write through a hard link changes; one that looks different is read, and damage is a miss.
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
from trtbuild.cache.key import Difference, Document, key_of, nearest
from trtbuild.manifest import MANIFEST, sha256_file
from trtbuild.staging import replace_file

SCHEMA = 1
_MISSES = 50


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


@dataclass(frozen=True)
class Miss:
    """What was looked for at `at` (seconds since 1970), and how the nearest entry of then (`near`) differed from it.

    `near` None: there was none of that stage. No differences: the entry itself was there, and `damaged` names its file.
    """

    document: Document
    at: float
    near: str | None
    differences: tuple[Difference, ...]
    damaged: str | None = None

    @property
    def key(self) -> str:
        return key_of(self.document)


class Damaged(Exception):
    """A file of an entry is missing, cannot be read or has another content."""

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

    def unreadable(self) -> list[Path]:
        """Files of entries that are none: cut off, edited, or of another version."""
        return sorted(path for path in (self.root / "entries").glob("*.json") if self._read(path) is None)

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
                try:
                    place(self._blob(blob.sha256), target)
                except FileNotFoundError as error:  # another process found it damaged just now
                    raise Damaged(blob) from error
            with suppress(OSError):  # a read-only cache only forgets when it was used
                if blobs != entry.files:
                    self._write(replace(entry, files=blobs))
                os.utime(self._entry(entry.key))

    def keep(self, document: Document, folder: Path, files: Mapping[str, str]) -> Entry:
        """Add the files of an artefact (path -> SHA-256, all of them); big ones become read-only where they lie.

        The manifest goes last: while it is as it was, the folder is not another artefact that replaced this one.

        Raises:
            OSError: the cache cannot be written, or the folder was replaced.
        """
        key, now = key_of(document), time.time()
        with self._locked(fcntl.LOCK_SH):
            sound = {(blob.sha256, blob.mtime_ns) for entry in self.entries() for blob in entry.files}
            order = sorted(files, key=lambda name: (name == MANIFEST, name))
            blobs = tuple(self._add(folder / name, name, files[name], sound) for name in order)
            entry = Entry(key, document, blobs, now, now)
            self._write(entry)
        return entry

    def discard(self, key: str, digests: Iterable[str] = ()) -> None:
        """Remove an entry and its damaged files; other entries that have them find out by themselves."""
        self._entry(key).unlink(missing_ok=True)
        for digest in digests:
            self._blob(digest).unlink(missing_ok=True)

    def sweep(self, keys: Iterable[str] = (), *, wait: bool = True) -> int:
        """Remove entries, and files that no entry has; bytes that became free, unless outputs link to them.

        Raises:
            BlockingIOError: without `wait`, another process uses the cache. OSError: it cannot be written.
        """
        with self._locked(fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB):
            for key in keys:
                self._entry(key).unlink(missing_ok=True)
            used = {blob.sha256 for entry in self.entries() for blob in entry.files}
            # No writer lives now, so that unfinished files are of writers that died.
            stale = [path for path in (self.root / "blobs").glob("*/*") if path.name not in used]
            stale += [path for part in ("entries", "misses") for path in (self.root / part).glob(".*")]
            freed = sum(path.stat().st_size for path in stale)
            for path in stale:
                path.unlink()
            return freed

    def damaged(self, entry: Entry) -> list[Blob]:
        """Files of an entry whose content is not what it should be; all are read."""
        with self._locked(fcntl.LOCK_SH):
            return [blob for blob in entry.files if not self._is_good(blob)]

    def miss(self, document: Document, damaged: str | None = None) -> None:
        """Remember what was looked for, and why it was not there; a cache that cannot be written only explains less."""
        key = key_of(document)
        near = nearest(document, ((entry.key, entry.document) for entry in self.entries() if entry.key != key))
        name, unlike = (key, ()) if damaged else near or (None, ())
        with suppress(OSError):
            found = Miss(document, time.time(), name, unlike, damaged)
            _write_json(self.root / "misses" / f"{key}.json", asdict(found))
            for path in self._misses()[_MISSES:]:
                path.unlink(missing_ok=True)

    def misses(self) -> list[Miss]:
        """What was looked for and not found, the latest first."""
        found = []
        for document in map(_read_json, self._misses()):
            with suppress(KeyError, TypeError):
                unlike = tuple(Difference(**item) for item in document.pop("differences"))
                found.append(Miss(**document, differences=unlike))
        return found

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
            whole = document.pop("sum") == key_of(document) and document["schema"] == SCHEMA
            whole = whole and found.key == path.stem == key_of(found.document)
        except (OSError, KeyError, TypeError, ValueError):
            return None
        return found if whole else None

    def _write(self, entry: Entry) -> None:
        content: Document = json.loads(json.dumps({"schema": SCHEMA, **asdict(entry)}))
        del content["used"]
        _write_json(self._entry(entry.key), {**content, "sum": key_of(content)})

    def _checked(self, blob: Blob) -> Blob:
        """The blob as it may be used: looked at, and read where it looks different or is small."""
        path = self._blob(blob.sha256)
        try:
            status = path.stat()
        except OSError as error:
            raise Damaged(blob) from error
        same = (status.st_size, status.st_mtime_ns) == (blob.size, blob.mtime_ns)
        if (not same or blob.size < COPIED) and not self._is_good(blob):
            raise Damaged(blob)
        if not os.access(path, os.R_OK):
            raise Damaged(blob)
        return blob if same else replace(blob, mtime_ns=status.st_mtime_ns)

    def _is_good(self, blob: Blob) -> bool:
        try:
            path = self._blob(blob.sha256)
            return path.stat().st_size == blob.size and sha256_file(path) == blob.sha256
        except OSError:
            return False

    def _add(self, source: Path, name: str, digest: str, sound: set[tuple[str, int]]) -> Blob:
        """Put a file in; a large one that is there already stays if an entry vouches for it as it is (`sound`)."""
        blob, small = self._blob(digest), source.stat().st_size < COPIED
        if small or not blob.exists() or (digest, blob.stat().st_mtime_ns) not in sound:
            blob.parent.mkdir(parents=True, exist_ok=True)
            partial = blob.with_name(f"{digest}.{os.getpid()}.{time.monotonic_ns()}")
            try:
                place(source, partial)
                if small and sha256_file(partial) != digest:
                    raise OSError(f"{source} was replaced")
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
            if how & fcntl.LOCK_EX or error.errno not in (errno.EROFS, errno.EACCES):
                raise
            yield
            return
        try:
            fcntl.flock(handle, how)
            yield
        finally:
            os.close(handle)


def _write_json(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(document, indent=1, sort_keys=True) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty dict for anything else."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
