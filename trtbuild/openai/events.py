"""Answers as server-sent events."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import Any

from fastapi.responses import StreamingResponse

DONE = b"data: [DONE]\n\n"
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(StreamingResponse):
    """Events as they come, until the client leaves; it is watched from the start.

    The status goes out with the first event: what fails before it is answered as every other failure.
    """

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._events = events

    async def __call__(self, _scope: Any, receive: _Receive, send: _Send) -> None:
        work, left, begun = asyncio.current_task(), False, False

        async def watch() -> None:
            nonlocal left
            await disconnected(receive)
            left = True
            if work is not None:
                work.cancel()

        watching = asyncio.create_task(watch())
        try:
            async with aclosing(self._events) as events:
                async for data in events:
                    if not begun:
                        await send(_start(self.status_code, self.raw_headers))
                        begun = True
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except asyncio.CancelledError:
            if not left:
                raise
            if sys.version_info >= (3, 11) and work is not None:
                work.uncancel()
            if not begun:  # nobody reads it; the status is for the counts
                await send(_start(499, []))
                await send({"type": "http.response.body", "body": b""})
        finally:
            watching.cancel()


async def disconnected(receive: _Receive) -> None:
    """Returns when the client is gone; the body was read already."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(status: int, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}
