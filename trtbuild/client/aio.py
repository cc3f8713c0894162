"""The asyncio client: any number of streams over one connection a server."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Any

from trtbuild.client import calls
from trtbuild.client.answers import Chunk, Completion, chunk_of, completed, model_before, room_of, within
from trtbuild.client.base import Connections
from trtbuild.client.build import channel, config_text, infer_request, metadata, stop_request
from trtbuild.client.failures import Failed, Failure, failure, question_failure
from trtbuild.client.forms import ASSUMED, Form, form_of
from trtbuild.client.patience import Patience
from trtbuild.client.payload import Generation
from trtbuild.client.reading import reading_of
from trtbuild.errors import RequestError, ServerError, TrtbuildError


class AsyncClient(Connections):
    """Servers of one repository, reached over gRPC. Use it as `async with`, or `close` it.

    `url`: HOST:PORT, or several that serve the same and are asked in turn. All methods raise ServerError (no server, it
    stalls, or cuts off) and RequestError (it refuses).
    """

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """End all streams and connections."""
        for connection in self._take_channels():
            await connection.close()

    async def stream(
        self,
        generation: Generation,
        *,
        model: str | None = None,
        request_id: str | None = None,
        deadline_s: float | None = None,
        stall_s: float | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """Yield chunks until the server says that the answer is complete; the last one has `final`.

        Nothing of a stop string is given out, and the request ends with it. `deadline_s`: for the whole answer.
        `stall_s`: for the longest pause. Leaving the loop early cancels the request on the server
        once the iterator is closed (`contextlib.aclosing`).
        """
        key, name = request_id or uuid.uuid4().hex, model or self._model
        form = self._forms.get(name) or await self._form(name)
        request, reading = infer_request(generation, name, key, form), reading_of(generation, form)
        attempt = 0
        while True:
            url = self._endpoints.pick(asyncio.get_running_loop().time())
            answered = False
            try:
                async with aclosing(self._once(url, request, key, deadline_s, stall_s)) as chunks:
                    async for chunk in chunks:
                        answered = True
                        if reading is None:
                            yield chunk
                            continue
                        for piece in reading.take(chunk):
                            yield piece
                        if reading.ended:
                            return
                return
            except Failed as failed:
                attempt += 1
                if not await self._again(url, failed.failure, attempt, answered=answered):
                    self._forms.pop(name, None)  # another server may be there by now, with other models
                    raise failed.failure.error from failed.__cause__

    async def infer(
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
        answer = completed([chunk async for chunk in stream], generation.max_tokens)
        return answer if answer.finish_reason == "length" else within(answer, await self.room(model))

    async def room(self, model: str | None = None) -> int | None:
        """Tokens that a prompt and its answer can have together; None where the repository does not say."""
        name, now = model or self._model, asyncio.get_running_loop().time()
        if (known := self._known_room(name, now)) is None:
            try:
                config = await self.config(name)
                room = room_of(config)
                if room is None and (before := model_before(config)):
                    room = room_of(await self.config(before))
            except TrtbuildError:
                room = None  # an answer that is there is worth more than how it ended
            known = (room,)
            self._rooms[name] = now, room
        return known[0]

    async def stop(self, request_id: str, *, model: str = "tensorrt_llm") -> None:
        """Stop a request of any client by the id that it gave, at every address; one that is unknown is no error.

        Its stream ends as if it were complete. `model`: that of the engine, or of a llmapi repository. `cancel` is for
        the streams of this client.
        """
        request = stop_request(model, request_id, self._forms.get(model) or await self._form(model))
        lost: Failed | None = None
        for url in self._endpoints.urls:
            try:
                async for _ in self._once(url, request, uuid.uuid4().hex, None, None):
                    pass
            except Failed as failed:
                lost = lost or failed  # it may run at one of the others
        if lost is not None:
            raise lost.failure.error from lost.__cause__

    async def live(self) -> bool:
        return bool(await self._ask(calls.live()))

    async def ready(self) -> bool:
        return bool(await self._ask(calls.ready()))

    async def model_ready(self, name: str | None = None) -> bool:
        return bool(await self._ask(calls.model_ready(name or self._model)))

    async def metadata(self, name: str = "") -> dict[str, Any]:
        """Of the server, or of a model."""
        return dict(await self._ask(calls.metadata(name)))

    async def config(self, name: str | None = None) -> dict[str, Any]:
        return dict(await self._ask(calls.config(name or self._model)))

    async def statistics(self, name: str = "") -> list[dict[str, Any]]:
        """Of one model, or of all."""
        return list(await self._ask(calls.statistics(name)))

    async def index(self) -> list[dict[str, Any]]:
        """The models of the repository, and their states."""
        return list(await self._ask(calls.index()))

    async def load(self, name: str, config: dict[str, Any] | None = None) -> None:
        """Load a model, with another configuration than config.pbtxt's if given, which holds until it is unloaded.

        Explicit model control only.
        """
        await self._ask(calls.load(name, config_text(config)))
        self._forms.pop(name, None)

    async def unload(self, name: str) -> None:
        await self._ask(calls.unload(name))
        self._forms.pop(name, None)

    async def _form(self, name: str) -> Form:
        """What the model takes: asked once, so that only the first request to it waits for that."""
        try:
            form = form_of(await self._ask(calls.config(name)))
        except RequestError:  # a server may forbid the question, and not the request
            form = ASSUMED
        self._forms[name] = form
        return form

    def _stub(self, url: str) -> Any:
        if url not in self._channels:
            import grpc.aio
            from tritonclient.grpc import service_pb2_grpc

            connection = channel(grpc.aio, url, self._reach)
            self._channels[url] = connection, service_pb2_grpc.GRPCInferenceServiceStub(connection)
        return self._channels[url][1]

    async def _ask(self, call: calls.Call, *, url: str = "") -> Any:
        from grpc.aio import AioRpcError

        attempt = 0
        options = {"metadata": metadata(self._reach), "timeout": self._reach.timeout_s if call.repeatable else None}
        while True:
            asked = url or self._endpoints.pick(asyncio.get_running_loop().time())
            try:
                return call.read(await getattr(self._stub(asked), call.method)(call.request, **options))
            except AioRpcError as error:
                judged = question_failure(error, asked, call.repeatable)
                attempt += 1
                if not await self._again(asked, judged, attempt, answered=False):
                    raise judged.error from error

    async def _again(self, url: str, judged: Failure, attempt: int, *, answered: bool) -> bool:
        """Wait before the next attempt; False where there is none."""
        pause_s = self._pause_s(url, judged, attempt, asyncio.get_running_loop().time(), answered=answered)
        if pause_s is not None:
            await asyncio.sleep(pause_s)
        return pause_s is not None

    async def _once(
        self, url: str, request: Any, key: str, deadline_s: float | None, stall_s: float | None
    ) -> AsyncGenerator[Chunk, None]:
        """One attempt at a generation."""
        from grpc.aio import AioRpcError

        call = self._stub(url).ModelStreamInfer(_one(request), metadata=metadata(self._reach))
        self._streams[key] = call
        now = asyncio.get_running_loop().time()
        patience = Patience(url, now, self._reach.timeout_s, stall_s or self._reach.stall_s, deadline_s)
        watch = _Watch(call, patience, lambda: self._ask(calls.model_ready(request.model_name), url=url))
        final = answered = False
        try:
            async for response in call:  # cheaper than its read()
                watch.seen()
                if response.error_message:
                    raise Failed(failure("", response.error_message, url, answered=answered))
                answered = True
                chunk = chunk_of(response.infer_response)
                final = chunk.final
                yield chunk
                if final:
                    return
            raise Failed(failure("CANCELLED", "it ended without the final response", url, answered=True))
        except AioRpcError as error:
            judged = failure(error.code().name, error.details() or "", url, answered=answered)
            raise Failed(judged) from error
        except asyncio.CancelledError:
            if watch.reason is not None:
                raise Failed(Failure(watch.reason)) from None
            if key in self._streams:
                raise  # the task was cancelled, not the request
            raise Failed(Failure(RequestError(f"the request {key} was cancelled"))) from None
        finally:
            watch.stop()
            self._streams.pop(key, None)
            if not final:
                call.cancel()


class _Watch:
    """Ends a call that is too late. One timer for a stream: a time-out for each token costs more than the token."""

    def __init__(self, call: Any, patience: Patience, alive: Callable[[], Awaitable[Any]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._call, self._alive = call, alive
        self.patience = patience
        self.reason: TrtbuildError | None = None
        self._asking: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(patience.wait_s(self._loop.time()), self._look)

    def seen(self) -> None:
        self.patience.seen(self._loop.time())

    def stop(self) -> None:
        self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        if self.patience.unsure(now):
            self._asking = self._loop.create_task(self._ask())
        self.reason = self.reason or self.patience.late(now)
        if self.reason is not None:
            self._call.cancel()
            return
        self._timer = self._loop.call_later(self.patience.wait_s(now), self._look)

    async def _ask(self) -> None:
        try:
            await self._alive()
        except ServerError as error:
            self.reason = error
            self._call.cancel()


async def _one(request: Any) -> AsyncIterator[Any]:
    yield request
