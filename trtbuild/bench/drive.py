"""EDGE: keeps the load on a server: a number of open requests, or requests at their times whatever the server does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trtbuild.bench.clock import now_ns
from trtbuild.bench.record import EMPTY, REFUSED, SERVER, TIMEOUT, Answer, Record
from trtbuild.bench.workload import CONCURRENCY, Item, Level, arrivals
from trtbuild.errors import RequestError, ServerError
from trtbuild.progress import Progress

_NEAR_S = 0.002
"""Timers of the event loop are a millisecond late; this long before a request is due it is waited for awake."""


@dataclass(frozen=True)
class Probe:
    """What one first request told: the model's name there, tokens of the prompt, and which options it takes."""

    model: str
    input_tokens: int | None
    options: str
    seconds: float


class Driver(Protocol):
    """Asks one endpoint; an async context manager."""

    async def __aenter__(self) -> Driver: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def probe(self, prompt: str) -> Probe:
        """One request, before everything else; raises what is wrong with the endpoint."""
        ...

    async def ask(self, item: Item, answer: Answer) -> None:
        """One request; fills `answer` as it comes. Raises RequestError, ServerError, and BenchError without counts."""
        ...


@dataclass(frozen=True)
class Run:
    """Requests of one endpoint at one level. `duration_s`: none begins later; `items` come round again."""

    endpoint: str
    level: Level
    items: Sequence[Item]
    phase: str
    timeout_s: float
    duration_s: float | None = None
    seed: int = 0


async def drive(driver: Driver, run: Run, progress: Progress) -> list[Record]:
    """Do all requests; returns their records in the order of their numbers, failed ones too."""
    records: list[Record] = []
    start = now_ns()

    def report(record: Record) -> None:
        records.append(record)
        done, total = len(records), len(run.items)
        if run.duration_s is not None:
            done, total = min((now_ns() - start) // 10**6, round(run.duration_s * 1e3)), round(run.duration_s * 1e3)
        progress(done, total, f"{run.endpoint}, {run.level.label} ({run.phase})")

    if run.level.mode == CONCURRENCY:
        await _closed_loop(driver, run, report)
    else:
        await _open_loop(driver, run, report)
    return sorted(records, key=lambda record: record.number)


async def _closed_loop(driver: Driver, run: Run, report: Any) -> None:
    """As many workers as requests are to be open; each begins the next when its last is done."""
    end = None if run.duration_s is None else now_ns() + round(run.duration_s * 1e9)
    waiting = iter(run.items) if end is None else _again_and_again(run.items)

    async def worker() -> None:
        for item in waiting:
            if end is not None and now_ns() >= end:
                return
            report(await _one(driver, run, item, now_ns()))

    await _all(
        worker() for _ in range(min(int(run.level.value), len(run.items)) if end is None else int(run.level.value))
    )


def _again_and_again(items: Sequence[Item]) -> Iterable[Item]:
    number = 0
    while True:
        one = items[number % len(items)]
        yield Item(items[0].number + number, one.prompt, one.max_tokens, one.seed)
        number += 1


async def _open_loop(driver: Driver, run: Run, report: Any) -> None:
    """Each request at its time, whether others were answered or not."""
    start = now_ns()
    tasks: list[asyncio.Task[None]] = []

    async def one(item: Item, due: int) -> None:
        report(await _one(driver, run, item, due))

    try:
        for item, after_s in zip(run.items, arrivals(run.level, len(run.items), run.seed), strict=True):
            due = start + round(after_s * 1e9)
            await asyncio.sleep(max(0.0, (due - now_ns()) / 1e9 - _NEAR_S))
            while now_ns() < due:
                await asyncio.sleep(0)
            tasks.append(asyncio.create_task(one(item, due)))
        await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def _one(driver: Driver, run: Run, item: Item, due: int) -> Record:
    answer = Answer()
    kind = words = ""
    sent = now_ns() if run.level.mode != CONCURRENCY else due
    try:
        await asyncio.wait_for(driver.ask(item, answer), run.timeout_s)
        if not answer.arrivals:
            kind, words = EMPTY, "the answer ended without a token"
    except asyncio.TimeoutError:  # Python 3.10 has another TimeoutError
        kind, words = TIMEOUT, f"not complete after {run.timeout_s:g} s ({len(answer.arrivals)} pieces came)"
    except RequestError as error:
        kind, words = REFUSED, error.message
    except ServerError as error:
        kind, words = SERVER, error.message
    return Record(
        endpoint=run.endpoint,
        mode=run.level.mode,
        level=run.level.value,
        number=item.number,
        phase=run.phase,
        scheduled_ns=due,
        sent_ns=sent,
        end_ns=now_ns(),
        arrivals=tuple(answer.arrivals),
        input_tokens=answer.input_tokens,
        output_tokens=answer.output_tokens,
        counted_by=answer.counted_by,
        max_tokens=item.max_tokens,
        error=words,
        error_kind=kind,
    )


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
