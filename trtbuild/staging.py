"""Output directories that appear whole or not at all.

Everything is written to `.NAME.partial` beside the final place and renamed at the end, so a crash, Ctrl-C or a
full disk leaves nothing that looks finished. A partial directory whose writer is gone is removed by the next run, or
handed to it where that asks to resume; one whose writer lives is refused (an advisory lock tells the two apart).
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trtbuild.errors import OutputError, ToolError
from trtbuild.manifest import MANIFEST

WRITER = ".lock"
"""The file that the process which writes an output holds a lock on; it is gone when the output stands."""
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file size limit (ulimit -f) is reached",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "a part of the path is a file",
    errno.EISDIR: "it is a directory",
    errno.ENOENT: "the path cannot be created",
}


def check_output(out: Path, *, force: bool = False) -> None:
    """Refuse an output that exists and is not an empty directory, before any work is done.

    Raises:
        OutputError: `out` exists and `force` is false, or is not a directory.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"output {out} exists and is not a directory", hint="Choose another -o/--output.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise OutputError(f"output {out} exists and is not empty", hint="Choose another -o/--output, or pass --force.")
    if not (out / MANIFEST).is_file():
        hint = f"--force replaces only what trtbuild made (it would hold {MANIFEST}); remove the directory yourself."
        raise OutputError(f"output {out} exists and was not made by trtbuild", hint=hint)


@contextmanager
def staged_dir(
    out: Path, *, force: bool = False, resume: bool = False, keep: type[Exception] | tuple[type[Exception], ...] = ()
) -> Iterator[Path]:
    """Yield a directory to write into; it becomes `out` when the block ends without an error.

    With `resume` it holds what a killed or interrupted run left, and the block decides what of that is good; Ctrl-C and
    SIGTERM then leave it for the next run, while errors remove it, but for those of the kinds `keep`.

    Raises:
        OutputError: the output exists, another process writes it, or the file system refuses.
    """
    out = Path(os.path.abspath(out))
    _restore(out)
    check_output(out, force=force)
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = _claim(partial, out, keep=resume)
    except OSError as error:
        raise write_error(out, error) from error
    done = False
    try:
        yield partial
        old = _publish(partial, out)
        done = True
        _remove_mark(out, lock)
        _discard(old)
    except OSError as error:
        if error.errno in _REASONS and error.errno != errno.ENOENT:
            raise write_error(out, error) from error
        raise
    finally:
        why = sys.exc_info()[1]
        interrupted = why is not None and not isinstance(why, Exception)
        kept = resume and (interrupted or isinstance(why, keep))
        if not done and not kept:  # what is finished is kept for the same command
            shutil.rmtree(partial, ignore_errors=True)
        _remove_mark(out, lock)
        os.close(lock)


@contextmanager
def log_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder for what processes write about themselves; it stays where a ToolError points to it."""
    folder, kept = Path(tempfile.mkdtemp(prefix=prefix)), False
    try:
        yield folder
    except ToolError:
        kept = any(folder.iterdir())
        raise
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def replace_file(path: Path, text: str) -> None:
    """Write a small file whole: beside its place, and renamed. Raises OSError, and leaves nothing then."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def require_writable(*, folders: Iterable[Path] = (), files: Iterable[Path] = ()) -> None:
    """Refuse what cannot be written, all together, before hours of work; folders are made where they are missing.

    Raises:
        OutputError: names each, and why.
    """
    problems = []
    for path, folder in [*((path, path) for path in folders), *((path, path.parent) for path in files)]:
        try:
            if path != folder and path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            problems.append(write_error(path, error).message)
    if problems:
        raise OutputError("\n".join(problems), hint="Nothing was started; choose another place.")


def check_not_input(out: Path, source: Path) -> None:
    """Refuse an output that is, or contains, the directory that it is made from.

    Raises:
        OutputError: replacing `out` would destroy `source`.
    """
    if out.resolve() in (source.resolve(), *source.resolve().parents) and out.exists():
        raise OutputError(f"output {out} holds the input {source}", hint="Choose another -o/--output.")


def check_disk(out: Path, folder: Path, need: int) -> None:
    """Refuse to start when the file system of `folder` has less than `need` bytes free.

    Raises:
        OutputError: names what is needed and what is there.
    """
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise write_error(out, error) from error
    if free < need:
        message = f"cannot write {out}: the disk is full ({need / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free there)"
        raise OutputError(message, hint="Nothing was left behind; choose another place or make room.")


def write_error(out: Path, error: OSError) -> OutputError:
    """The one sentence for a file system that refuses to be written."""
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    try:
        near = next(p for p in (out, *out.parents) if p.exists())
        free = f" ({shutil.disk_usage(near).free / 1e9:.2f} GB free there)" if error.errno == errno.ENOSPC else ""
    except OSError:
        free = ""
    return OutputError(
        f"cannot write {out}: {reason}{free}", hint="Nothing was left behind; choose another place or make room."
    )


def _claim(partial: Path, out: Path, *, keep: bool) -> int:
    """Create and lock the partial directory; leftovers of a dead writer are cleared first, unless `keep`."""
    busy = OutputError(f"another trtbuild is writing {out} right now", hint="Wait for it, or choose another output.")
    if partial.exists():
        if _is_locked(partial / WRITER):
            raise busy
        if not keep:
            shutil.rmtree(partial)
    partial.mkdir(exist_ok=keep)
    lock = os.open(partial / WRITER, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if keep else 0))
    except BlockingIOError:
        os.close(lock)
        raise busy from None
    if not (partial / WRITER).exists() or os.fstat(lock).st_ino != (partial / WRITER).stat().st_ino:
        os.close(lock)  # another process took the directory for a leftover before it was locked
        raise busy
    return lock


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _remove_mark(out: Path, lock: int) -> None:
    """Remove the file that says who writes it from an output that stands; nothing where another one stands there."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if (out / WRITER).stat().st_ino == os.fstat(lock).st_ino:
            (out / WRITER).unlink()


def _olds(out: Path) -> list[Path]:
    """Outputs that were moved aside for a new one, the last one first."""
    found = out.parent.glob(f".{glob.escape(out.name)}.old-*")
    return sorted(found, key=lambda path: -path.stat().st_mtime_ns)


def _restore(out: Path) -> None:
    """Bring back what a run that was killed between the two renames of `_publish` had moved aside."""
    whole = [path for path in _olds(out) if (path / MANIFEST).is_file()]
    if whole and not out.exists():
        whole[0].rename(out)


def _publish(partial: Path, out: Path) -> list[Path]:
    """Rename into place; an old output survives until the new one stands. What is aside then, and may go."""
    if out.exists():
        # A name that nothing has: what a run that was killed left of an older output must not be in the way now.
        out.rename(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
    partial.rename(out)
    return _olds(out)


def _discard(olds: Iterable[Path]) -> None:
    """Remove outputs, their manifests first, so that none of them is restored when only half of it is left."""
    for old in olds:
        with suppress(OSError):
            (old / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(old)
