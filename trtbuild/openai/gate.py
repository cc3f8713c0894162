"""What stands before the routes: API keys, the size of bodies, requests at once, and the counts of all this."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from trtbuild.openai.errors import ApiError
from trtbuild.openai.options import OpenAiOptions

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
_OPEN = ("/health", "/metrics")
_LIMITED = ("/v1/chat/completions", "/v1/completions")


class Metrics:
    """Counts for Prometheus, in a registry of their own."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        labels = ("route", "status")
        self.requests = Counter("trtbuild_openai_requests", "Answers by route and status", labels, registry=own)
        self.in_flight = Gauge(
            "trtbuild_openai_requests_in_flight", "Completions that are being answered", registry=own
        )
        self.prompt_tokens = Counter("trtbuild_openai_prompt_tokens", "Tokens of prompts", registry=own)
        self.completion_tokens = Counter("trtbuild_openai_completion_tokens", "Tokens generated", registry=own)
        self.cancelled = Counter("trtbuild_openai_cancelled", "Completions whose client went away", registry=own)
        self.first_token = Histogram("trtbuild_openai_first_token_seconds", "Time to the first text", registry=own)

    def page(self) -> bytes:
        return bytes(generate_latest(self._registry))


class Gate:
    """ASGI middleware; it never reads more of a body than is allowed, and answers before the routes see anything."""

    def __init__(self, app: App, options: OpenAiOptions, metrics: Metrics) -> None:
        self._app, self._options, self._metrics = app, options, metrics
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        limited = scope["path"] in _LIMITED and scope["method"] == "POST"
        try:
            self._check(scope, limited)
        except ApiError as error:
            await _refuse(error, counted)
        else:
            self._running += limited
            self._metrics.in_flight.inc(int(limited))
            try:
                await self._app(scope, self._bounded(receive), counted)
            finally:
                self._running -= limited
                self._metrics.in_flight.dec(int(limited))
        route = scope["path"] if scope["path"] in (*_LIMITED, *_OPEN, "/v1/models") else "other"
        self._metrics.requests.labels(route, str(status)).inc()

    def _check(self, scope: Scope, limited: bool) -> None:
        headers = dict(scope["headers"])
        if self._options.api_keys and scope["path"] not in _OPEN:
            given = headers.get(b"authorization", b"").decode("latin-1").removeprefix("Bearer ").encode()
            if not any(secrets.compare_digest(given, key.encode()) for key in self._options.api_keys):
                raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._options.max_body_bytes:
            raise self._too_large()
        if limited and self._running >= self._options.max_concurrency:
            raise ApiError(429, f"{self._running} completions are running already; try again later", code="too_many")

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body may have {self._options.max_body_bytes} bytes", code="too_large")

    def _bounded(self, receive: Receive) -> Receive:
        """Bodies without a length are counted as they come."""
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._options.max_body_bytes:
                raise self._too_large()
            return message

        return bounded


async def _refuse(error: ApiError, send: Send) -> None:
    import json

    body = json.dumps(error.document()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"retry-after", b"1")] if error.status == 429 else []
    headers += [(b"www-authenticate", b"Bearer")] if error.status == 401 else []
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
