"""How `tensorrt_llm` learns that a client of the ensemble is gone.

An ensemble hands a cancellation only to steps that it starts afterwards: the running `tensorrt_llm` step never sees it
(server issue #6739), but the next `postprocessing` request does. That model then sends the stream's id here, over an
abstract Unix datagram socket named after the server's process; nothing is left behind when either side dies.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path


def _address(repository: Path) -> str:
    name = hashlib.sha256(str(repository.resolve()).encode()).hexdigest()[:16]
    return f"\0trtbuild-hangup-{os.getppid()}-{name}"


class HangupListener:
    """Calls `on_hangup(stream_id)` for every client that left."""

    def __init__(self, repository: Path, on_hangup: Callable[[int], None]) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind(_address(repository))
        self._on_hangup = on_hangup
        threading.Thread(target=self._run, daemon=True, name="hangup").start()

    def _run(self) -> None:
        while True:
            try:
                message = self._socket.recv(64)
            except OSError:
                return
            if len(message) == 8:
                self._on_hangup(struct.unpack("<Q", message)[0])

    def close(self) -> None:
        self._socket.close()


class HangupSender:
    """The other end; a message that cannot be delivered is dropped, as the next response sends another one."""

    def __init__(self, repository: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._address = _address(repository)

    def send(self, stream_id: int) -> None:
        try:
            self._socket.sendto(struct.pack("<Q", stream_id), socket.MSG_DONTWAIT, self._address)
        except OSError:
            return

    def close(self) -> None:
        self._socket.close()
