"""SHA-256 of files that are large: read once, by several threads, and given up at once when somebody is in a hurry.

A digest is remembered under (device, inode, size, mtime_ns). Where the hub's cache names a file by its SHA-256 that
must be so.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from trtbuild.errors import CheckpointError
from trtbuild.manifest import sha256_file
from trtbuild.progress import Progress, silent
from trtbuild.staging import replace_file

_DIGEST = re.compile(r"[0-9a-f]{64}")
_POLL_S = 0.1
_TAKES_TIME = 500_000_000  # bytes
_SETTLED_NS = 2_000_000_000  # a file that changed just now may change again within its time stamp's resolution


class Memo:
    """SHA-256 of files, remembered by this process, and with a `folder` there for the next ones."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._held: dict[tuple[str, str], str] = {}
        self._reading: dict[tuple[str, str], threading.Lock] = {}

    def known(self, path: Path) -> str | None:
        """The digest if it can be had without reading the file."""
        try:
            file, state = identity(path)
            if (file, state) in self._held or self._folder is None:
                return self._held.get((file, state))
            written, _, digest = (self._folder / file).read_text().rpartition(" ")
        except OSError:
            return None
        return digest if written == state and _DIGEST.fullmatch(digest) else None

    def sha256(self, path: Path, stopped: threading.Event | None = None) -> str:
        """The digest of a file.

        Raises:
            CheckpointError: it changes, or is not what the hub's cache says that it is. OSError: it cannot be read.
            Stopped: `stopped` was set before it was read.
        """
        with self._alone(identity(path), stopped):
            return self.known(path) or self._read(path, stopped)

    @contextmanager
    def _alone(self, file: tuple[str, str], stopped: threading.Event | None) -> Iterator[None]:
        """Keep others from reading the same file at the same time: they wait for its digest."""
        lock = self._reading.setdefault(file, threading.Lock())
        while not lock.acquire(timeout=_POLL_S):
            _go_on(stopped)
        try:
            yield
        finally:
            lock.release()

    def _read(self, path: Path, stopped: threading.Event | None) -> str:
        before = identity(path)
        digest = sha256_file(path, lambda: _go_on(stopped))
        if identity(path) != before:
            raise CheckpointError(f"{path} changed while it was read", hint="Wait until it is complete.")
        real = path.resolve()
        if real.parent.name == "blobs" and _DIGEST.fullmatch(real.name) and real.name != digest:
            hint = f"Remove {real}; the next download brings it again."
            raise CheckpointError(f"{path} is damaged: its SHA-256 is {digest}, the hub's is {real.name}", hint=hint)
        self._held[before] = digest
        if time.time_ns() - path.stat().st_mtime_ns > _SETTLED_NS:
            self._write(*before, digest)
        return digest

    def _write(self, file: str, state: str, digest: str) -> None:
        """A folder that cannot be written costs time later, and nothing else."""
        if self._folder is None:
            return
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_file(self._folder / file, f"{state} {digest}")


def identity(path: Path) -> tuple[str, str]:
    """(what names a file, what changes when it is written)."""
    status = path.stat()
    return f"{status.st_dev:x}-{status.st_ino:x}", f"{status.st_size} {status.st_mtime_ns}"


class Stopped(Exception):
    """Nobody waits for this digest any more."""


def _go_on(stopped: threading.Event | None) -> None:
    if stopped is not None and stopped.is_set():
        raise Stopped


class Hashing:
    """Digests of files of a folder, which threads work out from now on: several files at once, as a SHA-256 is one
    chain that a second core cannot speed up. The end of the block ends them, wherever they are in a file.
    """

    def __init__(self, folder: Path, names: Sequence[str], memo: Memo) -> None:
        self._folder = folder
        unread = [name for name in names if memo.known(folder / name) is None]
        self._unread = sum((folder / name).stat().st_size for name in unread)
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        self._jobs = {name: self._pool.submit(memo.sha256, folder / name, self._stopped) for name in names}

    def __enter__(self) -> Hashing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def result(self, progress: Progress = silent, done: float = 0.0) -> dict[str, str]:
        """SHA-256 in hex by name. `progress` hears of it where it takes a while, and stays at `done` of 1.

        Raises:
            CheckpointError: a file cannot be read, or changed meanwhile.
        """
        told = progress if self._unread > _TAKES_TIME else silent
        found = {}
        for name, job in self._jobs.items():
            told(done, 1, f"SHA-256 of {name}")
            try:
                found[name] = _result(job)
            except OSError as error:
                raise CheckpointError(f"{self._folder / name} cannot be read: {error.strerror or error}") from error
        return found


def _result(job: Future[str]) -> str:
    """Wait in short steps: a SIGINT just before a wait without end would be heard of only after the file."""
    while not wait([job], _POLL_S).done:
        pass
    return job.result()


def hash_files(folder: Path, names: Sequence[str], memo: Memo, progress: Progress = silent) -> dict[str, str]:
    """SHA-256 in hex by name, as `Hashing.result`; Ctrl-C does not wait for the rest."""
    with Hashing(folder, names, memo) as work:
        return work.result(progress)
