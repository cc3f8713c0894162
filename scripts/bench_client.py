"""CPU time per token of the clients against raw tritonclient, with a real server: `python scripts/bench_client.py`.

Each way streams the same requests one after the other over one connection; CPU seconds are those of this process alone
(all of its threads), so the server's work does not count. Ways take turns, so that a busy host meets them all, and the
ratio is the median over the turns: one turn says little, as CPU time depends on how tokens fall together (+-20 %).
"""

from __future__ import annotations

import argparse
import asyncio
import queue
import resource
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.serve_fixture import LONGEST, build_repository, running
from trtbuild.client import AsyncClient, Client, Generation


def generation(tokens: int) -> Generation:
    return Generation("x", max_tokens=tokens, end_id=-1)


def raw(url: str, tokens: int, requests: int) -> int:
    """What a user of tritonclient writes: start_stream, a queue, and the two outputs that we read too."""
    import numpy as np
    import tritonclient.grpc as grpcclient
    from tritonclient.utils import triton_to_np_dtype

    from trtbuild.client.payload import request_tensors

    answers: queue.SimpleQueue[object] = queue.SimpleQueue()
    count = 0
    with grpcclient.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(requests):
            inputs = []
            for name, kind, rows in request_tensors(generation(tokens)):
                values = np.array(rows, dtype=triton_to_np_dtype(kind))
                inputs.append(grpcclient.InferInput(name, list(values.shape), kind))
                inputs[-1].set_data_from_numpy(values)
            outputs = [grpcclient.InferRequestedOutput(name) for name in ("text_output", "num_output_tokens")]
            client.async_stream_infer(
                "ensemble", inputs, outputs=outputs, request_id=str(number), enable_empty_final_response=True
            )
            final = False
            while not final:
                result, error = answers.get()
                assert error is None, error
                b"".join(result.as_numpy("text_output").reshape(-1).tolist()).decode("utf-8", "replace")
                count += int(result.as_numpy("num_output_tokens").sum())
                final = result.get_response().parameters["triton_final_response"].bool_param
        client.stop_stream()
    return count


def ours(url: str, tokens: int, requests: int) -> int:
    with Client(url) as client:
        return sum(c.token_count for _ in range(requests) for c in client.stream(generation(tokens)))


def ours_async(url: str, tokens: int, requests: int) -> int:
    async def run() -> int:
        async with AsyncClient(url) as client:
            return sum([c.token_count for _ in range(requests) async for c in client.stream(generation(tokens))])

    return asyncio.run(run())


async def one(request: dict[str, object]) -> AsyncIterator[dict[str, object]]:
    yield request


def raw_async(url: str, tokens: int, requests: int) -> int:
    """tritonclient's asyncio client; it cannot ask for the empty final response, so it ends by the count of tokens."""
    import numpy as np
    import tritonclient.grpc.aio as aio
    from tritonclient.grpc import InferInput, InferRequestedOutput
    from tritonclient.utils import triton_to_np_dtype

    from trtbuild.client.payload import request_tensors

    async def run() -> int:
        count = 0
        async with aio.InferenceServerClient(url) as client:
            for number in range(requests):
                inputs = []
                for name, kind, rows in request_tensors(generation(tokens)):
                    values = np.array(rows, dtype=triton_to_np_dtype(kind))
                    inputs.append(InferInput(name, list(values.shape), kind))
                    inputs[-1].set_data_from_numpy(values)
                outputs = [InferRequestedOutput(name) for name in ("text_output", "num_output_tokens")]

                request = {"model_name": "ensemble", "inputs": inputs, "outputs": outputs, "request_id": str(number)}
                async for result, error in client.stream_infer(one(request)):
                    assert error is None, error
                    b"".join(result.as_numpy("text_output").reshape(-1).tolist()).decode("utf-8", "replace")
                    count += int(result.as_numpy("num_output_tokens").sum())
                    result.get_response().parameters["triton_final_response"]
        return count

    return asyncio.run(run())


def cpu_us(way: Callable[[str, int, int], int], url: str, tokens: int, requests: int) -> float:
    """Microseconds of CPU per token."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    count = way(url, tokens, requests)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert count == tokens * requests, count
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--requests", type=int, default=4)
    options = parser.parse_args()
    ways = {"tritonclient": raw, "Client": ours, "tritonclient.aio": raw_async, "AsyncClient": ours_async}
    tokens = min(LONGEST, 400)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with running(build_repository(place), place / "logs") as server:
            for way in ways.values():
                way(server.url, tokens, 1)
            found: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(options.runs):
                for name, way in ways.items():
                    found[name].append(cpu_us(way, server.url, tokens, options.requests))
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, anchor in (("Client", "tritonclient"), ("AsyncClient", "tritonclient.aio")):
        ratio = statistics.median(one / other for one, other in zip(found[name], found[anchor], strict=True))
        print(f"{name}: {medians[name]:.1f} us of CPU per token, {anchor} {medians[anchor]:.1f}: {ratio:.3f}x")


if __name__ == "__main__":
    main()
