"""Many streams for many minutes against a real tritonserver: no wrong text, no leak, no hang; with curves.

    python scripts/soak.py --minutes 10 --out build/soak        # the demo model as int8 cpu engine, 64 streams

Of the requests 5 % are cancelled, 2 % lose their connection (a reset, half of them gRPC, half HTTP) and 1 % are refused
by rights; the text of every other is compared with what the engine alone says to its prompt. KV blocks, threads, file
descriptors and memory of every process of the server are sampled. The verdict is printed and written with all samples
to soak.json, the curves to soak.png; exit code 1 if anything does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import queue
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, aclosing, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from soak_verdict import Tally, draw, judge, sample  # noqa: E402

from tests.serve_fixture import Running, running  # noqa: E402
from trtbuild.client import AsyncClient, Generation  # noqa: E402
from trtbuild.client.options import Reach, Retry  # noqa: E402
from trtbuild.errors import RequestError, ServerError, TrtbuildError  # noqa: E402

SHARES = {"cancelled": 0.05, "dropped grpc": 0.01, "dropped http": 0.01, "refused": 0.01}
"""Of the requests; the first workers begin with one of each kind, so that a short run has them too."""
HANGS_S = 120.0
"""A stream without a token for so long hangs. Waiting for a place in the engine counts, and so does a busy host."""
SUBJECTS = ("the sea", "你好，世界", "prime numbers", "👩‍👩‍👧 a family", "Ñandú", "a train to Łódź", "rust", "日本語")
OPENINGS = (
    "Tell me about {}.",
    "Once upon a time, {}",
    "List three facts on {}:\n1.",
    "def f():  # {}\n    return",
    "{} = {}",
)
BAD = (
    ({"prompt": ""}, "empty"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"prompt": "word " * 9000}, "max_input_len"),
    ({"repetition_penalty": -1.0}, "repetition_penalty"),
    ({"top_p": 1.5}, "top_p"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between samples")
    parser.add_argument("--repository", type=Path, help="a repository of a cpu engine; default: one of the demo model")
    parser.add_argument("--out", type=Path, default=Path("build/soak"), help="folder of soak.json and soak.png")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server is stopped on the way out
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        repository = scratch / "served"  # a name that only the server's own processes have in their command line
        repository.symlink_to((options.repository or demo_repository(scratch)).resolve())
        expected = reference(repository)
        server = stack.enter_context(running(repository, scratch / "logs"))
        report = asyncio.run(soak(server, expected, options.streams, options.minutes * 60, options.every))
    (options.out / "soak.json").write_text(json.dumps(report, indent=1))
    draw(report, options.out / "soak.png")
    print(json.dumps({key: value for key, value in report.items() if key != "samples"}, indent=1))
    sys.exit(0 if report["holds"] else 1)


def demo_repository(folder: Path) -> Path:
    script = [sys.executable, str(ROOT / "scripts" / "demo_model.py")]
    model = subprocess.run(script, stdout=subprocess.PIPE, text=True, check=True).stdout.strip().splitlines()[-1]
    cli = [sys.executable, "-c", "from trtbuild.cli.app import main; main()"]
    build = ["engine", model, "-o", str(folder / "engine"), "--quant", "int8"]
    write = ["repo", str(folder / "engine"), "-o", str(folder / "repo"), "--tokenizer", model]
    for command in (build, [*write, "--max-tokens-in-kv", "8192"]):
        subprocess.run([*cli, *command], check=True, stdout=subprocess.DEVNULL)
    return folder / "repo"


def reference(repository: Path) -> dict[Generation, str]:
    """What the engine says to each prompt, alone and without Triton; greedy."""
    from trtbuild.runtime.group import RankGroup
    from trtbuild.runtime.request import Output, Request
    from trtbuild.text.tokenizer import load_tokenizer

    engine = json.loads((repository / "trtbuild.json").read_text())["source"]["engine"]
    tokenizer = load_tokenizer(repository / "preprocessing" / "tokenizer")
    prompts = [opening.format(subject, subject) for opening in OPENINGS for subject in SUBJECTS]
    texts = {}
    with RankGroup(Path(engine), max_tokens_in_paged_kv_cache=16384) as group:
        for number, prompt in enumerate(prompts):
            generation = Generation(prompt, max_tokens=8 + 13 * number % 56)
            outputs: queue.Queue[Output] = queue.Queue()
            ids = tuple(tokenizer.encode(prompt))
            end = tokenizer.end_ids[0] if tokenizer.end_ids else -1
            group.submit(Request(str(number), ids, generation.max_tokens, end_id=end), outputs.put)
            tokens: list[int] = []
            while True:
                output = outputs.get(timeout=60)
                tokens.extend(output.token_ids)
                if output.finish_reason:
                    break
            texts[generation] = tokenizer.decode(tokens)
    return texts


async def soak(
    server: Running, expected: dict[Generation, str], streams: int, seconds: float, every: float
) -> dict[str, Any]:
    """The load, the samples beside it, and the verdict."""
    tally = Tally()
    await touch(server)
    await load(server, expected, streams, 0.0, Tally())  # a request of every stream: what is made at first use is made
    await quiet(server)
    idle = sample(server, 0.0, 0)
    start, stop = time.monotonic(), asyncio.Event()
    samples: list[dict[str, Any]] = []
    sampler = asyncio.create_task(sampling(server, samples, start, every, tally, stop))
    await load(server, expected, streams, seconds, tally)
    stop.set()
    await sampler
    await quiet(server)
    at_end = sample(server, time.monotonic() - start, sum(tally.ended.values()))
    return judge(idle, samples, at_end, tally, seconds)


async def touch(server: Running) -> None:
    """Prompts that fill the KV cache: memory of a block is taken when it is first written to."""
    reach = Reach(timeout_s=30.0, stall_s=10 * HANGS_S, retry=Retry(times=0))
    engine = json.loads((server.repository / "trtbuild.json").read_text())["source"]["engine"]
    longest = json.loads((Path(engine) / "config.json").read_text())["build_config"]["max_input_len"]
    tokens = (await asyncio.to_thread(server.gauge, "max")) * (await asyncio.to_thread(server.gauge, "tokens_per"))
    async with AsyncClient(server.url, reach=reach) as client:
        prompts = [Generation(" word" * (longest - 8), max_tokens=1) for _ in range(max(1, tokens // longest))]
        await asyncio.gather(*(client.infer(prompt) for prompt in prompts))


async def load(server: Running, expected: dict[Generation, str], streams: int, seconds: float, tally: Tally) -> None:
    """`streams` workers, each with a connection of its own, one request after the other until the time is over."""
    until = time.monotonic() + seconds
    workers = [asyncio.create_task(worker(server, expected, number, until, tally)) for number in range(streams)]
    _done, hanging = await asyncio.wait(workers, timeout=seconds + 4 * HANGS_S)
    for task in hanging:
        task.cancel()
        tally.problem("a stream hangs")
    for task in workers:
        if task not in hanging and (error := task.exception()):
            tally.problem(f"a worker ended: {type(error).__name__}: {error}")


async def worker(server: Running, expected: dict[Generation, str], number: int, until: float, tally: Tally) -> None:
    rng = random.Random(number)
    reach = Reach(timeout_s=30.0, stall_s=HANGS_S, retry=Retry(times=0))
    generations = list(expected)
    kinds = [*SHARES, "finished"]
    weights = [*SHARES.values(), 1 - sum(SHARES.values())]
    kind = kinds[number % len(kinds)]
    async with AsyncClient(server.url, reach=reach) as client:
        while True:
            generation = rng.choice(generations)
            try:
                await one(kind, client, server, generation, expected[generation], rng, tally)
                tally.ended[kind] += 1
            except (TrtbuildError, OSError, asyncio.TimeoutError) as error:
                tally.problem(f"{kind}: {type(error).__name__}: {error}")
            if time.monotonic() >= until:
                return
            kind = rng.choices(kinds, weights)[0]


async def one(
    kind: str,
    client: AsyncClient,
    server: Running,
    generation: Generation,
    text: str,
    rng: random.Random,
    tally: Tally,
) -> None:
    """One request of a kind; what it does wrong goes to `tally`."""
    if kind == "refused":
        changes, words = rng.choice(BAD)
        try:
            await client.infer(Generation(**{"prompt": "Hi", **changes}))
            tally.problem(f"not refused: {changes}")
        except RequestError as error:
            if words not in error.message:
                tally.problem(f"refused with the wrong words: {error.message}")
    elif kind == "cancelled":
        wanted = rng.randrange(1, 8)
        await some(client, Generation(generation.prompt, max_tokens=512), wanted)
    elif kind == "dropped http":
        await dropped_http(server, generation.prompt)
    elif kind == "dropped grpc":
        await dropped_grpc(server, generation.prompt)
    else:
        answer = await client.infer(generation)
        tally.tokens += answer.token_count
        if answer.text != text:
            tally.problem(f"wrong text for {generation.prompt!r}: {answer.text!r}, expected {text!r}")


async def some(client: AsyncClient, generation: Generation, wanted: int) -> None:
    """Read `wanted` chunks and leave."""
    async with aclosing(client.stream(generation)) as chunks:
        async for chunk in chunks:
            wanted -= 1
            if chunk.final or not wanted:
                return


async def dropped_http(server: Running, prompt: str) -> None:
    """A stream over HTTP whose socket is reset after its first bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.http)
    body = json.dumps({"text_input": prompt, "max_tokens": 512, "stream": True}).encode()
    head = f"POST /v2/models/ensemble/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await asyncio.wait_for(reader.read(600), HANGS_S)
    reset(writer)


async def dropped_grpc(server: Running, prompt: str) -> None:
    """A stream over gRPC whose TCP connection is reset: the client speaks through a relay."""
    writers: list[asyncio.StreamWriter] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, ahead = await asyncio.open_connection("127.0.0.1", server.grpc)
        writers.extend((writer, ahead))
        await asyncio.gather(pump(reader, ahead), pump(behind, writer))

    listener = await asyncio.start_server(relay, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        reach = Reach(timeout_s=30.0, stall_s=HANGS_S, retry=Retry(times=0))
        generation = Generation(prompt, max_tokens=512)
        async with (
            AsyncClient(f"127.0.0.1:{port}", reach=reach) as client,
            aclosing(client.stream(generation)) as chunks,
        ):
            async for _chunk in chunks:
                for writer in writers:
                    reset(writer)
    except ServerError:
        pass  # the connection is gone
    finally:
        listener.close()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset, as when a host or a cable goes away, not with a good-bye."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def quiet(server: Running, timeout_s: float = 20.0) -> None:
    """Until the server has nothing to do any more."""
    deadline = time.monotonic() + timeout_s
    while (await asyncio.to_thread(server.gauge, "used")) and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    await asyncio.sleep(1.0)


async def sampling(
    server: Running, samples: list[dict[str, Any]], start: float, every: float, tally: Tally, stop: asyncio.Event
) -> None:
    while not stop.is_set():
        samples.append(await asyncio.to_thread(sample, server, time.monotonic() - start, sum(tally.ended.values())))
        with suppress(asyncio.TimeoutError):  # another class before Python 3.11
            await asyncio.wait_for(stop.wait(), every)


if __name__ == "__main__":
    main()
