"""tensorrt_llm_bls on the real tritonserver: the text of the runtime alone, stop words, cancelling; its text state."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.serve_fixture import Running, build_repository, demo_tokenizer, running
from tests.test_serve_streams import PROMPTS, alone
from trtbuild.client import Client, Generation
from trtbuild.errors import RequestError
from trtbuild.text.tokenizer import Tokenizer, load_tokenizer
from trtbuild.triton.chain import TextRequest, text_request
from trtbuild.triton.prompts import Prompts
from trtbuild.triton.texts import Texts

MODEL = "tensorrt_llm_bls"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("bls")
    with running(build_repository(folder, bls=True), folder / "logs") as started:
        yield started


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(demo_tokenizer())


def test_streams_at_once(server: Running) -> None:
    expected = alone(server.repository, PROMPTS[:8], 40)
    found: dict[int, tuple[str, int]] = {}

    def ask(index: int) -> None:
        with Client(server.url, model=MODEL) as client:
            chunks = list(client.stream(Generation(PROMPTS[index], max_tokens=40)))
        assert chunks[-1].final
        found[index] = "".join(chunk.text for chunk in chunks), sum(chunk.token_count for chunk in chunks)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [found[index] for index in range(8)] == [(text, 40) for text in expected]
    assert server.wait_for_gauge("used", 0) == 0


def test_whole_answers_and_log_probs_equal_the_ensembles(server: Running) -> None:
    asked = Generation(PROMPTS[3], max_tokens=20, log_probs=True)
    with Client(server.url) as client:
        assert client.infer(asked, model=MODEL) == client.infer(asked, model="ensemble")


def test_stop_words_never_leak(server: Running) -> None:
    """Characters out of the middle of tokens: the engine cannot stop there, the text does."""
    with Client(server.url, model=MODEL) as client:
        whole = client.infer(Generation(PROMPTS[1], max_tokens=60)).text
        at = len(whole) // 2
        stop = whole[at : at + 4]
        first = whole.index(stop)
        chunks = [chunk.text for chunk in client.stream(Generation(PROMPTS[1], max_tokens=60, stop=(stop,)))]
        assert "".join(chunks) == whole[:first]
        assert client.infer(Generation(PROMPTS[1], max_tokens=60, stop=(stop,))).text == whole[:first]
    assert server.wait_for_gauge("used", 0) == 0


def test_a_client_that_leaves(server: Running) -> None:
    with Client(server.url, model=MODEL) as client:
        chunks = client.stream(Generation(PROMPTS[0], max_tokens=900))
        next(chunks)
        begun = time.monotonic()
        chunks.close()
        assert server.wait_for_gauge("used", 0) == 0
        assert time.monotonic() - begun < 5
        assert client.infer(Generation("Hi", max_tokens=3)).token_count == 3


@pytest.mark.parametrize(
    ("generation", "said"),
    [
        (Generation("", max_tokens=4), "the prompt is empty"),
        (Generation("x " * 2000, max_tokens=4), "more than the engine's max_input_len"),
        (Generation("x", max_tokens=4, guide="{}", guide_type="json"), "guided decoding"),
    ],
)
def test_what_is_refused(server: Running, generation: Generation, said: str) -> None:
    with Client(server.url, model=MODEL) as client, pytest.raises(RequestError, match=said):
        client.infer(generation)


def request_of(tokenizer: Tokenizer, **changes: Any) -> TextRequest:
    base = {"text_input": [[b"Hello"]], "max_tokens": [[8]], "stream": [[True]], **changes}
    tensors = {name: np.array(value) for name, value in base.items()}
    return text_request(tensors, Prompts(tokenizer))


def responses(ids: list[int], row: int = 0) -> Iterator[dict[str, Any]]:
    for token in ids:
        output = {"output_ids": np.array([[[token]]], dtype=np.int32), "sequence_length": np.array([[1]])}
        yield {**output, "batch_index": np.array([[row]], dtype=np.int32)}


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_backend_that_tells_no_end(tokenizer: Tokenizer, accumulate: bool) -> None:
    """TensorRT-LLM's: two rows of a batch in turn, with characters of several tokens; the rest comes at the end."""
    texts = ["naïve 👩‍🚀 你好 done", "日本語 and é"]
    request = request_of(tokenizer, text_input=[[b"a"], [b"b"]], max_tokens=[[8], [8]], stream=[[True], [True]])
    state, pieces = Texts(request, tokenizer, accumulate=accumulate), [[""], [""]]
    streams = [list(responses(tokenizer.encode(text), row)) for row, text in enumerate(texts)]
    for step in range(max(map(len, streams))):
        for row, stream in enumerate(streams):
            if step < len(stream):
                pieces[row] += state.text_of(stream[step]) or []
    assert not state.done
    for (row, _), text in state.rest():
        pieces[row].append(text)
    joined = [row[-1] if accumulate else "".join(row) for row in pieces]
    assert joined == [tokenizer.decode(tokenizer.encode(text)) for text in texts]
    assert state.done
    if accumulate:
        assert all(later.startswith(earlier) for row in pieces for earlier, later in itertools.pairwise(row))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_tokens": [[0]]}, "max_tokens must be a single value > 0"),
        ({"image_url_input": [[b"http://x"]]}, "image_url_input: this repository serves a text-only model"),
        ({"num_draft_tokens": [[4]]}, "without draft model"),
        ({"stop_words": [[b"a"], [b"b"]]}, "stop_words has 2 rows"),
    ],
)
def test_refused_before_the_engine(tokenizer: Tokenizer, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        request_of(tokenizer, **changes)


def test_a_stop_word_in_the_prompt_does_not_count(tokenizer: Tokenizer) -> None:
    request = request_of(tokenizer, text_input=[[b"one stop two"]], stop_words=[[b"stop"]], stream=[[False]])
    ids = [*request.prompts[0], *tokenizer.encode(" three stop four")]
    whole = {"output_ids": np.array([[ids]]), "sequence_length": np.array([[len(ids)]])}
    assert Texts(request, tokenizer).text_of(whole) == ["one stop two three "]
