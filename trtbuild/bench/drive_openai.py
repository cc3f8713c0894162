"""EDGE: asks an OpenAI endpoint over HTTP with server-sent events; the counts of tokens are those of its `usage`.

What a server takes beyond OpenAI's own fields differs, so a first request finds it out: a field that ends in 400 or 422
is left out, one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trtbuild.bench.asking import Asking
from trtbuild.bench.clock import now_ns
from trtbuild.bench.drive import Probe
from trtbuild.bench.endpoint import Endpoint
from trtbuild.bench.record import Answer
from trtbuild.bench.sse import Events
from trtbuild.bench.workload import Item
from trtbuild.errors import BenchError, RequestError, ServerError

_CONNECT_S = 10.0


@dataclass(frozen=True)
class Dialect:
    """Which fields a server takes. `longest`: to go on to the length: ignore_eos, min_tokens or nothing."""

    longest: str = ""
    usage: bool = True
    length: str = "max_tokens"

    def __str__(self) -> str:
        return ", ".join(name for name in (self.longest, "usage" if self.usage else "", self.length) if name)


def dialects(ignore_eos: bool) -> Iterator[Dialect]:
    """What is tried, the most telling first."""
    for length in ("max_tokens", "max_completion_tokens"):
        for usage in (True, False):
            for longest in ("ignore_eos", "min_tokens", "") if ignore_eos else ("",):
                yield Dialect(longest, usage, length)


class OpenAiDriver:
    def __init__(self, endpoint: Endpoint, asking: Asking) -> None:
        try:
            import httpx
        except ImportError as error:
            raise ServerError("httpx is not installed", hint="pip install 'trtbuild[bench]'") from error
        self._httpx = httpx
        self._endpoint, self._asking = endpoint, asking
        self._model, self._dialect = endpoint.model, Dialect()
        self._tokenizer: Any = None
        self._client = httpx.AsyncClient(
            base_url=endpoint.address,
            headers={"Authorization": f"Bearer {asking.api_key}"} if asking.api_key else {},
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=endpoint.host not in ("127.0.0.1", "localhost", "::1"),  # no proxy for this host itself
        )

    async def __aenter__(self) -> OpenAiDriver:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def probe(self, prompt: str) -> Probe:
        self._model = self._model or await self._first_model()
        start = now_ns()
        refused: RequestError | None = None
        for dialect in dialects(self._asking.ignore_eos):
            self._dialect, answer = dialect, Answer()
            try:
                await self.ask(Item(0, prompt, 2, 0), answer)
            except _BadField as error:
                refused = refused or error
                continue
            return Probe(self._model, answer.input_tokens, str(self._dialect), (now_ns() - start) / 1e9)
        assert refused is not None
        raise refused

    async def ask(self, item: Item, answer: Answer) -> None:
        path = "/chat/completions" if self._asking.chat else "/completions"
        usage: dict[str, Any] = {}
        finished = 0
        events = Events()
        try:
            async with self._client.stream("POST", path, json=self._body(item)) as response:
                if response.status_code >= 400:
                    raise self._refusal(response.status_code, await response.aread(), path)
                async for block in response.aiter_bytes():
                    now = now_ns()
                    for data in events.push(block):
                        if data == "[DONE]":
                            continue
                        text, ended, counted = self._read(data)
                        usage = counted or usage
                        if text:
                            answer.arrivals.append((now, None))
                            answer.text += text
                        if ended:
                            finished = now
        except self._httpx.HTTPError as error:
            what = f"{self._endpoint.name}: {type(error).__name__}: {error}".rstrip(": ")
            raise ServerError(what, hint=f"Is a server listening at {self._client.base_url}?") from error
        if not finished:
            raise ServerError(f"{self._endpoint.name}: the stream ended without a finish_reason")
        await self._count(item, answer, usage)
        if not answer.arrivals and answer.output_tokens:
            answer.arrivals.append((finished, None))  # tokens without any text

    def _body(self, item: Item) -> dict[str, Any]:
        asking, dialect = self._asking, self._dialect
        body: dict[str, Any] = {"model": self._model, "stream": True, "temperature": asking.temperature}
        if asking.chat:
            body["messages"] = [{"role": "user", "content": item.prompt}]
        else:
            body["prompt"] = item.prompt
        body[dialect.length] = item.max_tokens
        if asking.temperature > 0:
            body["seed"] = item.seed
        if dialect.usage:
            body["stream_options"] = {"include_usage": True}
        if dialect.longest:
            body[dialect.longest] = True if dialect.longest == "ignore_eos" else item.max_tokens
        return body

    def _read(self, data: str) -> tuple[str, bool, dict[str, Any]]:
        """Text, whether the answer ended, usage of one event."""
        try:
            document = json.loads(data)
        except ValueError as error:
            raise ServerError(f"{self._endpoint.name}: an event is no JSON: {data[:200]}") from error
        if failed := document.get("error"):
            said = failed.get("message", failed) if isinstance(failed, dict) else failed
            raise ServerError(f"{self._endpoint.name}: the server broke off: {said}")
        choices = document.get("choices") or []
        if not choices:
            return "", False, document.get("usage") or {}
        part = choices[0].get("delta") or choices[0]
        text = "".join(part.get(name) or "" for name in ("reasoning_content", "reasoning", "content", "text"))
        return text, bool(choices[0].get("finish_reason")), document.get("usage") or {}

    async def _count(self, item: Item, answer: Answer, usage: dict[str, Any]) -> None:
        if isinstance(usage.get("completion_tokens"), int):
            answer.output_tokens, answer.counted_by = usage["completion_tokens"], "usage"
            answer.input_tokens = usage.get("prompt_tokens")
            return
        if self._asking.tokenizer is None:
            what = f"{self._endpoint.name}: the server sends no usage, so that tokens cannot be counted"
            raise BenchError(
                [what], hint="Name the folder of its tokenizer with --tokenizer; tokens are never guessed."
            )
        if self._tokenizer is None:
            from trtbuild.text.tokenizer import load_tokenizer

            self._tokenizer = load_tokenizer(self._asking.tokenizer)
        answer.output_tokens = len(self._tokenizer.encode(answer.text, add_special_tokens=False))
        answer.input_tokens = len(self._tokenizer.encode(item.prompt))
        answer.counted_by = "tokenizer"

    async def _first_model(self) -> str:
        try:
            response = await self._client.get("/models", timeout=_CONNECT_S)
            listed = response.json()["data"] if response.status_code < 400 else []
            names = [str(entry["id"]) for entry in listed]
        except self._httpx.HTTPError as error:
            hint = f"Is a server listening at {self._client.base_url}?"
            raise ServerError(f"{self._endpoint.name}: {type(error).__name__}: {error}", hint=hint) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ServerError(f"{self._endpoint.name}: /models is no list of models") from error
        if response.status_code >= 400:
            raise self._refusal(response.status_code, response.content, "/models")
        if not names:
            raise ServerError(f"{self._endpoint.name}: /models names no model", hint="Name one: URL#MODEL.")
        return names[0]

    def _refusal(self, status: int, body: bytes, path: str) -> RequestError | ServerError:
        try:
            document = json.loads(body)
            error = document.get("error", document)
            said = error.get("message", error) if isinstance(error, dict) else error
        except (ValueError, AttributeError):
            said = body.decode("utf-8", "replace")
        words = f"{self._endpoint.name}: HTTP {status} for {path}: {str(said)[:300]}"
        if status in (400, 422):
            return _BadField(words)
        if status in (401, 403):
            name = self._asking.api_key_env
            said = f"The key in {name} is not its" if self._asking.api_key else f"{name} is not set: put its key there"
            return RequestError(words, hint=f"{said}, or name another variable: --api-key-env.")
        if status == 404 and path == "/completions":
            return RequestError(words, hint="It may have chat only (--chat), or other models (URL#MODEL).")
        return ServerError(words) if status == 429 or status >= 500 else RequestError(words)


class _BadField(RequestError):
    """The server does not take the request as it is."""
