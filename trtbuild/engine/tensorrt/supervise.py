"""EDGE: starts a build, watches it, and ends all of it when one process dies, hangs, or the time is up."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping as Dict
from pathlib import Path

from trtbuild import mpi
from trtbuild.engine.options import LaunchOptions
from trtbuild.engine.tensorrt.command import Job
from trtbuild.engine.tensorrt.failures import Diagnosis, classify, gave_up, telling, telling_lines
from trtbuild.engine.tensorrt.watch import Team, Watched
from trtbuild.errors import ToolError
from trtbuild.progress import Progress, silent

LAUNCHER_LOG = "launcher.log"
_POLL_S = 0.2
_CPU_EVERY_S = 2.0
_SETTLE_S = 1.0
_SHOWN = 14
_WAITS = "It may wait for a file system or a GPU that another process holds; `nvidia-smi` and the log tell."


def supervise(
    job: Job,
    log_dir: Path,
    ticks: Path,
    launch: LaunchOptions,
    environment: Dict[str, str],
    *,
    finished: int = 0,
    progress: Progress = silent,
) -> None:
    """Run a job to its end; `finished` ranks were there before.

    Raises:
        ToolError: a process died, hung, or took too long; names its rank, what happened and what to do.
    """
    killed_before = _oom_kills()
    log, launched = log_dir / LAUNCHER_LOG, job.launcher != "none"
    process = mpi.start_session(job.argv, environment, log=log, launcher=launched)
    started = looked = time.monotonic()
    team = Team(job, log_dir, ticks, started)
    total = finished + sum(map(len, job.ranks))
    try:
        while process.poll() is None:
            now = time.monotonic()
            team.read_logs(now)
            progress(finished + team.fraction, total, _text(team, finished, total))
            _check_time(team, log_dir, now - started, launch)
            if launch.hang_s and now - looked >= min(_CPU_EVERY_S, launch.hang_s / 4):
                looked = now
                team.read_cpu(now)
                _check_idle(team, log_dir, now, launch)
            if not job.in_process:
                _check_given_up(team, log_dir)
            time.sleep(_POLL_S)
        team.read_logs(time.monotonic())
        if process.returncode or _aborted(team, log_dir):
            raise _failure(team, log_dir, process.returncode, oom_kill=_oom_kills() > killed_before)
    finally:
        mpi.stop_ranks(process)
    progress(total, total, "done")


def _text(team: Team, finished: int, total: int) -> str:
    slowest = team.slowest()
    about = f", rank {slowest.rank} {slowest.current.stage}" if slowest is not None else ""
    return f"{finished + team.done}/{total} ranks{about}"


def _check_time(team: Team, log_dir: Path, seconds: float, launch: LaunchOptions) -> None:
    if launch.timeout_s and seconds > launch.timeout_s:
        slowest = team.slowest()
        who = f"; rank {slowest.rank} {slowest.current.stage}" if slowest is not None else ""
        raise ToolError(
            f"engine build: not done after {launch.timeout_s:g} s{who}; all of it was ended",
            log_tail=_lines(slowest),
            hint=f"Give it more time (--timeout). Logs: {log_dir}",
        )


def _check_idle(team: Team, log_dir: Path, now: float, launch: LaunchOptions) -> None:
    idle = team.idle(now, launch.hang_s)
    if idle:
        names = ", ".join(f"rank {process.rank}" for process in idle)
        verb = "hangs" if len(idle) == 1 else "hang"
        raise ToolError(
            f"engine build: {names} {verb}: no line in the log and no CPU time for {launch.hang_s:g} s; all was ended",
            log_tail=_lines(idle[0]),
            hint=f"{_WAITS} --hang sets how long that may be. Logs: {log_dir}",
        )


def _check_given_up(team: Team, log_dir: Path) -> None:
    """A process of trtllm-build that has failed waits for the others before it says so; nobody needs that."""
    for process in team.processes:
        if process.current.in_traceback and gave_up(process.current.tail()):
            time.sleep(_SETTLE_S)  # the end of its traceback
            raise _error(process, classify(process.current.tail()), "", log_dir)


def _aborted(team: Team, log_dir: Path) -> bool:
    """Whether it failed in spite of exit code 0: trtllm-build aborts MPI with error code 0, and mpirun returns that.

    It also returns 0 when it has lost another host, and has said so.
    """
    log = log_dir / LAUNCHER_LOG
    said = log.read_text(errors="replace") if log.exists() else ""
    if any(process.current.in_traceback and gave_up(process.current.tail()) for process in team.processes):
        return True
    unfinished = not all(process.finished for process in team.processes)
    return "MPI_ABORT was invoked" in said or (unfinished and classify(said).name != "unknown")


def _failure(team: Team, log_dir: Path, code: int, *, oom_kill: bool) -> ToolError:
    """Why a job ended with an exit code: the process that the launcher names, else the log that says most."""
    launcher = log_dir / LAUNCHER_LOG
    said = launcher.read_text(errors="replace") if launcher.exists() else ""
    number, how = mpi.who_failed(said, code, 1 if team.job.launcher == "none" else team.job.processes)
    if number is None and team.job.launcher == "mpirun" and team.job.processes == 1:
        number, how = mpi.who_failed(said, code, 2)
    texts = [process.current.tail() for process in team.processes]
    if number is None or number >= len(texts):
        number = telling(texts)
    if number is None:
        found = classify(said)
        return ToolError(
            f"engine build: {found.sentence}" + (f" (exit code {code})" if code else ""),
            log_tail=mpi.tail(launcher, _SHOWN),
            hint=f"{found.remedy} Logs: {log_dir}",
        )
    found = classify(texts[number], how, oom_kill=oom_kill)
    if found.name in ("unknown", "signal"):  # the launcher may know more: that another host is gone, no PMI
        other = classify(said)
        found = other if other.name != "unknown" else found
    return _error(team.processes[number], found, how or (f"exit code {code}" if code else ""), log_dir)


def _error(process: Watched, found: Diagnosis, how: str, log_dir: Path) -> ToolError:
    ended = f" ({how})" if how not in ("", "abort") else ""
    return ToolError(
        f"engine build: rank {process.rank}: {found.sentence}{ended}",
        log_tail=_lines(process),
        hint=f"{found.remedy} Logs: {log_dir}",
    )


def _lines(process: Watched | None) -> list[str]:
    if process is None:
        return []
    return telling_lines(process.current.tail(), _SHOWN)


def _oom_kills() -> int:
    """How often the kernel has killed for memory: in this container, and on the host."""
    total = 0
    for path in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return total


def environment_of(job: Job, given: Dict[str, str]) -> dict[str, str]:
    """What the launcher and the processes of this host get."""
    made = {**given, "PYTHONUNBUFFERED": "1"}
    if job.launcher == "mpirun" and job.processes > (os.cpu_count() or 1):
        made.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    return made
