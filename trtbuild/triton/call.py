"""One request in flight: what its client may be sent, and whether it is still there.

A response sender must not be touched after its FINAL flag: asking a finished one `is_cancelled` crashes the server.
Every use of it is therefore inside the lock and behind `_open`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any


class Call:
    """The answers of one request. `inner_id`: the id by which a second request may stop it."""

    def __init__(self, pb: Any, sender: Any, inner_id: str = "", *, decoupled: bool) -> None:
        self._pb = pb
        self._sender = sender
        self._decoupled = decoupled
        self._lock = threading.Lock()
        self._open = True
        self.inner_id = inner_id
        self.cancelled = False
        self.begun = False
        """Whether a response was sent."""

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits any more: the client left, or the answer has ended."""
        with self._lock:
            return self.cancelled or not self._open

    def client_left(self) -> bool:
        """Whether the client has cancelled or is gone; nobody asks once the answer has ended."""
        with self._lock:
            if self._open and not self.cancelled:
                self.cancelled = bool(self._sender.is_cancelled())
            return self.cancelled

    def send(self, tensors: Sequence[Any], *, final: bool) -> None:
        self._send(self._pb.InferenceResponse(output_tensors=list(tensors)), final)

    def fail(self, message: str, code: int | None = None) -> None:
        """End with an error; nothing happens where the answer has ended."""
        kind = self._pb.TritonError
        error = kind(message, code if code is not None else kind.INTERNAL)
        self._send(self._pb.InferenceResponse(output_tensors=[], error=error), True)

    def finish(self) -> None:
        """End without another response; one that is not decoupled must have a response, so it becomes an error."""
        if not self._decoupled:
            self.fail("the request was cancelled", self._pb.TritonError.CANCELLED)
            return
        with self._lock:
            if self._open:
                self._open = False
                self._sender.send(flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _send(self, response: Any, final: bool) -> None:
        with self._lock:
            if not self._open:
                return
            self.begun = True
            if final:
                self._open = False
                self._sender.send(response, flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            else:
                self._sender.send(response)
