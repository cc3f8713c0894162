"""What a failed call means: gRPC's status and the server's words -> one of our errors; may it be tried again? Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from trtbuild.errors import RequestError, ServerError, TrtbuildError

LOST = ("UNAVAILABLE", "CANCELLED", "ABORTED", "DATA_LOSS")
"""gRPC's own statuses for a connection that broke; what the server refuses comes as a message without a status."""
_NOT_SENT = ("failed to connect", "connection refused", "name resolution", "dns resolution", "no route to host")
_FORBIDDEN = ("is not allowed", "protocol is restricted")
"""Triton gives them the status of a server that is away."""
_ENDING = (
    "takes no new requests",  # trtbuild serve, while it drains
    "has stopped accepting new",  # of Triton's core the schedulers, and its gRPC frontend, once it stops
    "server exiting",
    "server not ready",
    "is not at ready state",  # a model that is being unloaded, or loaded
    "has no available versions",
)
"""Sources: triton-inference-server/core server.cc, dynamic_batch_scheduler.cc, model_lifecycle.cc; server grpc/."""
_FULL = ("maximum queue size", "exceeds maximum queue", "request timeout expired")


@dataclass(frozen=True)
class Failure:
    """One failure. `safe`: the server did certainly not begin with the request, so that it may be sent again."""

    error: TrtbuildError
    safe: bool = False


class Failed(Exception):
    """An attempt at a generation failed as `failure` says; whoever made it decides on another one."""

    def __init__(self, judged: Failure) -> None:
        super().__init__(judged.error.message)
        self.failure = judged


def failure(status: str, text: str, url: str, *, answered: bool) -> Failure:
    """Judge a failure; `status`: gRPC's name such as UNAVAILABLE, or empty; `answered`: a response came before."""
    said = first_line(text)
    if any(words in said for words in _FORBIDDEN):
        return Failure(RequestError(f"the server refused the request: {said}"))
    ending = any(words in said.lower() for words in _ENDING)
    if "Request for unknown model" in said:
        error = ServerError(f"the server at {url} has no such model ready: {said}", hint="See its log, and --model.")
        return Failure(error, ending and not answered)
    if ending:
        hint = "It was asked to end; ask another one, or wait for the next."
        return Failure(ServerError(f"the server at {url} is ending: {said}", hint=hint), not answered)
    if status == "UNAVAILABLE" and not answered:
        return Failure(away(url, said), any(words in said.lower() for words in _NOT_SENT))
    if status == "DEADLINE_EXCEEDED":
        hint = "It hangs, or something else listens there."
        return Failure(ServerError(f"the server at {url} does not answer in time: {said}", hint=hint))
    if status in LOST:
        hint = "See the output of `trtbuild serve`."
        return Failure(ServerError(f"the server at {url} cut the answer off: {said}", hint=hint))
    if re.search(r"\brank \d+ died\b", said):
        hint = "See the output of `trtbuild serve`."
        return Failure(ServerError(f"the server could not finish the answer: {said}", hint=hint))
    if any(words in said.lower() for words in _FULL):
        return Failure(ServerError(f"the server at {url} is full: {said}", hint="Try again later."), not answered)
    return Failure(RequestError(f"the server refused the request: {said}"))


def question_failure(error: Any, url: str, repeatable: bool) -> Failure:
    """The same of a small question; `error`: gRPC's, with code() and details()."""
    status = str(error.code().name)
    judged = failure(status, error.details() or "", url, answered=False)
    is_away = isinstance(judged.error, ServerError) and status == "UNAVAILABLE"  # what is forbidden has that status too
    return Failure(judged.error, judged.safe or (repeatable and is_away))


def away(url: str, said: str) -> ServerError:
    hint = "Start one with `trtbuild serve`, or pass --url HOST:PORT (gRPC)."
    return ServerError(f"no server at {url}: {said}", hint=hint)


def stalls(url: str, seconds: float) -> ServerError:
    return ServerError(
        f"the server at {url} stalls: nothing came for {seconds:g} s", hint="Wait longer with --stall-timeout."
    )


def too_late(url: str, seconds: float) -> ServerError:
    return ServerError(f"the answer of {url} was not complete within {seconds:g} s", hint="Give it a longer deadline.")


def first_line(text: str) -> str:
    """The one telling sentence of tritonclient's and gRPC's errors."""
    return text.strip().splitlines()[0][:600] if text.strip() else "no reason given"
