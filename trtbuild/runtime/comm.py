"""What ranks say to each other: MPI for TP x PP, nothing for a single rank.

Sums are made of all ranks' parts in rank order, so that the bits do not depend on how MPI would have summed them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trtbuild.mapping import Mapping

if TYPE_CHECKING:
    from mpi4py.MPI import Comm as MpiComm

_STEP, _HIDDEN, _LOGITS = 1, 2, 3  # message tags
# (waited so long, then sleep so long): a rank that waits leaves its core to those that compute
_PATIENCE_S = ((0.0002, 0.0), (0.05, 0.00005), (float("inf"), 0.001))


class Comm:
    """The world of one engine: `mapping.world_size` ranks."""

    def __init__(self, mapping: Mapping, world: MpiComm | None = None) -> None:
        self.mapping = mapping
        self._world = world
        self._tp: Any = None
        if world is not None and mapping.tp_size > 1:
            self._tp = world.Split(color=mapping.pp_rank, key=mapping.tp_rank)

    def all_reduce(self, x: NDArray[Any]) -> None:
        """x [T, width] += the other tensor-parallel ranks' x, in place, in rank order."""
        if self._tp is None:
            return
        parts = np.empty((self.mapping.tp_size, *x.shape), x.dtype)
        self._tp.Allgather(np.ascontiguousarray(x), parts)
        np.add(parts[0], parts[1], out=x)
        for part in parts[2:]:
            x += part

    def send_hidden(self, x: NDArray[Any]) -> None:
        assert self._world is not None
        self._world.Send(np.ascontiguousarray(x), dest=self.mapping.rank + self.mapping.tp_size, tag=_HIDDEN)

    def receive_hidden(self, x: NDArray[Any]) -> None:
        """x [T, H] from the same tensor-parallel rank of the stage before; x is contiguous."""
        assert self._world is not None
        source = self.mapping.rank - self.mapping.tp_size
        self._await(source, _HIDDEN)
        self._world.Recv(x, source=source, tag=_HIDDEN)

    def broadcast_hidden(self, x: NDArray[Any]) -> None:
        """x [T, H] of the last stage to all ranks, in place: an encoder's output, which every decoder stage reads."""
        if self._world is not None and self.mapping.pp_size > 1:
            self._world.Bcast(x, root=self.mapping.world_size - self.mapping.tp_size)

    def gather_logits(self, local: NDArray[Any]) -> None:
        """Called on the last stage: its ranks' [R, rows] meet on its first rank, which hands them to rank 0."""
        whole = local
        if self._tp is not None:
            parts = np.empty((self.mapping.tp_size, *local.shape), local.dtype) if self.mapping.tp_rank == 0 else None
            self._tp.Gather(np.ascontiguousarray(local), parts, root=0)
            if parts is None:
                return
            whole = parts.transpose(1, 0, 2).reshape(len(local), self.mapping.tp_size * local.shape[1])  # R may be 0
        if self.mapping.rank == 0:
            self._logits = whole
        elif self._world is not None and self.mapping.tp_rank == 0:
            self._world.Send(np.ascontiguousarray(whole), dest=0, tag=_LOGITS)

    def logits(self, num_rows: int, vocab_rows: int) -> NDArray[Any]:
        """Rank 0: logits of the step [R, tp_size * vocab_rows], from wherever the last stage is."""
        if self.mapping.pp_size == 1:
            return self._logits
        assert self._world is not None
        whole = np.empty((num_rows, self.mapping.tp_size * vocab_rows), np.float32)
        source = (self.mapping.pp_size - 1) * self.mapping.tp_size
        self._await(source, _LOGITS)
        self._world.Recv(whole, source=source, tag=_LOGITS)
        return whole

    def announce(self, message: NDArray[Any]) -> None:
        """Rank 0 tells every other rank what to do: an int32 message."""
        if self._world is not None:
            for rank in range(1, self.mapping.world_size):
                self._world.Send(message, dest=rank, tag=_STEP)

    def listen(self) -> NDArray[Any]:
        """Other ranks: the next message of rank 0."""
        assert self._world is not None
        message = np.empty(self._await(0, _STEP), np.int32)
        self._world.Recv(message, source=0, tag=_STEP)
        return message

    def _await(self, source: int, tag: int) -> int:
        """Wait until a message is there; the number of its 4-byte words. MPI's own waiting would burn the core."""
        assert self._world is not None
        from mpi4py import MPI

        status = MPI.Status()
        since = time.monotonic()
        while not self._world.Iprobe(source=source, tag=tag, status=status):
            waited = time.monotonic() - since
            time.sleep(next(sleep for limit, sleep in _PATIENCE_S if waited < limit))
        return int(status.Get_count(MPI.INT32_T))
