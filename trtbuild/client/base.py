"""What both clients are: servers, connections, streams, and when another attempt is due."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trtbuild.client.failures import Failure
from trtbuild.client.forms import Form
from trtbuild.client.options import Endpoints, Reach
from trtbuild.errors import ServerError

_ROOM_S = 60.0
"""How long max_seq_len of a model is taken for known: another server may come under the same address."""


class Connections:
    """`url`: HOST:PORT, or several that serve the same repository and are asked in turn; `model`: the one asked for."""

    def __init__(self, url: str | Sequence[str], *, model: str = "ensemble", reach: Reach | None = None) -> None:
        self._endpoints = Endpoints([url] if isinstance(url, str) else list(url))
        self._model = model
        self._reach = reach or Reach()
        self._channels: dict[str, tuple[Any, Any]] = {}  # url -> channel, stub
        self._streams: dict[str, Any] = {}  # request id -> gRPC call
        self._forms: dict[str, Form] = {}  # name of a model -> its tensors, read once
        self._rooms: dict[str, tuple[float, int | None]] = {}  # model -> when it was asked for, and how much there is

    def cancel(self, request_id: str) -> bool:
        """Cancel a stream of this client; False where there is none of that id."""
        call = self._streams.pop(request_id, None)
        return bool(call is not None and call.cancel())

    def _take_channels(self) -> list[Any]:
        """All connections, to be closed; their streams are cancelled."""
        for key in list(self._streams):
            self.cancel(key)
        channels, self._channels = list(self._channels.values()), {}
        return [connection for connection, _ in channels]

    def _known_room(self, model: str, now: float) -> tuple[int | None] | None:
        """What was heard of a model's room lately."""
        known = self._rooms.get(model)
        return None if known is None or now - known[0] > _ROOM_S else known[1:]

    def _pause_s(self, url: str, judged: Failure, attempt: int, now: float, *, answered: bool) -> float | None:
        """Seconds to wait before attempt `attempt` + 1; None where there is none. Notes a server that is away."""
        if isinstance(judged.error, ServerError) and not answered:
            self._endpoints.failed(url, now)
        if answered or not judged.safe or attempt > self._reach.retry.times:
            return None
        return self._reach.retry.pause_s(attempt)
