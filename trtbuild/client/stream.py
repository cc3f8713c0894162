"""One generation over gRPC: connect, send, iterate over text, and always end, be it by the final flag or an error."""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trtbuild.client.payload import Generation, request_tensors
from trtbuild.errors import RequestError, ServerError, TrtbuildError

_LOST = ("UNAVAILABLE", "CANCELLED", "ABORTED", "DATA_LOSS")
"""gRPC's own statuses for a connection that broke; what the server refuses comes as a message without a status."""


@dataclass(frozen=True)
class Chunk:
    """Text since the last chunk, and how many tokens the engine made for it."""

    text: str
    token_count: int
    final: bool = False


def generate_stream(
    url: str,
    generation: Generation,
    *,
    model: str = "ensemble",
    request_id: str | None = None,
    connect_timeout_s: float = 2.0,
    stall_timeout_s: float = 60.0,
) -> Iterator[Chunk]:
    """Yield chunks until the server says that the answer is complete; the last chunk has `final`.

    Leaving the loop early (or closing the iterator) cancels the request on the server.

    Raises:
        RequestError: the server refuses this request. ServerError: it is away, not ready, stalls or cuts off.
    """
    tensors = request_tensors(generation)
    connection = _Connection(url, model, connect_timeout_s)
    done = False
    try:
        connection.send(tensors, request_id or uuid.uuid4().hex, _parameters(generation))
        connection.await_first(stall_timeout_s)
        while not done:
            chunk = connection.next(stall_timeout_s)
            done = chunk.final
            yield chunk
    finally:
        connection.close(cancel=not done)


def _parameters(generation: Generation) -> dict[str, Any]:
    if generation.add_special_tokens is None:
        return {}
    return {"add_special_tokens": generation.add_special_tokens}


class _Connection:
    """A gRPC stream with its answers in a queue."""

    def __init__(self, url: str, model: str, timeout_s: float) -> None:
        try:
            import tritonclient.grpc as grpcclient
        except ImportError as error:
            raise ServerError("tritonclient is not installed", hint="pip install 'trtbuild[client]'") from error
        self._url = url
        self._model = model
        self._timeout_s = timeout_s
        self._answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._grpc = grpcclient
        self._client = grpcclient.InferenceServerClient(url)
        self._streaming = False
        self._answered = False
        self._first: tuple[Any, Any] | None = None  # taken from the queue by `await_first`, still to be handed out

    def await_first(self, stall_timeout_s: float) -> None:
        """Return when the first answer is there; a server that is silent for too long is asked whether it lives.

        Asking first would cost every request a round trip.
        """
        try:
            self._first = self._answers.get(timeout=min(self._timeout_s, stall_timeout_s))
        except queue.Empty:
            self._check()

    def _check(self) -> None:
        """One small question, so that a server that is away or hangs is told apart from a slow one."""
        from tritonclient.utils import InferenceServerException

        try:
            ready = self._client.is_model_ready(self._model, client_timeout=self._timeout_s)
        except InferenceServerException as error:
            status, text = _status(error), _reason(error)
            if status == "DEADLINE_EXCEEDED":
                raise ServerError(
                    f"the server at {self._url} does not answer (waited {self._timeout_s:g} s)",
                    hint="It hangs, or something else listens there.",
                ) from error
            raise self._away(text) from error
        if not ready:
            raise ServerError(
                f"the server at {self._url} has no model {self._model!r} ready", hint="See its log, and --model."
            )

    def send(
        self, tensors: list[tuple[str, str, list[list[Any]]]], request_id: str, parameters: dict[str, Any]
    ) -> None:
        import numpy as np
        from tritonclient.utils import InferenceServerException, triton_to_np_dtype

        inputs = []
        for name, kind, rows in tensors:
            values = np.array(rows, dtype=triton_to_np_dtype(kind))
            tensor = self._grpc.InferInput(name, list(values.shape), kind)
            tensor.set_data_from_numpy(values)
            inputs.append(tensor)
        outputs = [self._grpc.InferRequestedOutput(name) for name in ("text_output", "num_output_tokens")]
        try:
            self._client.start_stream(lambda result, error: self._answers.put((result, error)))
            self._streaming = True
            self._client.async_stream_infer(
                self._model,
                inputs,
                outputs=outputs,
                request_id=request_id,
                enable_empty_final_response=True,
                parameters=parameters,
            )
        except InferenceServerException as error:
            # A stream that broke at once says so here only in general; the reason is among the answers.
            with contextlib.suppress(queue.Empty):
                raise self._failure(self._answers.get_nowait()[1]) from error
            raise ServerError(f"cannot send to {self._url}: {_reason(error)}") from error

    def next(self, timeout_s: float) -> Chunk:
        """The next response."""
        try:
            result, error = self._first or self._answers.get(timeout=timeout_s)
            self._first = None
        except queue.Empty:
            raise ServerError(
                f"the server at {self._url} stalls: nothing came for {timeout_s:g} s",
                hint="Wait longer with --stall-timeout.",
            ) from None
        if error is not None:
            raise self._failure(error)
        self._answered = True
        texts, counts = result.as_numpy("text_output"), result.as_numpy("num_output_tokens")
        return Chunk(
            text="" if texts is None else b"".join(texts.reshape(-1).tolist()).decode("utf-8", "replace"),
            token_count=0 if counts is None else int(counts.sum()),
            final=result.get_response().parameters["triton_final_response"].bool_param,
        )

    def _failure(self, error: Any) -> TrtbuildError:
        text = _reason(error)
        if _status(error) == "UNAVAILABLE" and not self._answered:
            return self._away(text)
        if _status(error) in _LOST:
            return ServerError(
                f"the server at {self._url} cut the answer off: {text}", hint="See the output of `trtbuild serve`."
            )
        if re.search(r"\brank \d+ died\b", text):
            return ServerError(
                f"the server could not finish the answer: {text}", hint="See the output of `trtbuild serve`."
            )
        if not self._answered:
            self._check()
        return RequestError(f"the server refused the request: {text}")

    def _away(self, text: str) -> ServerError:
        hint = "Start one with `trtbuild serve`, or pass --url HOST:PORT (gRPC)."
        return ServerError(f"no server at {self._url}: {text}", hint=hint)

    def close(self, *, cancel: bool) -> None:
        """End the stream; with `cancel` also the request on the server. Never waits for a server that hangs."""
        closing = threading.Thread(target=self._close, args=(cancel,), daemon=True)
        closing.start()
        closing.join(2.0)

    def _close(self, cancel: bool) -> None:
        if self._streaming:
            self._client.stop_stream(cancel_requests=cancel)
        self._client.close()


def _status(error: Any) -> str:
    return str(error.status() or "").rpartition(".")[2]


def _reason(error: Any) -> str:
    """The one telling sentence of tritonclient's and gRPC's errors."""
    text = str(error.message() or error)
    return text.strip().splitlines()[0][:600] if text.strip() else "no reason given"
