"""The logs of a server: one a rank, kept apart from those of the attempt before, and a look at whether they fit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trtbuild.errors import OutputError
from trtbuild.mpi import put_logs_aside, tail
from trtbuild.staging import write_error

_PATTERNS = ("tritonserver.log", "launcher.log", "mpirun.log", "rank*.log", "rank*.state")
_PROBE, _PROBE_BYTES = ".space", 4096
_SHOWN = 12


def open_logs(folder: Path) -> None:
    """Make the folder; logs of an earlier server there are put aside.

    Raises:
        OutputError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        put_aside(folder)
    except OSError as error:
        raise write_error(folder, error) from error


def put_aside(folder: Path) -> None:
    """Before a start: NAME.log becomes NAME.log.N with the next free N; the last few are kept."""
    put_logs_aside([folder, *engine_folders(folder)], _PATTERNS)


def engine_folders(folder: Path) -> list[Path]:
    """Those of cpu engines, MODEL.VERSION, with the logs of their ranks."""
    return sorted(path for path in folder.glob("*.[0-9]*") if path.is_dir() and path.suffix[1:].isdigit())


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


def last_lines(paths: Sequence[Path]) -> list[str]:
    """What the first of some logs says that says anything."""
    for path in paths:
        found = telling_lines("\n".join(tail(path, 400)))
        if found:
            return found
    return []


def _is_info(line: str) -> bool:
    return len(line) > 5 and line[0] == "I" and line[1:5].isdigit()


def _is_noise(line: str) -> bool:
    """What every start on a machine without a GPU says."""
    return any(text in line for text in ("NVML", "DCGM", "CUDA driver", "CudaDriverHelper", "pinned"))
