"""The blocking client: any number of streams, also of several threads, over one connection a server."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from types import TracebackType
from typing import Any

from trtbuild.client import calls
from trtbuild.client.answers import Chunk, Completion, chunk_of, completed, model_before, room_of, within
from trtbuild.client.base import Connections
from trtbuild.client.build import channel, config_text, infer_request, metadata, stop_request
from trtbuild.client.failures import Failed, Failure, failure, question_failure
from trtbuild.client.forms import ASSUMED, Form, form_of
from trtbuild.client.options import Reach
from trtbuild.client.patience import Patience
from trtbuild.client.payload import Generation
from trtbuild.client.reading import reading_of
from trtbuild.errors import RequestError, ServerError, TrtbuildError


class Client(Connections):
    """Servers of one repository, reached over gRPC. Use it as `with`, or `close` it. Threads may share it.

    `url`: HOST:PORT, or several that serve the same and are asked in turn. All methods raise ServerError (no server, it
    stalls, or cuts off) and RequestError (it refuses).
    """

    def __init__(self, url: str | Sequence[str], *, model: str = "ensemble", reach: Reach | None = None) -> None:
        super().__init__(url, model=model, reach=reach)
        self._lock = threading.Lock()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all streams and connections."""
        with self._lock:
            connections = self._take_channels()
        for connection in connections:
            connection.close()

    def stream(
        self,
        generation: Generation,
        *,
        model: str | None = None,
        request_id: str | None = None,
        deadline_s: float | None = None,
        stall_s: float | None = None,
    ) -> Generator[Chunk, None, None]:
        """Yield chunks until the server says that the answer is complete; the last one has `final`.

        Nothing of a stop string is given out, and the request ends with it. `deadline_s`: for the whole answer.
        `stall_s`: for the longest pause. Leaving the loop early, or closing the iterator, cancels the request on the
        server.
        """
        key, name = request_id or uuid.uuid4().hex, model or self._model
        form = self._forms.get(name) or self._form(name)
        request, reading = infer_request(generation, name, key, form), reading_of(generation, form)
        attempt = 0
        while True:
            url = self._endpoints.pick(time.monotonic())
            answered = False
            try:
                with closing(self._once(url, request, key, deadline_s, stall_s)) as chunks:
                    for chunk in chunks:
                        answered = True
                        if reading is None:
                            yield chunk
                            continue
                        yield from reading.take(chunk)
                        if reading.ended:
                            return
                return
            except Failed as failed:
                attempt += 1
                if not self._again(url, failed.failure, attempt, answered=answered):
                    self._forms.pop(name, None)  # another server may be there by now, with other models
                    raise failed.failure.error from failed.__cause__

    def infer(
        self,
        generation: Generation,
        *,
        model: str | None = None,
        request_id: str | None = None,
        deadline_s: float | None = None,
    ) -> Completion:
        """The whole answer at once."""
        counted = replace(generation, count_prompt=True)
        stream = self.stream(counted, model=model, request_id=request_id, deadline_s=deadline_s)
        answer = completed(stream, generation.max_tokens)
        return answer if answer.finish_reason == "length" else within(answer, self.room(model))

    def room(self, model: str | None = None) -> int | None:
        """Tokens that a prompt and its answer can have together; None where the repository does not say."""
        name, now = model or self._model, time.monotonic()
        if (known := self._known_room(name, now)) is None:
            try:
                config = self.config(name)
                room = room_of(config)
                if room is None and (before := model_before(config)):
                    room = room_of(self.config(before))
            except TrtbuildError:
                room = None  # an answer that is there is worth more than how it ended
            known = (room,)
            self._rooms[name] = now, room
        return known[0]

    def stop(self, request_id: str, *, model: str = "tensorrt_llm") -> None:
        """Stop a request of any client by the id that it gave, at every address; one that is unknown is no error.

        Its stream ends as if it were complete. `model`: that of the engine, or of a llmapi repository. `cancel` is for
        the streams of this client.
        """
        request = stop_request(model, request_id, self._forms.get(model) or self._form(model))
        lost: Failed | None = None
        for url in self._endpoints.urls:
            try:
                for _ in self._once(url, request, uuid.uuid4().hex, None, None):
                    pass
            except Failed as failed:
                lost = lost or failed  # it may run at one of the others
        if lost is not None:
            raise lost.failure.error from lost.__cause__

    def live(self) -> bool:
        return bool(self._ask(calls.live()))

    def ready(self) -> bool:
        return bool(self._ask(calls.ready()))

    def model_ready(self, name: str | None = None) -> bool:
        return bool(self._ask(calls.model_ready(name or self._model)))

    def metadata(self, name: str = "") -> dict[str, Any]:
        """Of the server, or of a model."""
        return dict(self._ask(calls.metadata(name)))

    def config(self, name: str | None = None) -> dict[str, Any]:
        return dict(self._ask(calls.config(name or self._model)))

    def statistics(self, name: str = "") -> list[dict[str, Any]]:
        """Of one model, or of all."""
        return list(self._ask(calls.statistics(name)))

    def index(self) -> list[dict[str, Any]]:
        """The models of the repository, and their states."""
        return list(self._ask(calls.index()))

    def load(self, name: str, config: dict[str, Any] | None = None) -> None:
        """Load a model, with another configuration than config.pbtxt's if given, which holds until it is unloaded.

        Explicit model control only.
        """
        self._ask(calls.load(name, config_text(config)))
        self._forms.pop(name, None)

    def unload(self, name: str) -> None:
        self._ask(calls.unload(name))
        self._forms.pop(name, None)

    def _form(self, name: str) -> Form:
        """What the model takes: asked once, so that only the first request to it waits for that."""
        try:
            form = form_of(self._ask(calls.config(name)))
        except RequestError:  # a server may forbid the question, and not the request
            form = ASSUMED
        self._forms[name] = form
        return form

    def _stub(self, url: str) -> Any:
        with self._lock:
            if url not in self._channels:
                import grpc
                from tritonclient.grpc import service_pb2_grpc

                connection = channel(grpc, url, self._reach)
                self._channels[url] = connection, service_pb2_grpc.GRPCInferenceServiceStub(connection)
            return self._channels[url][1]

    def _ask(self, call: calls.Call, *, url: str = "") -> Any:
        import grpc

        attempt = 0
        options = {"metadata": metadata(self._reach), "timeout": self._reach.timeout_s if call.repeatable else None}
        while True:
            asked = url or self._endpoints.pick(time.monotonic())
            try:
                return call.read(getattr(self._stub(asked), call.method)(call.request, **options))
            except grpc.RpcError as error:
                judged = question_failure(error, asked, call.repeatable)
                attempt += 1
                if not self._again(asked, judged, attempt, answered=False):
                    raise judged.error from error

    def _again(self, url: str, judged: Failure, attempt: int, *, answered: bool) -> bool:
        """Wait before the next attempt; False where there is none."""
        pause_s = self._pause_s(url, judged, attempt, time.monotonic(), answered=answered)
        if pause_s is not None:
            time.sleep(pause_s)
        return pause_s is not None

    def _once(
        self, url: str, request: Any, key: str, deadline_s: float | None, stall_s: float | None
    ) -> Generator[Chunk, None, None]:
        """One attempt at a generation."""
        import grpc

        call = self._stub(url).ModelStreamInfer(iter((request,)), metadata=metadata(self._reach))
        self._streams[key] = call
        patience = Patience(url, time.monotonic(), self._reach.timeout_s, stall_s or self._reach.stall_s, deadline_s)
        watch = _Watch(call, patience, lambda: self._ask(calls.model_ready(request.model_name), url=url))
        final = answered = False
        try:
            for response in call:
                patience.seen(time.monotonic())
                if response.error_message:
                    raise Failed(failure("", response.error_message, url, answered=answered))
                answered = True
                chunk = chunk_of(response.infer_response)
                final = chunk.final
                yield chunk
                if final:
                    return
            raise Failed(failure("CANCELLED", "it ended without the final response", url, answered=True))
        except grpc.RpcError as error:
            if watch.reason is not None:
                raise Failed(Failure(watch.reason)) from None
            if key not in self._streams:
                raise Failed(Failure(RequestError(f"the request {key} was cancelled"))) from None
            raise Failed(failure(call.code().name, call.details() or "", url, answered=answered)) from error
        finally:
            watch.stop()
            self._streams.pop(key, None)
            if not final:
                call.cancel()


class _Watch:
    """Ends a call that is too late, from a thread that sleeps nearly always."""

    def __init__(self, call: Any, patience: Patience, alive: Callable[[], Any]) -> None:
        self._call, self._patience, self._alive = call, patience, alive
        self.reason: TrtbuildError | None = None
        self._done = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="trtbuild-watch").start()

    def stop(self) -> None:
        self._done.set()

    def _run(self) -> None:
        while not self._done.wait(self._patience.wait_s(time.monotonic())):
            now = time.monotonic()
            reason: TrtbuildError | None = self._patience.late(now)
            if reason is None and self._patience.unsure(now):
                try:
                    self._alive()
                except ServerError as error:
                    reason = error
            if reason is not None and not self._done.is_set():
                self.reason = reason
                self._call.cancel()
                return
