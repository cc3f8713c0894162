"""The logs of a server: one a rank, kept apart from those of the attempt before, and a look at whether they fit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trtbuild.errors import OutputError
from trtbuild.mpi import tail
from trtbuild.staging import write_error

_PATTERNS = ("tritonserver.log", "launcher.log", "mpirun.log", "rank*.log", "rank*.state")
_PROBE, _PROBE_BYTES = ".space", 4096
_KEPT = 5
_SHOWN = 12


def open_logs(folder: Path) -> None:
    """Make the folder, without what an earlier server left there.

    Raises:
        OutputError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in _PATTERNS:
            for path in folder.glob(f"{pattern}*"):
                path.unlink()
    except OSError as error:
        raise write_error(folder, error) from error


def put_aside(folder: Path, attempt: int) -> None:
    """Before a restart: NAME.log of attempt 1 becomes NAME.log.1; the last few are kept."""
    for pattern in _PATTERNS:
        for path in folder.glob(pattern):
            path.rename(path.with_name(f"{path.name}.{attempt}"))
        for path in folder.glob(f"{pattern}.{attempt - _KEPT}"):
            path.unlink()


def space_problem(folder: Path) -> OutputError | None:
    """Why the logs cannot be written, found by writing."""
    probe = folder / _PROBE
    try:
        probe.write_bytes(bytes(_PROBE_BYTES))
        probe.unlink()
    except OSError as error:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        failed = write_error(folder, error)
        return OutputError(
            f"the logs cannot be written: {failed.message}", hint="Make room, or choose another --log-dir."
        )
    return None


def telling_lines(log: str, most: int = _SHOWN) -> list[str]:
    """The last lines of a server log that say something: no tables, no INFO lines while there are others."""
    lines = [line.rstrip()[:400] for line in log.splitlines()]
    plain = [line for line in lines if line.strip() and line.lstrip()[0] not in "|+"]
    telling = [line for line in plain if not _is_info(line) and not _is_noise(line)]
    return (telling or plain)[-most:]


def last_lines(folder: Path, names: Sequence[str]) -> list[str]:
    """What the first of some logs says that says anything."""
    for name in names:
        found = telling_lines("\n".join(tail(folder / name, 400)))
        if found:
            return found
    return []


def _is_info(line: str) -> bool:
    return len(line) > 5 and line[0] == "I" and line[1:5].isdigit()


def _is_noise(line: str) -> bool:
    """What every start on a machine without a GPU says."""
    return any(text in line for text in ("NVML", "DCGM", "CUDA driver", "CudaDriverHelper", "pinned"))
