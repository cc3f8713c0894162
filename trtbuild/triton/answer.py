"""The answer to one Triton request, by any number of threads, from a model that calls another one."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any


class Answer:
    """The response sender of one request; it must not be touched after its FINAL flag, which crashes the server."""

    def __init__(self, pb: Any, sender: Any, *, decoupled: bool) -> None:
        self._pb, self._sender, self._decoupled = pb, sender, decoupled
        self._lock = threading.Lock()
        self._open = True
        self.gone = False
        """The client cancelled, or left."""

    def send(self, tensors: Mapping[str, Any], *, final: bool = False) -> None:
        made = [self._pb.Tensor(name, values) for name, values in tensors.items()]
        self._respond(self._pb.InferenceResponse(output_tensors=made), final=final)

    def fail(self, message: str, kind: Any = None) -> None:
        error = self._pb.TritonError(message, *(() if kind is None else (kind,)))
        self._respond(self._pb.InferenceResponse(output_tensors=[], error=error), final=True)

    def fail_with(self, work: Future[None]) -> None:
        """Whatever ended `work` (a callback of it): the client must not wait for ever."""
        error = None if work.cancelled() else work.exception()
        if error is not None:
            self.fail(f"{type(error).__name__}: {error}")

    def end(self) -> None:
        """End an answer that has had its last response; one that is still open where Triton wants exactly one fails."""
        if not self._decoupled:
            self.fail("the request was cancelled", self._pb.TritonError.CANCELLED)
        with self._lock:
            if self._open:
                self._open = False
                self._sender.send(flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def left(self) -> bool:
        """True once, when the client is found to have cancelled."""
        with self._lock:
            if not self._open or self.gone or not self._sender.is_cancelled():
                return False
            self.gone = True
            return True

    def _respond(self, response: Any, *, final: bool) -> None:
        with self._lock:
            if not self._open:
                return
            if final:
                self._open = False
                self._sender.send(response, flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            else:
                self._sender.send(response)
