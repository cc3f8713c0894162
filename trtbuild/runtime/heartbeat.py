"""A rank's signs of life, from a thread that depends on nothing that the rank computes.

The thread needs the interpreter for some microseconds every half second. Kernels, torch and MPI give it away while they
work, so a long step does not silence it; a stopped process does. A datagram that cannot be delivered is dropped.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from trtbuild.handover import BEAT_ENV, BEAT_EVERY_S


class Heartbeat:
    """Begins at once where somebody listens. `work` and `requests` are read, not called for, by the thread."""

    def __init__(self, rank: int, engine: str = "") -> None:
        self.work: Callable[[], int] = lambda: 0
        self.requests: Callable[[], int] = lambda: 0
        self._rank, self._engine = rank, engine
        name = os.environ.get(BEAT_ENV)
        if name:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            threading.Thread(target=self._run, args=("\0" + name,), daemon=True, name="heartbeat").start()

    def _run(self, address: str) -> None:
        while True:
            beat = f"{self._rank} {os.getpid()} {self.work()} {self.requests()} {self._engine}"
            with suppress(OSError):  # the next one may arrive
                self._socket.sendto(beat.encode(), socket.MSG_DONTWAIT, address)
            time.sleep(BEAT_EVERY_S)
