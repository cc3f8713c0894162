"""Executes a plan: blocks of a megabyte are read once, checked, cast, written to every rank that holds them, hashed.

Threads take blocks in order. Each writes its own block; then it hashes what has arrived of the files it wrote to, while
the others go on. numpy, hashlib and the kernel release the interpreter lock for all of it. Memory does not depend on
the model: a few blocks a thread.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from collections.abc import Mapping as Dict
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild.checkpoint.blocks import Block, blocks
from trtbuild.checkpoint.journal import Journal
from trtbuild.checkpoint.reader import Reader
from trtbuild.checkpoint.values import Values
from trtbuild.checkpoint.writer import RankWriter
from trtbuild.layout import RankJobs, TensorInfo
from trtbuild.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_AHEAD = 8  # blocks that may wait to be hashed, beside those in work
_POLL_S = 0.2


def convert(
    ranks: Sequence[RankJobs],
    index: Dict[str, TensorInfo],
    folder: Path,
    *,
    workers: int = 0,
    progress: Progress = silent,
    journal: Journal | None = None,
) -> dict[str, str]:
    """Write rankN.safetensors of `ranks` into `folder`; returns SHA-256 in hex by file name.

    `workers` threads (0 = one a core) make the same bytes whatever their number. `progress` counts bytes finished.
    With a `journal`, tensors that an interrupted run completed are verified and kept.

    Raises:
        CheckpointError: a weight is NaN or infinite, beyond the range of the dtype, or cannot be read.
        OSError: the file system refuses (a full disk, for example).
    """
    workers = workers or default_workers()
    names = [f"rank{rank.rank}.safetensors" for rank in ranks]
    writers: list[RankWriter] = []
    try:
        for name, rank in zip(names, ranks, strict=True):
            record = None if journal is None else _recorder(journal, name)
            writers.append(RankWriter(folder / name, rank.jobs, record))
        with Reader(index) as reader, ThreadPoolExecutor(workers) as pool:
            finished = list(pool.map(_resumed, ranks, names, writers, [journal] * len(ranks)))
            kept = sum(job.nbytes for rank, count in zip(ranks, finished, strict=True) for job in rank.jobs[:count])
            total = sum(rank.nbytes for rank in ranks)
            crew = _Crew(blocks(ranks, index, finished), writers, Values(reader, index), workers, kept)
            progress(kept, total, "")
            try:
                running = [pool.submit(crew.work) for _ in range(workers)]
                while running:
                    done, left = wait(running, _POLL_S, FIRST_EXCEPTION)
                    progress(crew.done, total, crew.group)
                    for future in done:
                        future.result()
                    running = list(left)
            finally:
                crew.stop()
        progress(total, total, "")
        return {name: writer.close() for name, writer in zip(names, writers, strict=True)}
    finally:
        for writer in writers:
            writer.abandon()


def default_workers() -> int:
    """One thread a core, and no more than a disk can serve."""
    return min(8, len(os.sched_getaffinity(0)))


def _recorder(journal: Journal, name: str) -> Any:
    return lambda count, digest: journal.record(name, count, digest)


def _resumed(rank: RankJobs, name: str, writer: RankWriter, journal: Journal | None) -> int:
    """Leading jobs of a rank that its file already holds, verified; 0 begins the file anew."""
    last = journal.last(name) if journal else None
    if last is not None:
        count = size = 0
        while count < len(rank.jobs) and size < last[0]:
            size += rank.jobs[count].nbytes
            count += 1
        if size == last[0] and writer.resume(*last):
            return count
    if journal is not None:
        journal.forget(name)
    writer.start()
    return 0


class _Slot:
    """Room for one block on its way from source to hash; `uses` counts the files that still need its bytes."""

    def __init__(self, free: queue.LifoQueue[_Slot | None]) -> None:
        self._free = free
        self._lock = threading.Lock()
        self._buffer: Array | None = None
        self.uses = 0

    def buffer(self, nbytes: int) -> Array:
        """A byte array of the slot's own; the memory is kept, since fresh memory is slow."""
        import numpy as np

        if self._buffer is None or self._buffer.nbytes < nbytes:
            self._buffer = np.empty(nbytes, np.uint8)
        return self._buffer[:nbytes]

    def release(self) -> None:
        """One use less; the last one frees the slot."""
        with self._lock:
            self.uses -= 1
            if self.uses == 0:
                self._free.put(self)


class _Crew:
    """The threads' common state."""

    def __init__(
        self, todo: Iterator[Block], writers: Sequence[RankWriter], values: Values, workers: int, done: int
    ) -> None:
        self._todo = todo
        self._writers = writers
        self._values = values
        self._workers = workers
        self._lock = threading.Lock()
        self._stopped = False
        self._free: queue.LifoQueue[_Slot | None] = queue.LifoQueue()
        for _ in range(workers + _AHEAD):
            self._free.put(_Slot(self._free))
        # Where the next block of each file must start: one out of turn would be waited for forever.
        self._next = [writer.hashed for writer in writers]
        self.done = done
        self.group = ""

    def work(self) -> None:
        """Take blocks until there are none, or until somebody stops; who is done or fails stops the others' taking."""
        try:
            while (taken := self._take()) is not None:
                self._perform(*taken)
        finally:
            self.stop()

    def stop(self) -> None:
        """Let every thread end after its block."""
        self._stopped = True
        for _ in range(self._workers):
            self._free.put(None)

    def _take(self) -> tuple[Block, _Slot] | None:
        """The next block, and a slot for it. The slot comes first: every block that is taken can be finished."""
        slot = self._free.get()
        if slot is None or self._stopped:
            return None
        with self._lock:
            block = next(self._todo, None)
            if block is None:
                self._free.put(slot)
                return None
            for share in block.shares:
                for copy in share.copies:
                    if copy.start != self._next[copy.position]:
                        raise RuntimeError(f"{block.group}: byte {copy.start} of file {copy.position} is out of turn")
                    self._next[copy.position] += share.nbytes
            self.group = block.group
        return block, slot

    def _perform(self, block: Block, slot: _Slot) -> None:
        slot.uses = sum(len(share.copies) for share in block.shares)
        room = slot.buffer(sum(share.nbytes for share in block.shares)) if self._values.need_room(block) else None
        raw = self._values.source(block)
        offset, touched = 0, []
        for share in block.shares:
            target = None if room is None else room[offset : offset + share.nbytes]
            data = self._values.of(block, share, raw, target).data
            assert data.nbytes == share.nbytes, (block, data.nbytes)
            offset += share.nbytes
            for copy in share.copies:
                writer = self._writers[copy.position]
                writer.write(copy.start, data)
                touched.append((writer, copy, data))
        for writer, copy, data in touched:
            writer.arrived(copy.start, data, copy.finishes, slot.release)
        with self._lock:
            self.done += block.nbytes
        for writer, _copy, _data in touched:
            writer.hash_arrived()
