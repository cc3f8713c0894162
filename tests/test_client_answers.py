"""What the clients make of answers: stop strings, text so far, several sequences; against a real tritonserver."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from tests.serve_fixture import LONGEST, Running, free_ports
from tests.tiny import trtbuild
from trtbuild.client import AsyncClient, Chunk, Client, Completion, Generation, Reach
from trtbuild.client.answers import chunk_of, completed
from trtbuild.client.failures import question_failure
from trtbuild.client.forms import ASSUMED, Form
from trtbuild.client.reading import Reading, reading_of
from trtbuild.errors import RequestError, ServerError

TEXT = Form({"text_input": "BYTES"}, frozenset())
SO_FAR = Form({"text_input": "BYTES"}, frozenset(), accumulates=True)
MODELS = ("ensemble", "tensorrt_llm_bls")


@pytest.fixture(scope="module")
def server(tiny_server: Running) -> Running:
    return tiny_server


def both(server: Running, generation: Generation, model: str) -> Completion:
    """The answer of both clients, which is the same."""

    async def asynchronously() -> Completion:
        async with AsyncClient(server.url) as client:
            return await client.infer(generation, model=model)

    with Client(server.url) as client:
        answer = client.infer(generation, model=model)
    assert asyncio.run(asynchronously()) == answer
    return answer


@pytest.mark.parametrize("model", MODELS)
def test_stop_strings_never_get_out(server: Running, model: str) -> None:
    """One that begins and ends inside of tokens, one that never comes, and one that is never completed."""
    prompt = "Once upon a time"
    whole = both(server, Generation(prompt, max_tokens=24, end_id=-1), model)
    middle = len(whole.text) // 2
    stop = whole.text[middle - 2 : middle + 3]
    wanted = whole.text[: whole.text.index(stop)]
    for stream in (True, False):
        options: dict[str, Any] = {"max_tokens": LONGEST // 2 if stream else 24, "end_id": -1, "stream": stream}
        answer = both(server, Generation(prompt, stop=("\0never", stop), **options), model)
        assert (answer.text, answer.finish_reason) == (wanted, "stop")
        assert answer.token_count <= 24
    with Client(server.url) as client:  # tokens are counted up to the one with which the stop string is complete
        chunks = list(client.stream(Generation(prompt, max_tokens=24, end_id=-1), model=model))
        seen = 0
        while stop not in "".join(chunk.text for chunk in chunks[:seen]):
            seen += 1
        streamed = client.infer(Generation(prompt, max_tokens=24, end_id=-1, stop=(stop,)), model=model)
    assert streamed.token_count == sum(chunk.token_count for chunk in chunks[:seen])
    kept = both(server, Generation(prompt, max_tokens=24, end_id=-1, stop=(stop,), cut_stops=False), model)
    assert kept.text == (whole.text if model == "ensemble" else wanted + stop), "the server looks for its tokens only"
    begun = whole.text[-3:] + "\0"
    answer = both(server, Generation(prompt, max_tokens=24, end_id=-1, stop=(begun,)), model)
    assert (answer.text, answer.finish_reason, answer.token_count) == (whole.text, "length", 24)
    assert server.wait_for_gauge("used", 0) == 0, "the engine goes on"


def test_generate_and_its_document(server: Running) -> None:
    words = ("generate", "Once upon a time", "--url", server.url, "-n", "12")
    whole = json.loads(trtbuild(*words, "--json").stdout)["text"]
    stop = whole[4:7]
    done = trtbuild(*words, "--stop", stop)
    assert done.stdout == whole[: whole.index(stop)] + "\n"


def test_several_sequences(server: Running) -> None:
    """Each has a seed of its own, and its own end."""
    with Client(server.url) as client:
        asked = Generation("Hi", max_tokens=12, end_id=-1, temperature=1.0, seed=7, num_return_sequences=3)
        found = both(server, asked, "ensemble")
        texts = [found.text, *(other.text for other in found.others)]
        alone = [
            client.infer(Generation("Hi", max_tokens=12, end_id=-1, temperature=1.0, seed=seed)).text
            for seed in (7, 8, 9)
        ]
        assert texts == alone
        assert {found.token_count, *(other.token_count for other in found.others)} == {12}
        stop = texts[1][3:8]
        cut = client.infer(
            Generation("Hi", max_tokens=12, end_id=-1, temperature=1.0, seed=7, num_return_sequences=3, stop=(stop,))
        )
    assert [cut.text, *(other.text for other in cut.others)] == [text.partition(stop)[0] for text in texts]
    assert cut.others[0].finish_reason == "stop"


def test_what_the_cpu_runtime_does_not_do_is_refused_by_it(server: Running) -> None:
    refused: dict[str, dict[str, Any]] = {
        "LoRA": {"lora_task_id": 3},
        "beam_width 2": {"beam_width": 2, "stream": False},
        "embedding bias": {"embedding_bias": {" a": 2.0}},
        "measure single requests": {"tensors": {"return_perf_metrics": [[True]]}},
    }
    with Client(server.url) as client:
        for words, options in refused.items():
            with pytest.raises(RequestError, match=words):
                client.infer(Generation("Hi", max_tokens=2, **options))
        for words, options in {
            "wants stream False": {"beam_width": 2},
            "num_return_sequences 0": {"num_return_sequences": 0},
            "no input for nonsense": {"tensors": {"nonsense": [[1]]}},
            "top_p is not made of FP32": {"tensors": {"top_p": [["much"]]}},
        }.items():
            with pytest.raises(RequestError, match=words):
                client.infer(Generation("Hi", max_tokens=2, **options))
        with pytest.raises(RequestError, match="takes no text"):
            client.infer(Generation("Hi"), model="tensorrt_llm")


def test_tensors_by_name(server: Running) -> None:
    wanted = ("cum_log_probs", "output_log_probs")
    more = {"top_k": np.array([[1]], dtype=np.int32), "return_log_probs": [[True]], "length_penalty": [[1.0]]}
    with Client(server.url) as client:
        plain = client.infer(Generation("Hi", max_tokens=5, end_id=-1, log_probs=True))
        asked = Generation("Hi", max_tokens=5, end_id=-1, temperature=0.5, tensors=more, outputs=wanted)
        found = client.infer(asked)
    assert found.text == plain.text
    assert found.tensors["cum_log_probs"].item() == pytest.approx(sum(plain.log_probs), abs=1e-4)


def test_a_forbidden_question_is_asked_once() -> None:
    """Triton gives it the status of a server that is away."""
    import grpc

    class Refusal:
        def __init__(self, text: str) -> None:
            self._text = text

        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.UNAVAILABLE

        def details(self) -> str:
            return self._text

    forbidden = Refusal("This protocol is restricted, expecting header 'triton-grpc-protocol-team'")
    assert not question_failure(forbidden, "localhost:1", True).safe
    assert question_failure(Refusal("Socket closed"), "localhost:1", True).safe


def test_stopping_a_request_of_another_client(server: Running) -> None:
    """By its id, through the model of the engine; an id that is unknown does no harm."""
    with Client(server.url) as client, Client(server.url) as other:
        stream = client.stream(Generation("x", max_tokens=LONGEST, end_id=-1), request_id="mine")
        count = next(stream).token_count
        other.stop("unknown")
        other.stop("mine")
        count += sum(chunk.token_count for chunk in stream)
        assert 0 < count < LONGEST - 10
        with pytest.raises(RequestError, match="no input to stop a request by"):
            other.stop("mine", model="ensemble")
    (dead,) = free_ports(1)
    urls = [f"localhost:{dead}", server.url]
    with Client(server.url) as client, Client(urls, reach=Reach(timeout_s=1)) as several:
        stream = client.stream(Generation("x", max_tokens=LONGEST, end_id=-1), request_id="mine")
        count = next(stream).token_count
        with pytest.raises(ServerError, match=str(dead)):  # and the one that is there is asked all the same
            several.stop("mine")
        assert 0 < count + sum(chunk.token_count for chunk in stream) < LONGEST - 10

    async def asynchronously() -> int:
        async with AsyncClient(server.url) as client, AsyncClient(server.url) as other:
            stream = client.stream(Generation("x", max_tokens=LONGEST, end_id=-1), request_id="mine")
            count = (await anext(stream)).token_count
            await other.stop("mine")
            return count + sum([chunk.token_count async for chunk in stream])

    assert 0 < asyncio.run(asynchronously()) < LONGEST - 10
    assert server.wait_for_gauge("used", 0) == 0


def test_a_server_that_gives_no_configuration(server: Running) -> None:
    """The question may be forbidden where requests are not; then the ensemble's tensors are assumed."""
    asked = Generation("Hi", max_tokens=5, end_id=-1, top_p=0.9, tensors={"top_k": np.array([[1]], dtype=np.int32)})
    with Client(server.url) as client:
        wanted = client.infer(asked)
        client._forms["ensemble"] = ASSUMED
        assert client.infer(asked) == wanted


def test_requests_and_answers_can_be_keys() -> None:
    """As callers that keep answers by request want them."""
    kept = {Generation("x"): Chunk("a", 1), Generation("x", tensors={"top_k": [[1]]}): Chunk("b", 1)}
    assert kept[Generation("x")] == Chunk("a", 1)
    assert len({*kept.values(), Completion("a", 1, "stop")}) == 3


LETTERS = st.text("ab<|", min_size=1, max_size=24)


@given(
    texts=st.lists(LETTERS, min_size=1, max_size=3),
    stops=st.lists(st.text("ab<|", min_size=1, max_size=3), max_size=2),
    size=st.integers(1, 5),
    so_far=st.booleans(),
)
def test_pieces_in_any_order(texts: list[str], stops: list[str], size: int, so_far: bool) -> None:
    """Of several sequences that take turns, as new text or as all text so far."""
    form = SO_FAR if so_far else TEXT
    reading = Reading(Generation("x", stop=tuple(stops), num_return_sequences=len(texts)), form)
    given_out: list[Chunk] = []
    for at in range(0, 24, size):
        for number, text in enumerate(texts):
            piece = text[: at + size] if so_far else text[at : at + size]
            if text[at : at + size] and not reading.ended:
                given_out += reading.take(Chunk(piece, 1, sequence=number))
    if not reading.ended:
        given_out += reading.take(Chunk("", 0, final=True))
    answer = completed(given_out, 1000)
    found = {0: answer.text} | {n: other.text for n, other in enumerate(answer.others, start=1)}
    for number, text in enumerate(texts):
        said = found.get(number, "")
        assert not any(stop in said for stop in stops)
        assert text.startswith(said)
        if not any(stop in text for stop in stops):
            assert said == text
        elif len(set(stops)) == 1:  # of several, the one that is complete first ends it
            assert said == text.partition(stops[0])[0]
    assert [chunk.final for chunk in given_out] == [False] * (len(given_out) - 1) + [True]


def test_beams_are_told_apart() -> None:
    """One response holds all of them; no runtime here makes one, so it is written by hand."""
    response = service_pb2.ModelInferResponse()
    response.parameters["triton_final_response"].bool_param = True
    strings = serialize_byte_tensor(np.array([b"one. Two", b"three"], dtype=object)).item()
    for name, kind, data in (
        ("text_output", "BYTES", strings),
        ("num_output_tokens", "INT32", np.array([4, 4], np.int32).tobytes()),
    ):
        response.outputs.add(name=name, datatype=kind, shape=[2])
        response.raw_output_contents.append(data)
    asked = Generation("x", beam_width=2, stream=False, stop=(".",))
    reading = reading_of(asked, TEXT)
    assert reading is not None
    answer = completed(reading.take(chunk_of(response)), asked.max_tokens)
    assert [answer.text, *(other.text for other in answer.others)] == ["one", "three"]
