#!/usr/bin/env python
"""Time to the first token: the runtime in process, behind its socket, and through Triton and gRPC.

    python scripts/bench_first_token.py [--model DIR] [--runs 20] [--quant int8]

The three take turns on the same engine and prompt in one run; medians and the differences to the first are printed.
"through Triton" is what a user of the command line sees: connect, send, first text; "connection kept" is what a program
sees that keeps its gRPC stream open between requests.
"""

from __future__ import annotations

import argparse
import queue
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bench_runtime import PROMPT
from demo_model import demo_model

from trtbuild.client import Generation, generate_stream
from trtbuild.engine.options import BuildOptions
from trtbuild.pipeline import make_engine
from trtbuild.repo.options import RepositoryOptions
from trtbuild.repo.write import write_repository
from trtbuild.runtime.generator import Generator
from trtbuild.runtime.group import RankGroup
from trtbuild.runtime.info import RuntimeOptions
from trtbuild.runtime.request import Output, Request
from trtbuild.serve.launch import Server
from trtbuild.serve.options import ServeOptions
from trtbuild.serve.prepare import prepare
from trtbuild.spec import ConvertOptions

KV_TOKENS = 8192
PAUSE_S = 0.1  # a way must not pay for what the one before it still tidies up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--quant", default="int8")
    arguments = parser.parse_args()
    model = arguments.model or demo_model()
    with tempfile.TemporaryDirectory() as scratch:
        engine = make_engine(
            str(model), Path(scratch) / "engine", ConvertOptions(quant=arguments.quant), BuildOptions()
        )
        repository = Path(scratch) / "repo"
        write_repository(engine, repository, model, RepositoryOptions(max_tokens_in_paged_kv_cache=KV_TOKENS))
        show(measure(model, engine, repository, arguments.runs))


def measure(model: Path, engine: Path, repository: Path, runs: int) -> dict[str, list[float]]:
    """Milliseconds to the first token of every run, by way."""
    from transformers import AutoTokenizer

    prompt = tuple(AutoTokenizer.from_pretrained(model)(PROMPT).input_ids)
    ports = free_ports()
    generator = Generator(engine, RuntimeOptions(max_tokens_in_paged_kv_cache=KV_TOKENS))
    names = ("in process", "behind its socket", "through Triton", "through Triton, connection kept")
    samples: dict[str, list[float]] = {name: [] for name in names}
    with (
        RankGroup(engine, max_tokens_in_paged_kv_cache=KV_TOKENS) as group,
        Server(prepare(repository, ports)) as server,
    ):
        server.wait_ready()
        kept = KeptStream(ports.ports["grpc"])
        for turn in range(runs + 2):
            ways = {
                "in process": lambda: in_process(generator, prompt),
                "behind its socket": lambda: behind_socket(group, prompt),
                "through Triton": lambda: through_triton(ports.ports["grpc"]),
                "through Triton, connection kept": kept.first_token,
            }
            for way, run in ways.items():
                time.sleep(PAUSE_S)
                seconds = run()
                if turn >= 2:  # the first two warm up
                    samples[way].append(seconds * 1e3)
        kept.close()
    return samples


def in_process(generator: Generator, prompt: tuple[int, ...]) -> float:
    start = time.perf_counter()
    generator.add(Request("a", prompt, 8))
    generator.step()
    first = time.perf_counter() - start
    generator.cancel("a")
    return first


def behind_socket(group: RankGroup, prompt: tuple[int, ...]) -> float:
    arrived: queue.SimpleQueue[tuple[float, Output]] = queue.SimpleQueue()
    start = time.perf_counter()
    group.submit(Request("a", prompt, 8), lambda output: arrived.put((time.perf_counter(), output)))
    first, output = arrived.get()
    while not output.finish_reason:
        output = arrived.get()[1]
    return first - start


def through_triton(port: int) -> float:
    start = time.perf_counter()
    first = 0.0
    for chunk in generate_stream(f"127.0.0.1:{port}", Generation(PROMPT, max_tokens=8)):
        if chunk.token_count and not first:
            first = time.perf_counter()
    return first - start


class KeptStream:
    """A tritonclient stream to the ensemble that stays open between requests."""

    def __init__(self, port: int) -> None:
        import numpy as np
        import tritonclient.grpc as grpcclient

        self._answers: queue.SimpleQueue[tuple[float, Any]] = queue.SimpleQueue()
        self._client = grpcclient.InferenceServerClient(f"127.0.0.1:{port}")
        self._client.start_stream(lambda result, error: self._answers.put((time.perf_counter(), result)))
        values = {"text_input": np.array([[PROMPT.encode()]], object), "max_tokens": np.array([[8]], np.int32)}
        values["stream"] = np.array([[True]])
        self._inputs = []
        for name, array in values.items():
            kind = {"text_input": "BYTES", "max_tokens": "INT32", "stream": "BOOL"}[name]
            self._inputs.append(grpcclient.InferInput(name, array.shape, kind).set_data_from_numpy(array))

    def first_token(self) -> float:
        start = time.perf_counter()
        self._client.async_stream_infer("ensemble", self._inputs, enable_empty_final_response=True)
        first, result = self._answers.get(timeout=10)
        while not result.get_response().parameters["triton_final_response"].bool_param:
            result = self._answers.get(timeout=10)[1]
        return first - start

    def close(self) -> None:
        self._client.stop_stream()
        self._client.close()


def free_ports() -> ServeOptions:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    http, grpc, metrics = (each.getsockname()[1] for each in sockets)
    for each in sockets:
        each.close()
    return ServeOptions(http_port=http, grpc_port=grpc, metrics_port=metrics)


def show(samples: dict[str, list[float]]) -> None:
    base = statistics.median(samples["in process"])
    print("| first token | median, ms | min | max | later than in process, ms |")
    print("|---|---|---|---|---|")
    for way, values in samples.items():
        median = statistics.median(values)
        print(f"| {way} | {median:.1f} | {min(values):.1f} | {max(values):.1f} | {median - base:+.1f} |")


if __name__ == "__main__":
    main()
