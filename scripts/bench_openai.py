"""What the OpenAI endpoint adds to Triton's gRPC stream: `python scripts/bench_openai.py`.

The same greedy request goes through AsyncClient and, over HTTP with the connection kept, through the endpoint, in turn.
One token gives what it adds to a request; the difference of many tokens, less that, what it adds to a token.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.serve_fixture import build_repository, free_ports, running
from trtbuild.client import AsyncClient, Generation


def over_http(connection: http.client.HTTPConnection, tokens: int) -> float:
    body = {
        "model": "ensemble",
        "prompt": "x",
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
    }
    start = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    events = response.read().count(b"data: ")
    assert events >= 2, events
    return time.perf_counter() - start


async def over_grpc(client: AsyncClient, tokens: int) -> float:
    start = time.perf_counter()
    generation = Generation("x", max_tokens=tokens, temperature=0, end_id=-1, count_prompt=True)
    async for _ in client.stream(generation):
        pass
    return time.perf_counter() - start


async def measure(url: str, port: int, tokens: int, runs: int) -> tuple[float, float]:
    """Medians in seconds: gRPC, HTTP."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    grpc, web = [], []
    async with AsyncClient(url) as client:
        for _ in range(runs + 3):
            grpc.append(await over_grpc(client, tokens))
            web.append(over_http(connection, tokens))
    return statistics.median(grpc[3:]), statistics.median(web[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=300)
    options = parser.parse_args()
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with running(build_repository(place), place / "logs") as server:
            program = "import sys; sys.argv[0] = 'trtbuild'; from trtbuild.cli.app import main; main()"
            argv = [sys.executable, "-c", program, "openai", "--url", server.url, "--port", str(port)]
            process = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": sys.path[0]})
            try:
                time.sleep(5)
                short = asyncio.run(measure(server.url, port, 1, options.runs))
                long = asyncio.run(measure(server.url, port, options.tokens, max(5, options.runs // 4)))
            finally:
                process.terminate()
                process.wait()
    request_ms = (short[1] - short[0]) * 1e3
    token_us = (long[1] - long[0] - (short[1] - short[0])) / options.tokens * 1e6
    print(f"1 token: gRPC {short[0] * 1e3:.2f} ms, OpenAI {short[1] * 1e3:.2f} ms: {request_ms:+.2f} ms")
    both = f"gRPC {long[0] * 1e3:.0f} ms, OpenAI {long[1] * 1e3:.0f} ms"
    print(f"{options.tokens} tokens: {both}: {token_us:+.1f} us a token")


if __name__ == "__main__":
    main()
