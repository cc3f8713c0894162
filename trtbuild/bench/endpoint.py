"""Addresses on the command line -> endpoints. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from trtbuild.errors import BenchError

TRITON, OPENAI = "triton", "openai"
_KINDS = {"grpc": TRITON, "http": OPENAI, "https": OPENAI}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]*")


@dataclass(frozen=True)
class Endpoint:
    """`kind`: triton (gRPC) or openai. `address`: HOST:PORT for Triton, else the URL that ends in /v1.

    `model`: its name there; empty means `ensemble` for Triton, and the first of /v1/models for OpenAI.
    """

    name: str
    kind: str
    address: str
    model: str = ""

    @property
    def host(self) -> str:
        return urlsplit(self._url).hostname or ""

    @property
    def port(self) -> int:
        parts = urlsplit(self._url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def _url(self) -> str:
        return self.address if "://" in self.address else f"grpc://{self.address}"


def endpoints(texts: Sequence[str], model: str = "") -> list[Endpoint]:
    """Endpoints of `[NAME=]URL[#MODEL]`: grpc://HOST:PORT, or http(s)://HOST[:PORT]/v1. `model`: where none is named.

    Raises:
        BenchError: all texts that are no endpoint, and names that occur twice.
    """
    found: list[Endpoint] = []
    problems: list[str] = []
    for text in texts:
        name, url, wanted = _parts(text)
        scheme = urlsplit(url).scheme
        if scheme not in _KINDS or not urlsplit(url).hostname or not _port_is_good(url):
            problems.append(f"{text!r} is no endpoint: [NAME=]grpc://HOST:PORT or [NAME=]http(s)://HOST[:PORT]/v1")
            continue
        kind = _KINDS[scheme]
        if kind == TRITON and urlsplit(url).port is None:
            problems.append(f"{text!r} names no port (Triton's gRPC port is 8001 by default)")
            continue
        address = urlsplit(url).netloc if kind == TRITON else url.rstrip("/")
        name = name or (f"{kind} {urlsplit(url).netloc}".replace(":", "."))
        if not _NAME.fullmatch(name):
            problems.append(f"{name!r} is no name for an endpoint: letters, digits, space and . _ + -")
            continue
        found.append(Endpoint(name, kind, address, wanted or model))
    names = [endpoint.name for endpoint in found]
    problems += [f"two endpoints are named {name!r}" for name in sorted(set(names)) if names.count(name) > 1]
    if problems:
        raise BenchError(problems)
    return found


def _parts(text: str) -> tuple[str, str, str]:
    """Name, URL, model; a `=` inside of the URL is none of a name."""
    head, equals, tail = text.partition("=")
    name, url = (head, tail) if equals and "://" not in head else ("", text)
    url, _, model = url.partition("#")
    return name.strip(), url.strip(), model.strip()


def _port_is_good(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False
