"""How `tensorrt_llm` learns that a client of the ensemble is gone.

An ensemble hands a cancellation only to steps that it starts afterwards: the running `tensorrt_llm` step never sees it
(server issue #6739), but the next `postprocessing` request does. That model then sends the stream's id to the process
that made it, over an abstract Unix datagram socket; nothing is left behind when either side dies.

The upper bits of a stream's id name that process: several engines may run in one server, or share a network namespace
with another server's.
"""

from __future__ import annotations

import itertools
import secrets
import socket
import struct
import threading
from collections.abc import Callable

_COUNTER_BITS = 40
_LISTENER_BITS = 23
_TRIES = 16


def _address(listener: int) -> str:
    return f"\0trtbuild-hangup-{listener:06x}"


class HangupListener:
    """Gives out ids of streams, and calls `on_hangup(stream_id)` for every client that left."""

    def __init__(self, on_hangup: Callable[[int], None]) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._listener = self._bind()
        self._counter = itertools.count(1)
        self._on_hangup = on_hangup
        threading.Thread(target=self._run, daemon=True, name="hangup").start()

    def next_id(self) -> int:
        """An id that no other stream has: 23 bits of this listener, 40 of a counter."""
        return self._listener << _COUNTER_BITS | next(self._counter)

    def close(self) -> None:
        self._socket.close()

    def _bind(self) -> int:
        for tries_left in reversed(range(_TRIES)):
            listener = secrets.randbits(_LISTENER_BITS)
            try:
                self._socket.bind(_address(listener))
            except OSError:
                if not tries_left:
                    raise
            else:
                return listener
        raise AssertionError("unreachable")

    def _run(self) -> None:
        while True:
            try:
                message = self._socket.recv(64)
            except OSError:
                return
            if len(message) == 8:
                self._on_hangup(struct.unpack("<Q", message)[0])


class HangupSender:
    """The other end; a message that cannot be delivered is dropped, as the next response sends another one."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def send(self, stream_id: int) -> None:
        try:
            self._socket.sendto(struct.pack("<Q", stream_id), socket.MSG_DONTWAIT, _address(stream_id >> _COUNTER_BITS))
        except OSError:
            return

    def close(self) -> None:
        self._socket.close()
