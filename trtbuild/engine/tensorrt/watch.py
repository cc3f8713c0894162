"""EDGE: what the processes of a running build are doing, by their logs and their CPU time."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from trtbuild.engine.tensorrt.command import Job
from trtbuild.mpi import rank_log

_TICKS = os.sysconf("SC_CLK_TCK")
_BUSY = 0.01
"""A process that uses less of a core than this does nothing."""
_LOOKED, _BLIND = 0.6, 4
_PIECE = 1 << 20
_TAIL = 1 << 19

_STAGES = (
    (re.compile(rb"trtbuild: rank \d+ of \d+: started"), 0.01, "loads weights"),
    (re.compile(rb"Total time of constructing network"), 0.15, "has its network"),
    (re.compile(rb"Build TensorRT engine"), 0.2, "is built by TensorRT"),
    (re.compile(rb"Engine generation completed|Total time of building Unnamed"), 0.9, "is built"),
    (re.compile(rb"Serializing engine to"), 0.95, "is written"),
)
_FINISHED = {
    True: re.compile(rb"trtbuild: rank \d+: done"),
    False: re.compile(rb"Engine serialized\. Total time"),
}


@dataclass
class Log:
    """One log, read as it grows."""

    path: Path
    offset: int = 0
    done: int = 0
    fraction: float = 0.0
    stage: str = "starts"
    in_traceback: bool = False
    _rest: bytes = b""

    def read(self, finished: re.Pattern[bytes]) -> bool:
        """Take in what is new; whether there was something."""
        grew = False
        try:
            with self.path.open("rb") as handle:
                handle.seek(self.offset)
                while piece := handle.read(_PIECE):
                    grew = True
                    self.offset += len(piece)
                    *lines, self._rest = (self._rest + piece).split(b"\n")
                    for line in lines:
                        self._line(line, finished)
        except FileNotFoundError:
            pass
        return grew

    def tail(self) -> str:
        """The end of it, which is where the reason stands."""
        try:
            with self.path.open("rb") as handle:
                handle.seek(max(0, self.path.stat().st_size - _TAIL))
                return handle.read().decode(errors="replace")
        except OSError:
            return ""

    def _line(self, line: bytes, finished: re.Pattern[bytes]) -> None:
        self.in_traceback = self.in_traceback or b"in parallel_build" in line
        if finished.search(line):
            self.done, self.fraction, self.stage = self.done + 1, 0.0, "is finished"
            return
        for pattern, fraction, stage in _STAGES:
            if fraction > self.fraction and pattern.search(line):
                self.fraction, self.stage = fraction, stage


@dataclass
class Watched:
    """One process of the job: the ranks it builds, its logs, and since when it has done nothing."""

    number: int
    ranks: tuple[int, ...]
    logs: list[Log]
    active_at: float
    sampled_at: float = 0.0
    cpu_at: float | None = None
    cpu: float | None = None
    _written: int = 0

    @property
    def done(self) -> int:
        return sum(log.done for log in self.logs)

    @property
    def finished(self) -> bool:
        return self.done >= len(self.ranks)

    @property
    def current(self) -> Log:
        """The log that it writes to: the last that has begun."""
        begun = [log for log in self.logs if log.offset]
        return begun[-1] if begun else self.logs[0]

    @property
    def rank(self) -> int:
        """The rank that it builds."""
        return self.ranks[min(self.done, len(self.ranks) - 1)]

    def idle(self, now: float, seconds: float) -> bool:
        """No line and no CPU time for so long. On a host too busy to look, four times as long: a sample is missing."""
        looked = self.sampled_at - self.active_at > _LOOKED * seconds
        return now - self.active_at > seconds * (1 if looked else _BLIND)


@dataclass
class Team:
    """All processes of a job."""

    job: Job
    folder: Path
    ticks: Path
    started: float
    processes: list[Watched] = field(init=False)

    def __post_init__(self) -> None:
        self.processes = []
        for number, (ranks, name) in enumerate(zip(self.job.ranks, self.job.logs, strict=True)):
            logs = [Log(self.folder / name)]
            logs += [Log(rank_log(self.folder, rank)) for rank in ranks] if self.job.in_process else []
            self.processes.append(Watched(number, ranks, logs, self.started))

    @property
    def done(self) -> int:
        return sum(process.done for process in self.processes)

    @property
    def fraction(self) -> float:
        """Ranks that are finished, and parts of those that are not."""
        return sum(process.done + process.current.fraction * (not process.finished) for process in self.processes)

    def slowest(self) -> Watched | None:
        """The unfinished process that is farthest behind."""
        open_ones = [process for process in self.processes if not process.finished]
        return min(open_ones, key=lambda process: (process.done, process.current.fraction), default=None)

    def read_logs(self, now: float) -> None:
        pattern = _FINISHED[self.job.in_process]
        for process in self.processes:
            grew = [log.read(pattern) for log in process.logs]
            if any(grew):
                process.active_at, process.cpu_at = now, process.cpu

    def read_cpu(self, now: float) -> None:
        """Note which processes have used the CPU, by what is written down beside each (`command`)."""
        for process in self.processes:
            path = self.ticks / str(process.number)
            try:
                written = path.stat().st_mtime_ns
                process.cpu = int(path.read_text()) / _TICKS
            except (OSError, ValueError):
                continue
            if written != process._written:
                process._written, process.sampled_at = written, now
            before = process.cpu if process.cpu_at is None else process.cpu_at
            if process.cpu_at is None or process.cpu - before > _BUSY * max(now - process.active_at, 0.1):
                process.active_at, process.cpu_at = now, process.cpu

    def idle(self, now: float, seconds: float) -> list[Watched]:
        """Unfinished processes that have done nothing for so long."""
        return [process for process in self.processes if not process.finished and process.idle(now, seconds)]
