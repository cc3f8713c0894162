"""The routes: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from trtbuild import __version__
from trtbuild.client import AsyncClient
from trtbuild.errors import TrtbuildError
from trtbuild.openai.answers import Choice, Frame, Piece, Usage
from trtbuild.openai.errors import ApiError, api_error, of_validation
from trtbuild.openai.events import DONE, EventStream, disconnected, event
from trtbuild.openai.gate import Gate, Metrics
from trtbuild.openai.options import OpenAiOptions
from trtbuild.openai.schema import ChatRequest, CompletionRequest
from trtbuild.openai.service import Service

_FAILURE = {"description": "an error by OpenAI's form", "content": {"application/json": {}}}
RESPONSES: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 404, 413, 429, 503), _FAILURE)


def make_app(options: OpenAiOptions) -> Any:
    """The ASGI application; it connects to Triton with its first request.

    Raises:
        EngineError: a tokenizer folder has no chat template that can be read.
    """
    reach = replace(options.reach, stall_s=options.stall_s)
    client = AsyncClient(options.url.split(","), reach=reach)
    metrics = Metrics()
    service = Service(options, client)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await client.close()

    app = FastAPI(title="trtbuild", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    _error_handlers(app)
    _routes(app, Routes(service, metrics))
    return Gate(app, options, metrics)


class Routes:
    """What the routes do."""

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self.service, self.metrics = service, metrics

    async def complete(self, body: ChatRequest | CompletionRequest, request: Request) -> Response:
        served = self.service.served(body.model)
        generations = self.service.generations(served, body)
        chat = isinstance(body, ChatRequest)
        key = uuid.uuid4().hex
        frame = Frame(
            f"chatcmpl-{key}" if chat else f"cmpl-{key}",
            int(time.time()),
            served.name,
            chat,
            generations[0].log_probs,
            not chat and body.logprobs == 1,
        )
        pieces = self.service.pieces(served, generations, key)
        if body.stream:
            return EventStream(self._events(frame, body, pieces))
        return await self._unless_gone(request, self._whole(frame, body, len(generations), pieces))

    async def _unless_gone(self, request: Request, work: Coroutine[Any, Any, dict[str, Any]]) -> Response:
        """The answer; when the client goes away before it is there, the generations end."""
        task, gone = asyncio.create_task(work), asyncio.create_task(disconnected(request.receive))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return JSONResponse(task.result())
            self.metrics.cancelled.inc()
            return Response(status_code=499)  # nobody reads it; the status is for the counts
        finally:
            for each in (task, gone):
                each.cancel()
            await asyncio.wait({task, gone})

    async def _whole(
        self, frame: Frame, body: ChatRequest | CompletionRequest, count: int, pieces: AsyncGenerator[Piece, None]
    ) -> dict[str, Any]:
        usage = Usage()
        choices = [Choice(index) for index in range(count)]
        async with aclosing(pieces):
            async for piece in pieces:
                choices[piece.index].pieces.append(piece)
                usage.count(piece, piece.index // body.n)
        self._count(usage)
        answer = frame.whole(choices, usage.document())
        if isinstance(body, CompletionRequest) and body.echo:
            for entry in answer["choices"]:
                entry["text"] = body.prompts[entry["index"] // body.n] + entry["text"]
        return answer

    async def _events(
        self, frame: Frame, body: ChatRequest | CompletionRequest, pieces: AsyncGenerator[Piece, None]
    ) -> AsyncGenerator[bytes, None]:
        usage, seen, start = Usage(), set[int](), time.perf_counter()
        echoed = body.prompts if isinstance(body, CompletionRequest) and body.echo else None
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    usage.count(piece, piece.index // body.n)
                    if not seen:
                        self.metrics.first_token.observe(time.perf_counter() - start)
                    first = piece.index not in seen
                    seen.add(piece.index)
                    if echoed and first:
                        piece = replace(piece, text=echoed[piece.index // body.n] + piece.text)
                    yield event(frame.chunk(piece, first=first))
            if body.stream_options is not None and body.stream_options.include_usage:
                yield event(frame.usage_chunk(usage.document()))
            yield DONE
        except (GeneratorExit, asyncio.CancelledError):
            self.metrics.cancelled.inc()
            raise
        except TrtbuildError as error:
            if not seen:
                raise
            yield event(api_error(error).document())
        finally:
            self._count(usage)

    def _count(self, usage: Usage) -> None:
        counted = usage.document()
        self.metrics.prompt_tokens.inc(counted["prompt_tokens"])
        self.metrics.completion_tokens.inc(counted["completion_tokens"])

    def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self.model(name) for name in self.service.models]}

    def model(self, name: str) -> dict[str, Any]:
        return {"id": self.service.served(name).name, "object": "model", "created": 0, "owned_by": "trtbuild"}

    async def health(self) -> dict[str, Any]:
        """Not only that Triton is there: each model generates one token."""
        return {"status": "ok", "tokens": await self.service.tokens_of_all()}


def _routes(app: FastAPI, routes: Routes) -> None:
    @app.post("/v1/chat/completions", responses=RESPONSES)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await routes.complete(body, request)

    @app.post("/v1/completions", responses=RESPONSES)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await routes.complete(body, request)

    @app.get("/v1/models", responses=RESPONSES)
    async def models() -> dict[str, Any]:
        return routes.models()

    @app.get("/v1/models/{name:path}", responses=RESPONSES)
    async def model(name: str) -> dict[str, Any]:
        return routes.model(name)

    @app.get("/health", responses={503: _FAILURE})
    async def health() -> dict[str, Any]:
        return await routes.health()

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(routes.metrics.page(), media_type="text/plain; version=0.0.4")


def _error_handlers(app: FastAPI) -> None:
    def answer(error: ApiError) -> JSONResponse:
        return JSONResponse(error.document(), status_code=error.status)

    @app.exception_handler(ApiError)
    async def of_ours(_request: Request, error: ApiError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(TrtbuildError)
    async def of_triton(_request: Request, error: TrtbuildError) -> JSONResponse:
        return answer(api_error(error))

    @app.exception_handler(RequestValidationError)
    async def of_body(_request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(of_validation(list(error.errors())))

    @app.exception_handler(HTTPException)
    async def of_http(_request: Request, error: HTTPException) -> JSONResponse:
        response = answer(ApiError(error.status_code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response
