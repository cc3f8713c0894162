"""Addresses on the command line -> endpoints. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trtbuild.errors import BenchError

TRITON, OPENAI = "triton", "openai"
_KINDS = {"grpc": TRITON, "http": OPENAI, "https": OPENAI}
_PORTS = {"http": 80, "https": 443}
_URL = re.compile(
    r"(?P<scheme>grpc|https?)://(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/?#\[\]@]+)(?::(?P<port>\d{1,5}))?"
    r"(?P<path>/[^\s#?]*)?(?:#(?P<model>\S+))?"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]*")


@dataclass(frozen=True)
class Endpoint:
    """`kind`: triton (gRPC) or openai. `address`: HOST:PORT for Triton, else the URL that ends in /v1 (a path that
    is missing is that one).

    `model`: its name there; empty means `ensemble` for Triton, and the first of /v1/models for OpenAI.
    """

    name: str
    kind: str
    address: str
    model: str = ""

    host: str = ""
    port: int = 0


def endpoints(texts: Sequence[str], model: str = "") -> list[Endpoint]:
    """Endpoints of `[NAME=]URL[#MODEL]`: grpc://HOST:PORT, or http(s)://HOST[:PORT]/v1. `model`: where none is named.

    Raises:
        BenchError: all texts that are no endpoint, and names that occur twice.
    """
    found: list[Endpoint] = []
    problems: list[str] = []
    for text in texts:
        name, url = _parts(text)
        parts = _URL.fullmatch(url)
        if parts is None:
            problems.append(f"{text!r} is no endpoint: [NAME=]grpc://HOST:PORT or [NAME=]http(s)://HOST[:PORT]/v1")
            continue
        kind, port = _KINDS[parts["scheme"]], int(parts["port"] or _PORTS.get(parts["scheme"], 0))
        if not 0 < port < 65536:
            problems.append(f"{text!r} names no port (Triton's gRPC port is 8001 by default)")
            continue
        authority = parts["host"] + (f":{parts['port']}" if parts["port"] else "")
        address = (
            authority
            if kind == TRITON
            else f"{parts['scheme']}://{authority}{(parts['path'] or '').rstrip('/') or '/v1'}"
        )
        name = name or f"{kind} {authority}".replace(":", ".")
        if not _NAME.fullmatch(name):
            problems.append(f"{name!r} is no name for an endpoint: letters, digits, space and . _ + -")
            continue
        found.append(Endpoint(name, kind, address, parts["model"] or model, parts["host"].strip("[]"), port))
    names = [endpoint.name for endpoint in found]
    problems += [f"two endpoints are named {name!r}" for name in sorted(set(names)) if names.count(name) > 1]
    if problems:
        raise BenchError(problems)
    return found


def _parts(text: str) -> tuple[str, str]:
    """Name and URL; a `=` inside of the URL is none of a name."""
    head, equals, tail = text.partition("=")
    return (head.strip(), tail.strip()) if equals and "://" not in head else ("", text.strip())
