"""One generation over a connection of its own: what `trtbuild generate` and `chat` do."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace

from trtbuild.client.answers import Chunk
from trtbuild.client.options import Reach, Retry
from trtbuild.client.payload import Generation
from trtbuild.client.sync import Client


def generate_stream(
    url: str,
    generation: Generation,
    *,
    model: str = "ensemble",
    request_id: str | None = None,
    connect_timeout_s: float = 2.0,
    stall_timeout_s: float = 60.0,
    reach: Reach | None = None,
) -> Generator[Chunk, None, None]:
    """Yield chunks until the server says that the answer is complete; the last chunk has `final`.

    Leaving the loop early (or closing the iterator) cancels the request on the server. `url`: several are separated by
    commas. `reach`: TLS, headers, and its `timeout_s` instead of `connect_timeout_s`.

    Raises:
        RequestError: the server refuses this request. ServerError: it is away, not ready, stalls or cuts off.
    """
    urls = url.split(",")
    retry = Retry(times=len(urls) - 1)  # each of them once
    reach = replace(reach or Reach(timeout_s=connect_timeout_s), stall_s=stall_timeout_s, retry=retry)
    with (
        Client(urls, model=model, reach=reach) as client,
        closing(client.stream(generation, request_id=request_id)) as it,
    ):
        yield from it
