"""A conversion shared by the processes of mpirun, on one host or several with a common file system.

The first process plans, claims the output and publishes it; each writes the files of some ranks. An error of one ends
all: the others notice between two blocks, nothing is published, and the first process reports what happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trtbuild.checkpoint.convert import convert, default_workers
from trtbuild.checkpoint.journal import Journal
from trtbuild.errors import ToolError, TrtbuildError
from trtbuild.layout import RankJobs, TensorInfo
from trtbuild.progress import Progress, silent

_FAILED = 7  # message tag
_USUAL = (TrtbuildError, OSError)


@dataclass(frozen=True)
class Work:
    """What is converted, and where to; the same for every process. `workers` 0 shares the cores of a host.

    `part` is the subfolder for one half of an encoder-decoder model.
    """

    ranks: tuple[RankJobs, ...]
    index: dict[str, TensorInfo]
    folder: Path
    part: str = ""
    workers: int = 0

    def share(self, number: int, count: int) -> Work:
        """The ranks of process `number` of `count`: neighbours, so that a stage's weights are read by few processes."""
        total = len(self.ranks)
        return replace(self, ranks=self.ranks[number * total // count : (number + 1) * total // count])

    def perform(self, progress: Progress) -> dict[str, str]:
        """SHA-256 of the ranks' files by path below the output."""
        place = self.folder / self.part
        place.mkdir(exist_ok=True)
        journal = Journal(self.folder, self.part)
        made = convert(self.ranks, self.index, place, workers=self.workers, progress=progress, journal=journal)
        return {Path(self.part, name).as_posix(): digest for name, digest in made.items()}


class Alone:
    """A conversion by this process only."""

    def convert(self, work: Work, progress: Progress = silent) -> dict[str, str]:
        return work.perform(progress)


class _Stopped(Exception):
    """Another process has failed."""


class Leader:
    """The first process of a team."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm

    def convert(self, work: Work, progress: Progress = silent) -> dict[str, str]:
        """Convert with all processes; raises the first error that one of them met."""
        self._comm.bcast(work)
        results = self._comm.gather(_attempt(self._comm, work, progress))
        errors = [result for result in results if isinstance(result, _USUAL)]
        if errors:
            raise errors[0]
        return {name: digest for result in results for name, digest in result.items()}

    def end(self, code: int) -> None:
        """Tell the others how it ended; they wait for that, since mpirun ends a job when its first process leaves."""
        self._comm.bcast(None)
        self._comm.bcast(code)


@contextmanager
def joined(mpi: bool) -> Iterator[Alone | Leader]:
    """The team of this process. Under MPI all processes but the first work inside this call and leave by SystemExit.

    Raises:
        ToolError: MPI was asked for, and is not there.
    """
    if not mpi:
        yield Alone()
        return
    comm = _world()
    if comm.rank:
        raise SystemExit(_follow(comm))
    leader = Leader(comm)
    try:
        yield leader
    except _USUAL as error:
        leader.end(getattr(error, "exit_code", 1))
        raise
    leader.end(0)


def _world() -> Any:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ToolError(f"--mpi needs mpi4py and an MPI library: {error}", hint="pip install trtbuild[cpu]") from error
    return MPI.COMM_WORLD


def _follow(comm: Any) -> int:
    """The work of every process but the first; the exit code."""
    while (work := comm.bcast(None)) is not None:
        comm.gather(_attempt(comm, work, silent))
    return int(comm.bcast(None))


def _attempt(comm: Any, work: Work, progress: Progress) -> dict[str, str] | Exception:
    """This process's share: digests, or the error; the others are told of an error at once."""
    mine = work.share(comm.rank, comm.size)
    if not mine.workers:
        from mpi4py import MPI

        beside = comm.Split_type(MPI.COMM_TYPE_SHARED)
        mine = replace(mine, workers=max(1, default_workers() // beside.size))
        beside.Free()
    try:
        return mine.perform(_watching(comm, progress))
    except _Stopped:
        return {}
    except _USUAL as error:
        for other in range(comm.size):
            if other != comm.rank:
                comm.send(None, other, _FAILED)
        return error


def _watching(comm: Any, progress: Progress) -> Progress:
    def report(done: float, total: float, text: str = "") -> None:
        if comm.iprobe(tag=_FAILED):
            raise _Stopped
        progress(done, total, text)

    return report
