"""Rank files: the header goes down first, since the plan knows every size; bytes may come out of order.

What has arrived without a gap is hashed by whichever thread is free, so a file's SHA-256 is known when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as Dict
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from trtbuild.layout import Job

ALIGNMENT = 64
"""Data starts at a multiple of this, so that a memory map of the first tensor suits every vector load."""
_CHUNK = 1 << 22


@dataclass(frozen=True)
class _Pending:
    data: memoryview
    finishes: str
    release: Callable[[], None]


class RankWriter:
    """One `rankN.safetensors`. `done` leading bytes of its data are there already if their SHA-256 is `digest`."""

    def __init__(self, path: Path, jobs: Sequence[Job], record: Callable[[int, str], None] | None = None) -> None:
        self._header = header_bytes(jobs)
        self._size = sum(job.nbytes for job in jobs)
        self._file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        self._digest = hashlib.sha256(self._header)
        self._record = record
        self._lock = threading.Lock()
        self._pending: dict[int, _Pending] = {}
        self._hashed = 0
        self._hashing = False

    @property
    def hashed(self) -> int:
        """Bytes of the file's data that are written and hashed."""
        return self._hashed

    def start(self) -> None:
        """Begin an empty file."""
        # ext4 writes a file that was cut to nothing to the disk when it is closed (auto_da_alloc), which took a third
        # of the whole time; a new file needs no cut.
        if os.fstat(self._file).st_size:
            os.ftruncate(self._file, 0)
        self._digest = hashlib.sha256(self._header)
        self._hashed = 0
        _write_all(self._file, memoryview(self._header), 0)

    def resume(self, done: int, digest: str) -> bool:
        """Go on after `done` bytes of data, if the file holds what had `digest`; else False, and `start` is due."""
        total = len(self._header) + done
        if os.fstat(self._file).st_size < total:
            return False
        found = hashlib.sha256()
        for start in range(0, total, _CHUNK):
            found.update(os.pread(self._file, min(_CHUNK, total - start), start))
        if found.hexdigest() != digest:
            return False
        self._digest, self._hashed = found, done
        return True

    def write(self, start: int, data: memoryview) -> None:
        """Put `data` at byte `start` of the file's data."""
        _write_all(self._file, data, len(self._header) + start)

    def arrived(self, start: int, data: memoryview, finishes: str, release: Callable[[], None]) -> None:
        """Note that `data` was written; `release` is called when it is no longer needed."""
        with self._lock:
            self._pending[start] = _Pending(data, finishes, release)

    def hash_arrived(self) -> None:
        """Hash everything that has arrived without a gap, unless another thread is at it."""
        while True:
            with self._lock:
                item = None if self._hashing else self._pending.pop(self._hashed, None)
                if item is None:
                    return
                self._hashing = True
            self._digest.update(item.data)
            size = item.data.nbytes
            item.release()
            if item.finishes and self._record:
                self._record(self._hashed + size, self._digest.copy().hexdigest())
            with self._lock:
                self._hashed += size
                self._hashing = False

    def close(self) -> str:
        """Finish the file and return its SHA-256 in hex."""
        assert self._hashed == self._size, f"{self._size - self._hashed} bytes were never written"
        os.ftruncate(self._file, len(self._header) + self._size)
        self.abandon()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Close after a failure; the staging folder belongs to its owner."""
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)


def write_file(path: Path, jobs: Sequence[Job], data: Iterable[memoryview], *, sync: bool = False) -> str:
    """Write a file whose tensors come in order; returns its SHA-256 in hex. `sync` waits until the disk has it.

    Raises:
        OSError: the file system refuses.
    """
    digest = hashlib.sha256()
    with path.open("wb") as handle:
        for part in chain((memoryview(header_bytes(jobs)),), data):
            handle.write(part)
            digest.update(part)
        if sync:
            handle.flush()
            os.fsync(handle.fileno())
    return digest.hexdigest()


def _write_all(file: int, data: memoryview, offset: int) -> None:
    while data.nbytes:
        count = os.pwrite(file, data, offset)
        data, offset = data[count:], offset + count


def header_bytes(jobs: Sequence[Job]) -> bytes:
    """Length prefix and JSON header, padded with spaces to ALIGNMENT; keys in job order, so bytes are reproducible."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for job in jobs:
        table[job.name] = {"dtype": job.dtype, "shape": list(job.shape), "data_offsets": [offset, offset + job.nbytes]}
        offset += job.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_documents(folder: Path, documents: Dict[str, Any]) -> None:
    """Write JSON files by name (config.json, quant_cfg.json) into an existing folder.

    Raises:
        OSError: the file system refuses.
    """
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
