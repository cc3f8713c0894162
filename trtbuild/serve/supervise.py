"""A server as a service: started, restarted where the policy says so, drained when it is asked to end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from trtbuild.errors import OutputError, TrtbuildError
from trtbuild.serve.launch import Server
from trtbuild.serve.logs import put_aside
from trtbuild.serve.prepare import Prepared
from trtbuild.serve.watch import backoff_s

_STABLE_S = 600.0
"""A server that ran so long has made good for its earlier failures."""


@dataclass(frozen=True)
class Event:
    """What a person or a program is told while a server runs.

    `name`: starting, ready, failed, restarting, draining, drained, cut. `values` depend on it.
    """

    name: str
    text: str
    values: dict[str, Any]


Tell = Callable[[Event], None]


def run_server(prepared: Prepared, tell: Tell) -> None:
    """Serve until SIGTERM, which drains; a second one, or Ctrl-C at any time, ends at once by an exception.

    A server that never was ready is not started again: it would fail the same way.

    Raises:
        ToolError: the server or a rank died or hangs, and the policy allows no restart. OutputError: no logs.
    """
    failures, attempt, was_ready, keep_logs = 0, 0, False, False
    try:
        while True:
            attempt += 1
            began = time.monotonic()
            try:
                _serve(prepared, tell, attempt)
                return
            except _Failed as failed:
                error, was_ready = failed.error, was_ready or failed.was_ready
                if failed.was_ready and time.monotonic() - began >= _STABLE_S:
                    failures = 0
            failures += 1
            if not was_ready or failures > prepared.options.restarts or isinstance(error, OutputError):
                raise error
            pause = backoff_s(failures)
            values = {"error": error.message, "restart": failures, "of": prepared.options.restarts, "pause_s": pause}
            first = error.message.splitlines()[0]
            left = f"restart {failures} of {prepared.options.restarts} in {pause:g} s"
            tell(Event("restarting", f"{first}; {left}", values))
            time.sleep(pause)
            put_aside(prepared.log_dir)
    except TrtbuildError:
        keep_logs = True
        raise
    finally:
        prepared.forget(keep_logs=keep_logs)


class _Failed(Exception):
    """Not to be seen outside of this file."""

    def __init__(self, error: TrtbuildError, was_ready: bool) -> None:
        super().__init__(error.message)
        self.error, self.was_ready = error, was_ready


def _serve(prepared: Prepared, tell: Tell, attempt: int) -> None:
    """One attempt: returns after a drain."""
    options, ready = prepared.options, False
    tell(Event("starting", f"starting tritonserver; logs in {prepared.log_dir}", {"logs": str(prepared.log_dir)}))
    try:
        with Server(prepared) as server:
            server.wait_ready()
            ready = True
            addresses = {kind: f"{options.host}:{port}" for kind, port in options.ports.items()}
            text = "ready: " + ", ".join(f"{kind} {addresses[kind]}" for kind in ("grpc", "http", "metrics"))
            first = None if server.first_token_s is None else round(server.first_token_s, 3)
            tell(Event("ready", text, {"ready": True, **addresses, "first_token_s": first, "attempt": attempt}))
            with _terminated_once() as asked:
                server.supervise(lambda: bool(asked))
            tell(Event("draining", "no new requests; waiting for open ones", {"drain_s": options.drain_s}))
            left = server.drain()
            tell(_drained(left, options.drain_s))
            server.stop(grace_s=prepared.launch.exit_s + 2.0 if left == 0 else 0.0)
    except TrtbuildError as error:
        raise _Failed(error, ready) from error


def _drained(left: int | None, drain_s: float) -> Event:
    """`left` as `Server.drain` returns it."""
    values = {"requests": left}
    if left == 0:
        return Event("drained", "drained", values)
    if left is None:
        return Event(
            "cut", f"whatever was open was cut off after {drain_s:g} s: the server did not say what is", values
        )
    return Event("cut", f"{left} request(s) were cut off after {drain_s:g} s", values)


@contextmanager
def _terminated_once() -> Iterator[list[int]]:
    """While open, the first SIGTERM is noted in the list; those after it do what they did before."""
    asked: list[int] = []
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
