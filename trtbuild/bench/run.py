"""EDGE: every level on every endpoint, and the summary of each.

Levels are the outer loop, so that a host whose speed changes meets all endpoints of a level alike.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from trtbuild.bench import memory
from trtbuild.bench.asking import Asking
from trtbuild.bench.drive import Driver, Probe, Run, drive
from trtbuild.bench.endpoint import TRITON, Endpoint
from trtbuild.bench.metrics import Metric, errors_of, summary
from trtbuild.bench.prompts import PROBE, Prompter
from trtbuild.bench.record import PROFILING, WARMUP, Record
from trtbuild.bench.workload import CONCURRENCY, Item, Length, Level, Written, arrivals, items
from trtbuild.errors import RequestError, ServerError
from trtbuild.progress import Progress

_SAMPLE_S = 0.5
_POOL = 256
"""Prompts for a run that ends by time; longer ones begin with them again."""
_GB = 1e9


@dataclass(frozen=True)
class Options:
    """`requests` of each level (default: 5 for each open one, at least 20) or `duration_s`; `warmup` (default: one for
    each open request, at least 2). `memory_ports`: endpoint name -> ports of servers whose memory is meant instead of
    that of the endpoint's own; `metrics_urls`: endpoint name -> Triton's metrics page.
    """

    levels: Sequence[Level]
    requests: int | None = None
    duration_s: float | None = None
    warmup: int | None = None
    input: Length = field(default_factory=lambda: Length(128))
    output: Length = field(default_factory=lambda: Length(128))
    written: Sequence[Written] = ()
    seed: int = 0
    goodput: dict[str, float] = field(default_factory=dict)
    asking: Asking = field(default_factory=Asking)
    memory_ports: dict[str, list[int]] = field(default_factory=dict)
    metrics_urls: dict[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """What was asked for, for the summary; no key is in it."""
        lengths = {"input_len": self.input, "output_len": self.output}
        return {
            "requests": self.requests,
            "duration_s": self.duration_s,
            "warmup": self.warmup,
            **{name: {"mean": one.mean, "stddev": one.stddev} for name, one in lengths.items()},
            "prompts": len(self.written) or None,
            "seed": self.seed,
            "goodput": self.goodput,
            "ignore_eos": self.asking.ignore_eos,
            "temperature": self.asking.temperature,
            "chat": self.asking.chat,
            "timeout_s": self.asking.timeout_s,
        }


def measure(endpoints: Sequence[Endpoint], options: Options, progress: Progress) -> tuple[list[Record], list[Metric]]:
    """All records, warm-up too, and a summary for each endpoint and level.

    Raises:
        ServerError: endpoints that are away or refuse the first request, all of them at once; or no request of any
            level was answered. BenchError: tokens cannot be counted, or prompts not be made.
    """
    return asyncio.run(_measure(endpoints, options, progress))


async def _measure(
    endpoints: Sequence[Endpoint], options: Options, progress: Progress
) -> tuple[list[Record], list[Metric]]:
    async with AsyncExitStack() as stack:
        drivers = [await stack.enter_async_context(_driver(endpoint, options.asking)) for endpoint in endpoints]
        probes = await _probes(endpoints, drivers, options.asking.timeout_s)
        least = (probes[0].input_tokens or len(PROBE.split())) - len(PROBE.split())
        prompter = None if options.written else Prompter(options.input, options.seed, options.asking.tokenizer, least)
        pids = [_pids(endpoint, options) for endpoint in endpoints]
        records: list[Record] = []
        summaries: list[Metric] = []
        first = 0
        for level in options.levels:
            warm, real = _work(level, options, prompter, first)
            first += len(warm) + len(real)
            for endpoint, driver, probe, processes in zip(endpoints, drivers, probes, pids, strict=True):
                one = _Measured(endpoint, level, probe, processes, options)
                await one.measure(driver, warm, real, progress)
                records += one.records
                summaries.append(one.document())
    if not any(record.ok for record in records):
        raise ServerError(f"no request was answered; the first said: {records[0].error}")
    return records, summaries


def _driver(endpoint: Endpoint, asking: Asking) -> Any:
    if endpoint.kind == TRITON:
        from trtbuild.bench.drive_triton import TritonDriver

        return TritonDriver(endpoint, asking)
    from trtbuild.bench.drive_openai import OpenAiDriver

    return OpenAiDriver(endpoint, asking)


async def _probes(endpoints: Sequence[Endpoint], drivers: Sequence[Driver], timeout_s: float) -> list[Probe]:
    """One request to each, before any prompt is made."""
    found: list[Probe] = []
    problems: list[RequestError | ServerError] = []
    for endpoint, driver in zip(endpoints, drivers, strict=True):
        try:
            found.append(await asyncio.wait_for(driver.probe(PROBE), timeout_s))
        except asyncio.TimeoutError:  # Python 3.10 has another TimeoutError
            words = f"{endpoint.name}: no answer to the first request within {timeout_s:g} s"
            problems.append(ServerError(words, hint="Look at the server; a slow one needs a longer --timeout."))
        except (RequestError, ServerError) as error:
            problems.append(error)
    if problems:
        named = "\n".join(f"  - {error.message}" for error in problems)
        count = f"{len(problems)} of {len(endpoints)} endpoints cannot be used:"
        raise ServerError(f"{count}\n{named}", hint=problems[0].hint)
    return found


def _pids(endpoint: Endpoint, options: Options) -> list[int]:
    ports = options.memory_ports.get(endpoint.name)
    if ports is None:
        ports = [endpoint.port] if memory.is_here(endpoint.host) else []
    return sorted({pid for port in ports for pid in memory.server_pids(port)})


def _work(level: Level, options: Options, prompter: Prompter | None, first: int) -> tuple[list[Item], list[Item]]:
    """Requests of the warm-up, and those that are measured."""
    at_once = int(level.value) if level.mode == CONCURRENCY else 1
    warmup = max(2, at_once) if options.warmup is None else options.warmup
    count = options.requests or max(20, 5 * at_once)
    if options.duration_s is not None:
        count = _POOL if level.mode == CONCURRENCY else _due(level, options.duration_s, options.seed)

    def make(number: int, size: int) -> list[Item]:
        made = None if prompter is None else prompter.make(number, size)
        return items(size, options.seed, options.output, written=options.written, made=made, first=number)

    return make(first, warmup), make(first + warmup, count)


def _due(level: Level, duration_s: float, seed: int) -> int:
    """Arrivals within `duration_s`."""
    many = round(level.value * duration_s * 2) + 100
    return max(1, sum(time <= duration_s for time in arrivals(level, many, seed)))


class _Measured:
    """One endpoint at one level."""

    def __init__(self, endpoint: Endpoint, level: Level, probe: Probe, pids: Sequence[int], options: Options) -> None:
        self._endpoint, self._level, self._probe, self._options = endpoint, level, probe, options
        self._pids = pids
        self._resident: list[int] = []
        self.records: list[Record] = []

    async def measure(self, driver: Driver, warm: list[Item], real: list[Item], progress: Progress) -> None:
        options, level = self._options, self._level
        timeout_s = options.asking.timeout_s
        calm = level if level.mode == CONCURRENCY else Level(CONCURRENCY, 1)
        if warm:
            run = Run(self._endpoint.name, calm, warm, WARMUP, timeout_s)
            self.records += await drive(driver, run, progress)
        run = Run(self._endpoint.name, level, real, PROFILING, timeout_s, options.duration_s, options.seed)
        if level.mode != CONCURRENCY:  # their number is the duration already
            run = Run(self._endpoint.name, level, real, PROFILING, timeout_s, None, options.seed)
        watch = asyncio.create_task(self._watch())
        self._started, cpu, wall = time.time(), time.process_time(), time.perf_counter()
        try:
            self.records += await drive(driver, run, progress)
        finally:
            watch.cancel()
            self._cpu = (time.process_time() - cpu) / (time.perf_counter() - wall)
        self._processes = memory.processes(self._pids)
        self._gpu = memory.gpu_bytes(self._pids)
        if self._gpu is None and (url := options.metrics_urls.get(self._endpoint.name)):
            self._gpu = memory.gpu_bytes_of_metrics(url)

    async def _watch(self) -> None:
        while self._pids:
            self._resident.append(sum(memory.rss(pid) or 0 for pid in self._pids))
            await asyncio.sleep(_SAMPLE_S)

    def document(self) -> Metric:
        """genai-perf's layout (a metric a key, and input_config), and beside it what is ours."""
        measured = [record for record in self.records if record.phase == PROFILING]
        found = summary(measured, self._options.goodput)
        found |= self._memory()
        return {
            "endpoint": self._endpoint.name,
            "mode": self._level.mode,
            "level": self._level.value,
            **found,
            "errors": errors_of(measured),
            "notes": self._notes(measured),
            "server_processes": [
                {"pid": p.pid, "command": p.command[:200], "rss_bytes": p.rss, "pss_bytes": p.pss}
                for p in self._processes
            ],
            "client_cpu": {"unit": "cores", "avg": self._cpu},
            "start_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started)),
            "input_config": {
                "kind": self._endpoint.kind,
                "address": self._endpoint.address,
                "model": self._probe.model,
                "fields": self._probe.options,
                self._level.mode: self._level.value,
                **self._options.document(),
            },
        }

    def _memory(self) -> dict[str, Metric]:
        found: dict[str, Metric] = {}
        if self._processes:
            shares = [process.pss for process in self._processes if process.pss is not None]
            if len(shares) == len(self._processes):
                found["server_memory_pss"] = {"unit": "GB", "avg": sum(shares) / _GB}
            resident = [*self._resident, sum(process.rss for process in self._processes)]
            mean = sum(resident) / len(resident)
            found["server_memory_rss"] = {"unit": "GB", "avg": mean / _GB, "max": max(resident) / _GB}
        if self._gpu is not None:
            found["gpu_memory_used"] = {"unit": "GB", "avg": self._gpu / _GB}
        return found

    def _notes(self, measured: Sequence[Record]) -> list[str]:
        done = [record for record in measured if record.ok]
        notes = []
        if other := sum(record.output_tokens != record.max_tokens for record in done):
            notes.append(f"{other} of {len(done)} answers have another length than was asked for")
        if not self._options.written and done:
            mean = sum(record.input_tokens or 0 for record in done) / len(done)
            if abs(mean - self._options.input.mean) > max(1.0, 0.05 * self._options.input.mean):
                notes.append(
                    f"prompts have {mean:.1f} tokens by the server's count, {self._options.input.mean} were meant"
                )
        if any(record.counted_by == "tokenizer" for record in done):
            notes.append("tokens were counted with --tokenizer, the server sends no usage")
        if self._cpu > 0.9:
            notes.append(f"the client used {self._cpu:.2f} cores: it may be what limits these figures")
        if failed := len(measured) - len(done):
            notes.append(f"{failed} of {len(measured)} requests failed: {errors_of(measured)[0]['first']}")
        return notes
