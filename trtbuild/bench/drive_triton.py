"""EDGE: asks a Triton repository over gRPC; the counts of tokens are the repository's own."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace

from trtbuild.bench.asking import Asking
from trtbuild.bench.clock import now_ns
from trtbuild.bench.drive import Probe
from trtbuild.bench.endpoint import Endpoint
from trtbuild.bench.record import Answer
from trtbuild.bench.workload import Item
from trtbuild.client import AsyncClient, Generation, Retry
from trtbuild.errors import BenchError


class TritonDriver:
    """All requests go over one connection, as one of many users behind a gateway would do; none is tried again."""

    def __init__(self, endpoint: Endpoint, asking: Asking) -> None:
        self._endpoint, self._asking = endpoint, asking
        reach = replace(asking.reach, timeout_s=10.0, stall_s=asking.timeout_s + 10, retry=Retry(times=0))
        self._model = endpoint.model or "ensemble"
        self._client = AsyncClient(endpoint.address, model=self._model, reach=reach)

    async def __aenter__(self) -> TritonDriver:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def probe(self, prompt: str) -> Probe:
        answer = Answer()
        start = now_ns()
        await self.ask(Item(0, prompt, 2, 0), answer)
        options = "end_id -1" if self._asking.ignore_eos else ""
        return Probe(self._model, answer.input_tokens, options, (now_ns() - start) / 1e9)

    async def ask(self, item: Item, answer: Answer) -> None:
        generation = Generation(
            item.prompt,
            max_tokens=item.max_tokens,
            temperature=self._asking.temperature,
            seed=item.seed,
            end_id=-1 if self._asking.ignore_eos else None,
            count_prompt=True,
        )
        total = 0
        async with aclosing(self._client.stream(generation)) as chunks:
            async for chunk in chunks:
                if chunk.token_count:
                    answer.arrivals.append((now_ns(), chunk.token_count))
                    total += chunk.token_count
                elif chunk.text and not total:
                    what = f"{self._endpoint.name}: the model {self._model} gives no num_output_tokens"
                    raise BenchError([what], hint="Tokens are never guessed; serve a repository that counts them.")
                answer.input_tokens = chunk.prompt_tokens if answer.input_tokens is None else answer.input_tokens
        answer.output_tokens, answer.counted_by = total, "server"
