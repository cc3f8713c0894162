"""Failures as OpenAI's clients know them: a status, and {"error": {message, type, param, code}}. Pure."""

from __future__ import annotations

from typing import Any

from trtbuild.errors import RequestError, TrtbuildError

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 503: "server_error"}


class ApiError(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def document(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def api_error(error: TrtbuildError) -> ApiError:
    """What Triton refuses is the request's fault (400); a server that is away, full or stalls is not (503)."""
    if isinstance(error, RequestError):
        return ApiError(400, error.message)
    return ApiError(503, error.message, code="unavailable")


def of_validation(errors: list[Any]) -> ApiError:
    """The first fault of a body, and how many more there are."""
    first = errors[0]
    where = [str(part) for part in first.get("loc", ()) if part != "body"]
    said = str(first.get("msg", "")).removeprefix("Value error, ")
    more = f" ({len(errors) - 1} more faults)" if len(errors) > 1 else ""
    place = ".".join(where)
    return ApiError(400, f"{place}: {said}{more}" if place else f"{said}{more}", param=place or None)
