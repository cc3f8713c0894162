"""EDGE: signs of life of a server's processes: datagrams of cpu ranks, state files of others, and /proc."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trtbuild.serve.processes import marked_processes
from trtbuild.serve.watch import GONE, STOPPED, Progress, Vital

_TICKS = os.sysconf("SC_CLK_TCK")
_STATE_EVERY_S = 1.0


@dataclass
class _Sign:
    """The last sign of life of one rank."""

    rank: int
    pid: int
    at: float
    cpu_s: float = 0.0
    state: str = ""
    work: int = 0
    open_requests: int = 0
    said: str = ""
    engine: str = ""


@dataclass(frozen=True)
class Stat:
    """A line of /proc/PID/stat: state, CPU seconds, start time in ticks since boot."""

    state: str
    cpu_s: float
    started: int


def read_stat(line: str) -> Stat:
    """Raises ValueError or IndexError for what is no such line."""
    fields = line.rpartition(")")[2].split()
    return Stat(fields[0], (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[19]))


def stat_of(pid: int) -> Stat | None:
    """None where the process is gone; a zombie is."""
    try:
        stat = read_stat(Path(f"/proc/{pid}/stat").read_text())
    except (OSError, ValueError, IndexError):
        return None
    return None if stat.state in "ZX" else stat


class Beats:
    """Heartbeats of cpu ranks (`runtime/heartbeat.py`). A thread takes them in until `close`.

    Ranks are known by their process, as several engines have ranks of the same number. With `may_go` they may end, as
    they do when a model is unloaded; one that fails is then reported by its model.
    """

    def __init__(self, name: str, *, may_go: bool = False) -> None:
        self._signs: dict[int, _Sign] = {}
        self._may_go = may_go
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind("\0" + name)
        threading.Thread(target=self._run, daemon=True, name="beats").start()

    def vitals(self, now: float) -> list[Vital]:
        found, known = [], self._known()
        several = len({sign.engine for sign in known}) > 1
        for sign in known:
            stat = stat_of(sign.pid)
            if stat is None and self._may_go:
                with self._lock:
                    self._signs.pop(sign.pid, None)
                continue
            state, cpu_s = (GONE, 0.0) if stat is None else (stat.state, stat.cpu_s - sign.cpu_s)
            who = f"rank {sign.rank} of {sign.engine}" if several else f"rank {sign.rank}"
            found.append(Vital(who, sign.pid, now - sign.at, state, cpu_s, sign.rank, sign.engine))
        return found

    def progress(self) -> dict[str, Progress]:
        """Of every engine: open requests of its rank 0, the work of all its ranks, and their CPU time."""
        found: dict[str, Progress] = {}
        for sign in self._known():
            stat, so_far = stat_of(sign.pid), found.get(sign.engine, Progress(0, 0))
            found[sign.engine] = Progress(
                so_far.open_requests + sign.open_requests,
                (so_far.steps or 0) + sign.work,
                (so_far.cpu_s or 0.0) + (stat.cpu_s if stat is not None else 0.0),
            )
        return found

    def _known(self) -> list[_Sign]:
        with self._lock:
            return sorted(self._signs.values(), key=lambda sign: (sign.rank, sign.pid))

    def shift(self, seconds: float) -> None:
        with self._lock:
            for sign in self._signs.values():
                sign.at += seconds

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _run(self) -> None:
        while True:
            try:
                message = self._socket.recv(1024)
            except OSError:
                return
            try:
                *numbers, engine = message.decode().split(" ", 4)
                rank, pid, work, open_requests = map(int, numbers)
            except ValueError:
                if not message:
                    return
                continue
            stat = stat_of(pid)
            if stat is not None:
                with self._lock:
                    self._signs[pid] = _Sign(
                        rank, pid, time.monotonic(), stat.cpu_s, "", work, open_requests, engine=engine
                    )


class StateFiles:
    """What the shell beside each tritonserver writes down of it (`command.py`), on whatever host it runs."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self._folder, self._ranks = folder, ranks
        self._signs: dict[int, _Sign] = {}

    def vitals(self, now: float) -> list[Vital]:
        """A process that is stopped gives no sign, even though the shell beside it does."""
        found = []
        for rank in range(self._ranks):
            try:
                said = (self._folder / f"rank{rank}.state").read_text()
                _, pid, _ = said.split(" ", 2)
                stat = read_stat(said)
            except (OSError, ValueError, IndexError):
                said = ""
            sign = self._signs.get(rank)
            if said and (sign is None or said != sign.said):
                at = sign.at if sign is not None and stat.state == STOPPED else now
                sign = self._signs[rank] = _Sign(rank, int(pid), at, state=stat.state, said=said)
            if sign is not None:
                found.append(Vital(f"rank {rank}", sign.pid, now - sign.at, sign.state, 0.0, rank))
        return found

    def shift(self, seconds: float) -> None:
        for sign in self._signs.values():
            sign.at += seconds


@dataclass
class Crew:
    """Every process of a server on this host: which are stopped, and which models have lost theirs.

    `complete`: all models are loaded, so that none may go any more; while it starts, Triton has processes that do.
    """

    mark: tuple[str, str]
    complete: bool = False
    _names: dict[int, tuple[str, int]] = field(default_factory=dict)
    _stopped: dict[int, float] = field(default_factory=dict)
    _looked: float = 0.0

    def vitals(self, now: float) -> list[Vital]:
        if now - self._looked >= _STATE_EVERY_S:
            self._looked = now
            for pid in marked_processes(*self.mark):
                stat = stat_of(pid)
                if stat is not None:  # a name may change: a process starts as a copy of another
                    self._names[pid] = _name(pid), stat.started
        return list(self._look(now))

    def shift(self, seconds: float) -> None:
        self._stopped = {pid: at + seconds for pid, at in self._stopped.items()}

    def _look(self, now: float) -> Iterator[Vital]:
        for pid, (name, started) in list(self._names.items()):
            stat = stat_of(pid)
            if stat is None or stat.started != started:
                del self._names[pid]
                self._stopped.pop(pid, None)
                if self.complete and name.startswith(_OF_MODEL):
                    yield Vital(name, pid, 0.0, GONE)
            elif stat.state == STOPPED:
                yield Vital(name, pid, now - self._stopped.setdefault(pid, now), STOPPED)
            else:
                self._stopped.pop(pid, None)


_OF_MODEL = "the process of model "


def _name(pid: int) -> str:
    """What a person calls a process, by its command line."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "a process"
    program = Path(words[0]).name
    if program == "triton_python_backend_stub" and len(words) > 1:
        return f"{_OF_MODEL}{Path(words[1]).parent.parent.name}"
    if program in ("mpirun", "prterun", "orterun", "srun"):
        return program
    return program if program == "tritonserver" else f"a process of the server, {program}"
