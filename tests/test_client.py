"""Both clients against a real tritonserver: one text, many streams, cancelling, time-outs, several addresses."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import serialize_byte_tensor

from tests.serve_fixture import LONGEST, Running, demo_tokenizer, free_ports
from tests.tiny import trtbuild
from trtbuild.client import AsyncClient, Chunk, Client, Generation, Reach, Retry
from trtbuild.client.answers import _by_arrays, chunk_of
from trtbuild.client.failures import failure
from trtbuild.client.options import Endpoints
from trtbuild.client.patience import Patience
from trtbuild.errors import RequestError, ServerError

PROMPTS = [f"Number {i}: the quick brown fox" for i in range(6)]
NO_END = {"end_id": -1}


@pytest.fixture(scope="module")
def server(tiny_server: Running) -> Running:
    return tiny_server


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def test_many_streams_of_one_client_and_both_clients_agree(server: Running) -> None:
    generations = [Generation(prompt, max_tokens=9, log_probs=True, count_prompt=True, **NO_END) for prompt in PROMPTS]
    with Client(server.url) as client:
        alone = [client.infer(generation) for generation in generations]
        together: dict[int, list[Chunk]] = {}

        def run(number: int) -> None:
            together[number] = list(client.stream(generations[number]))

        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(generations))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    async def asynchronously() -> list[Any]:
        async with AsyncClient(server.url) as client:
            return await asyncio.gather(*(client.infer(generation) for generation in generations))

    for found, wanted in zip(asyncio.run(asynchronously()), alone, strict=True):
        assert found.log_probs == pytest.approx(wanted.log_probs, abs=1e-5)  # torch may run this engine
        assert replace(found, log_probs=()) == replace(wanted, log_probs=())
    for number, completion in enumerate(alone):
        chunks = together[number]
        assert text_of(chunks) == completion.text
        assert [chunk.final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        assert completion.token_count == sum(chunk.token_count for chunk in chunks) == 9
        assert completion.finish_reason == "length"
        assert len(completion.log_probs) == 9
        assert all(score < 0 for score in completion.log_probs)
        assert completion.prompt_tokens is not None
        assert completion.prompt_tokens > 5


def test_an_answer_that_fills_the_engine_ends_by_its_length(server: Running) -> None:
    """max_seq_len of the engine ends it, long before max_tokens."""
    words = LONGEST - 30
    filling = Generation(" word" * words, max_tokens=5000, **NO_END)  # one token each
    brief = replace(filling, max_tokens=3)
    with Client(server.url) as client:
        answer = client.infer(filling)
        assert (answer.token_count, answer.prompt_tokens) == (30, words)
        assert answer.finish_reason == "length"
        assert client.infer(brief).finish_reason == "length"
        stopped = client.infer(replace(filling, end_id=first_token(client, filling)))
        assert (stopped.finish_reason, stopped.token_count < 30) == ("stop", True)
        assert client.infer(filling, model="tensorrt_llm_bls").finish_reason == "length"
        assert [client.room(), client.room("tensorrt_llm_bls"), client.room("postprocessing")] == [LONGEST] * 2 + [None]

    async def run() -> None:
        async with AsyncClient(server.url) as client:
            assert await client.infer(filling) == answer
            assert await client.room() == LONGEST

    asyncio.run(run())


def first_token(client: Client, generation: Generation) -> int:
    """Id of the first token of an answer, from its text."""
    from trtbuild.text.tokenizer import load_tokenizer

    text = client.infer(replace(generation, max_tokens=1)).text
    (token,) = load_tokenizer(demo_tokenizer()).encode(text, add_special_tokens=False)
    return token


def test_cancelling(server: Running) -> None:
    endless = Generation("x", max_tokens=LONGEST, **NO_END)

    async def run() -> None:
        async with AsyncClient(server.url) as client:
            async with aclosing(client.stream(endless)) as stream:  # by leaving
                async for _ in stream:
                    break
            asyncio.get_running_loop().call_later(0.2, client.cancel, "by-id")
            with pytest.raises(RequestError, match="was cancelled"):
                await client.infer(endless, request_id="by-id")
            assert not client.cancel("by-id")
            task = asyncio.create_task(client.infer(endless))  # by cancelling the task
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    with Client(server.url) as client:
        for _ in client.stream(endless):
            break
        threading.Timer(0.2, client.cancel, ["by-id"]).start()
        with pytest.raises(RequestError, match="was cancelled"):
            client.infer(endless, request_id="by-id")
    assert server.wait_for_gauge("used", 0) == 0


def test_a_deadline(server: Running) -> None:
    endless = Generation("x", max_tokens=LONGEST, **NO_END)
    start = time.monotonic()
    with Client(server.url) as client, pytest.raises(ServerError, match=r"not complete within 0\.2 s"):
        list(client.stream(endless, deadline_s=0.2))

    async def run() -> None:
        async with AsyncClient(server.url) as client:
            with pytest.raises(ServerError, match=r"not complete within 0\.2 s"):
                await client.infer(endless, deadline_s=0.2)

    asyncio.run(run())
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("texts", [[], [""], ["Grüße 🙂"], ["a", "", "bc"]])
@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("prompt", [None, 70000])
def test_a_chunk_is_what_tritonclient_reads(texts: list[str], final: bool, prompt: int | None) -> None:
    counts = np.arange(3, 3 + len(texts), dtype=np.int32)
    strings = serialize_byte_tensor(np.array([text.encode() for text in texts], dtype=object))
    response = service_pb2.ModelInferResponse()
    response.parameters["triton_final_response"].bool_param = final
    for name, kind, data in (
        ("text_output", "BYTES", strings.item() if texts else b""),
        ("num_output_tokens", "INT32", counts.tobytes()),
        *([] if prompt is None else [("num_input_tokens", "INT32", np.int32(prompt).tobytes())]),
    ):
        response.outputs.add(name=name, datatype=kind, shape=[1 if name == "num_input_tokens" else len(texts)])
        response.raw_output_contents.append(data)
    read = InferResult(response)
    text = b"".join(read.as_numpy("text_output").tolist()).decode()
    count = int(read.as_numpy("num_output_tokens").sum())
    assert chunk_of(response) == Chunk(text, count, final, prompt_tokens=prompt)
    assert _by_arrays(response) == chunk_of(response)


def test_a_server_that_is_away_is_left_out(server: Running) -> None:
    (dead,) = free_ports(1)
    urls = [f"127.0.0.1:{dead}", server.url]
    wanted = Generation("Hi", max_tokens=2, **NO_END)
    with Client(urls) as client:
        texts = {client.infer(wanted).text for _ in range(4)}
    with Client(server.url) as client:
        assert texts == {client.infer(wanted).text}

    done = trtbuild("generate", "Hi", "-n", 2, "--url", ",".join(urls))
    assert (done.stdout, done.returncode) == (f"{texts.copy().pop()}\n", 0)

    async def run() -> None:
        async with AsyncClient(urls) as client:
            assert {(await client.infer(wanted)).text for _ in range(4)} == texts
        async with AsyncClient(urls[0], reach=Reach(retry=Retry(times=1))) as client:
            with pytest.raises(ServerError, match="no server at"):
                await client.ready()

    asyncio.run(run())
    with Client(urls[0], reach=Reach(retry=Retry(times=0))) as client, pytest.raises(ServerError, match="no server at"):
        client.infer(wanted)


def test_a_server_that_hangs(server: Running) -> None:
    """A stopped process accepts connections and never answers."""
    reach = Reach(timeout_s=0.5, retry=Retry(times=0))
    pids = server.named("tritonserver")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        with Client(server.url, reach=reach) as client, pytest.raises(ServerError, match="does not answer"):
            client.infer(Generation("Hi", max_tokens=2))

        async def run() -> None:
            async with AsyncClient(server.url, reach=reach) as client:
                with pytest.raises(ServerError, match="does not answer"):
                    await client.infer(Generation("Hi", max_tokens=2))

        asyncio.run(run())
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    with Client(server.url) as client:
        assert client.infer(Generation("Hi", max_tokens=2, **NO_END)).token_count == 2


def test_questions(server: Running) -> None:
    with Client(server.url) as client:
        assert client.live()
        assert client.ready()
        assert client.model_ready("postprocessing")
        assert not client.model_ready("nope")
        assert client.metadata()["name"] == "triton"
        tensors = {tensor["name"]: tensor for tensor in client.metadata("ensemble")["inputs"]}
        assert tensors["max_tokens"] == {"name": "max_tokens", "datatype": "INT32", "shape": [-1, 1]}
        config = client.config("tensorrt_llm")
        assert config["model_transaction_policy"] == {"decoupled": True}
        assert config["parameters"]["gpt_model_type"]["string_value"] == "inflight_fused_batching"
        before = client.statistics("ensemble")[0]["inference_stats"]["success"]["count"]
        client.infer(Generation("Hi", max_tokens=1))
        assert client.statistics("ensemble")[0]["inference_stats"]["success"]["count"] == before + 1
        assert {model["name"] for model in client.index()} >= {"ensemble", "tensorrt_llm"}
        with pytest.raises(RequestError, match="explicit model load / unload is not allowed"):
            client.load("ensemble")
    done = trtbuild("client", "config", "ensemble", "--url", server.url)
    assert json.loads(done.stdout)["platform"] == "ensemble"
    assert trtbuild("client", "ready", "nope", "--url", server.url, "--json").returncode == 7
    assert trtbuild("client", "--timeout", "5", "live", "--url", server.url).stdout == "yes\n"
    assert trtbuild("client", "--header", "nonsense", "live", "--url", server.url).returncode == 2


def test_what_may_be_tried_again() -> None:
    assert failure("UNAVAILABLE", "failed to connect to all addresses", "u", answered=False).safe
    assert not failure("UNAVAILABLE", "Socket closed", "u", answered=False).safe
    assert not failure("UNAVAILABLE", "failed to connect to all addresses", "u", answered=True).safe
    assert failure("", "Maximum queue size of 4 has been reached", "u", answered=False).safe
    assert not failure("", "Prompt length (9) exceeds", "u", answered=False).safe
    for said in (
        "in ensemble 'ensemble', Server is stopping, scheduler for model has stopped accepting new inference requests",
        "GRPC server is shutting down and has stopped accepting new requests.",
        "Server not ready",
        "Request for unknown model: 'ensemble' version 1 is not at ready state",
        "Request for unknown model: 'ensemble' has no available versions",
        "Request timeout expired",
    ):
        assert isinstance(failure("", said, "u", answered=False).error, ServerError), said
        assert failure("", said, "u", answered=False).safe, said
        assert not failure("", said, "u", answered=True).safe, said
    assert not failure("", "Request for unknown model: 'x' is not found", "u", answered=False).safe
    assert [Retry().pause_s(attempt) for attempt in (1, 2, 3, 9)] == [0.1, 0.2, 0.4, 2.0]


def test_addresses_in_turn() -> None:
    endpoints = Endpoints(["a", "b", "c"], rest_s=5)
    assert [endpoints.pick(0) for _ in range(4)] == ["a", "b", "c", "a"]
    endpoints.failed("b", 10)
    assert "b" not in {endpoints.pick(11) for _ in range(6)}
    assert "b" in {endpoints.pick(15) for _ in range(3)}
    for url in "abc":
        endpoints.failed(url, 20)
    assert {endpoints.pick(20) for _ in range(3)} == {"a", "b", "c"}


def test_patience() -> None:
    patience = Patience("u", start=0, first_s=2, stall_s=60, deadline_s=100)
    assert patience.wait_s(0) == 2
    assert [patience.unsure(now) for now in (1, 2, 3)] == [False, True, False]
    assert patience.wait_s(2) == 58
    patience.seen(30)
    assert patience.late(89) is None
    assert "stalls" in str(patience.late(90))
    patience.seen(95)
    assert "100 s" in str(patience.late(100))
