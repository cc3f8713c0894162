"""Through the real tritonserver: the same text as the runtime alone, cancellation, and requests that are wrong."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.serve_fixture import LONGEST, Running, demo_tokenizer
from tests.tiny import ROOT
from trtbuild.client import Generation, generate_stream
from trtbuild.errors import RequestError, ServerError
from trtbuild.runtime.request import Output, Request

PROMPTS = [f"Number {i}: " + "the quick brown fox " * (i % 5) + "👍 你好"[: i % 4] for i in range(16)]


@pytest.fixture
def server(tiny_server: Running) -> Running:
    return tiny_server


def alone(repository: Path, prompts: list[str], count: int) -> list[str]:
    """What the runtime generates without Triton, decoded whole."""
    from trtbuild.runtime.group import RankGroup
    from trtbuild.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(demo_tokenizer())
    texts = []
    with RankGroup(repository.parent / "engine") as group:
        for index, prompt in enumerate(prompts):
            outputs: queue.Queue[Output] = queue.Queue()
            ids = tuple(tokenizer.encode(prompt))
            group.submit(Request(str(index), ids, count, end_id=tokenizer.end_ids[0]), outputs.put)
            tokens: list[int] = []
            while True:
                output = outputs.get(timeout=60)
                tokens.extend(output.token_ids)
                if output.finish_reason:
                    break
            texts.append(tokenizer.decode(tokens))
    return texts


def collect(url: str, prompt: str, count: int, into: dict[str, Any], **changes: Any) -> None:
    chunks = list(generate_stream(url, Generation(prompt, max_tokens=count, **changes)))
    into[prompt] = ("".join(chunk.text for chunk in chunks), sum(chunk.token_count for chunk in chunks))


def test_sixteen_streams_while_one_cancels_and_one_disconnects(server: Running) -> None:
    expected = alone(server.repository, PROMPTS, 24)
    results: dict[str, Any] = {}
    threads = [threading.Thread(target=collect, args=(server.url, p, 24, results)) for p in PROMPTS]
    cancelled = generate_stream(server.url, Generation("cancelled", max_tokens=LONGEST, end_id=-1))
    gone = direct_stream(server.url, LONGEST)
    assert [next(cancelled).token_count for _ in range(3)]
    gone.get(timeout=10)
    for thread in threads:
        thread.start()
    cancelled.close()  # type: ignore[attr-defined]
    gone.client.stop_stream(cancel_requests=True)
    for thread in threads:
        thread.join(120)
    assert [results[p][0] for p in PROMPTS] == expected
    assert server.wait_for_gauge("used", 0) == 0
    assert server.wait_for_gauge("free", server.gauge("max")) == server.gauge("max")


def test_ctrl_c_cancels_on_the_server(server: Running) -> None:
    program = "from trtbuild.cli.app import main; main()"
    options = ["--url", server.url, "--max-tokens", str(LONGEST)]
    command = [sys.executable, "-c", program, "generate", "Once upon a time", *options]
    before = server.gauge("iteration_counter")
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it in background jobs
    )
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _text, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in said
    assert server.wait_for_gauge("used", 0) == 0
    assert server.gauge("iteration_counter") - before < LONGEST - 100, "it was generated to the end"


def test_a_client_of_the_ensemble_that_leaves_frees_its_blocks(server: Running) -> None:
    """The ensemble does not tell tensorrt_llm: postprocessing does."""
    chunks = generate_stream(server.url, Generation("x", max_tokens=LONGEST, end_id=-1))
    before = server.gauge("iteration_counter")
    next(chunks)
    time.sleep(0.3)  # two refreshes of the metrics
    assert server.gauge("used") >= 1
    chunks.close()  # type: ignore[attr-defined]
    assert server.wait_for_gauge("used", 0) == 0
    assert server.gauge("iteration_counter") - before < LONGEST - 100, "it was generated to the end"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_connection_that_is_reset_frees_its_blocks(server: Running, protocol: str) -> None:
    """No good-bye, as when a cable is pulled: over HTTP a bare socket, over gRPC a relay in between."""
    before = server.gauge("iteration_counter")
    if protocol == "http":
        stream = socket.create_connection(("127.0.0.1", server.http))
        body = json.dumps({"text_input": "x", "max_tokens": LONGEST, "stream": True, "end_id": -1}).encode()
        head = f"POST /v2/models/ensemble/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        stream.sendall(head.encode() + body)
        assert stream.recv(4096)
        reset(stream)
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            chunks = generate_stream(
                f"127.0.0.1:{listener.getsockname()[1]}", Generation("x", max_tokens=LONGEST, end_id=-1)
            )
            ends: list[socket.socket] = []
            threading.Thread(target=relay, args=(listener, server.grpc, ends), daemon=True).start()
            next(chunks)
            for end in ends:
                reset(end)
            with pytest.raises(ServerError):
                list(chunks)
    time.sleep(0.3)  # two refreshes of the metrics
    assert server.wait_for_gauge("used", 0) == 0
    assert server.gauge("iteration_counter") - before < LONGEST - 100, "it was generated to the end"


def reset(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.shutdown(socket.SHUT_RD)  # wakes the thread that reads it
    end.close()


def relay(listener: socket.socket, port: int, ends: list[socket.socket]) -> None:
    near, _ = listener.accept()
    far = socket.create_connection(("127.0.0.1", port))
    ends.extend((near, far))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            return

    threading.Thread(target=pump, args=(far, near), daemon=True).start()
    pump(near, far)


def test_token_counts_are_exact_and_max_tokens_is_cut_to_the_engine(server: Running) -> None:
    results: dict[str, Any] = {}
    collect(server.url, "count", 10, results, end_id=-1)
    assert results["count"][1] == 10
    words = LONGEST - 24
    prompt = " word" * words  # one token each
    collect(server.url, prompt, 2**31 - 1, results, end_id=-1)
    assert results[prompt][1] == LONGEST - words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "word " * 2000}, "more than the engine's max_input_len"),
        ({"max_tokens": 0}, "max_tokens 0 must be"),
        ({"max_tokens": -5}, "max_tokens -5 must be"),
        ({"max_tokens": 2**31}, "max_tokens 2147483648 must be"),
        ({"top_p": 1.5}, "top_p 1.5"),
        ({"repetition_penalty": -1.0}, "repetition_penalty -1.0"),
    ],
)
def test_refused_requests_say_why(server: Running, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        list(generate_stream(server.url, Generation(**{"prompt": "Hi", "max_tokens": 4, **changes})))
    assert list(generate_stream(server.url, Generation("still alive", max_tokens=2, end_id=-1)))


def test_unknown_model(server: Running) -> None:
    with pytest.raises(ServerError, match=r"no such model ready.*'nope'"):
        list(generate_stream(server.url, Generation("Hi"), model="nope"))


class direct_stream:
    """A client of `tensorrt_llm` itself; answers come through `get`."""

    def __init__(self, url: str, max_tokens: int, request_id: str = "direct", **tensors: Any) -> None:
        import numpy as np
        import tritonclient.grpc as grpcclient

        self.client = grpcclient.InferenceServerClient(url)
        self.answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        values = {
            "input_ids": np.array([[5, 6, 7]], dtype=np.int32),
            "input_lengths": np.array([[3]], dtype=np.int32),
            "request_output_len": np.array([[max_tokens]], dtype=np.int32),
            "streaming": np.array([[True]]),
            **tensors,
        }
        inputs = []
        for name, value in values.items():
            if value is None:
                continue
            kind = {"int32": "INT32", "bool": "BOOL", "float32": "FP32", "int64": "INT64"}[str(value.dtype)]
            inputs.append(grpcclient.InferInput(name, list(value.shape), kind))
            inputs[-1].set_data_from_numpy(value)
        self.client.start_stream(lambda result, error: self.answers.put((result, error)))
        self.client.async_stream_infer("tensorrt_llm", inputs, request_id=request_id, enable_empty_final_response=True)

    def get(self, timeout: float = 20) -> Any:
        result, error = self.answers.get(timeout=timeout)
        if error is not None:
            raise error
        return result

    def rest(self) -> list[Any]:
        """All answers up to the final flag."""
        answers = []
        while True:
            answers.append(self.get())
            if answers[-1].get_response().parameters["triton_final_response"].bool_param:
                self.client.stop_stream()
                return answers


def test_wrong_tensors_are_errors_of_that_request_only(server: Running) -> None:
    import numpy as np
    from tritonclient.utils import InferenceServerException

    wrong: list[tuple[dict[str, Any], str]] = [
        ({"nonsense": np.array([[1]], dtype=np.int32)}, "nonsense"),
        ({"request_output_len": None}, "request_output_len"),
        ({"input_ids": np.array([[5]], dtype=np.int64)}, "data-type|datatype"),
        ({"temperature": np.array([[0.5, 0.6]], dtype=np.float32)}, "temperature"),
        ({"input_ids": np.array([5], dtype=np.int32)}, "input_ids|shape"),
        ({"input_ids": np.array([[10**7]], dtype=np.int32)}, "10000000|vocab"),
        ({"beam_width": np.array([[4]], dtype=np.int32)}, "beam_width 4.*its max_beam_width is 1"),
        ({"num_return_sequences": np.array([[33]], dtype=np.int32)}, "num_return_sequences 33 must be within 1..32"),
        ({"return_perf_metrics": np.array([[True]])}, "return_perf_metrics"),
        ({"stop_words_list": np.array([[[1, 2], [9, 9]]], dtype=np.int32)}, "stop_words_list"),
        ({"lora_config": np.array([[[0, 0, 8]]], dtype=np.int32)}, "LoRA"),
        ({"temperature": np.array([[-1.0]], dtype=np.float32)}, "temperature"),
    ]
    for tensors, words in wrong:
        with pytest.raises(InferenceServerException, match=words):
            pytest.fail(f"{tensors}: {direct_stream(server.url, 4, **tensors).rest()}")
    assert direct_stream(server.url, 3).rest()
    assert server.wait_for_gauge("used", 0) == 0


def test_stop_by_request_id_and_log_probs_and_batches(server: Running) -> None:
    import numpy as np

    stream = direct_stream(server.url, LONGEST, request_id="stop-me")
    stream.get()
    direct_stream(server.url, 1, request_id="stop-me", stop=np.array([[True]])).rest()
    assert len(stream.rest()) < LONGEST - 10
    answers = direct_stream(server.url, 5, return_log_probs=np.array([[True]])).rest()
    logs = [r.as_numpy("output_log_probs") for r in answers if r.as_numpy("output_log_probs") is not None]
    assert sum(values.size for values in logs) == 5
    total = next(t for r in reversed(answers) if (t := r.as_numpy("cum_log_probs")) is not None)
    assert np.isclose(total, sum(values.sum() for values in logs), atol=1e-4)
    batch = direct_stream(
        server.url,
        4,
        input_ids=np.array([[5, 6, 7], [5, 6, 0]], dtype=np.int32),
        input_lengths=np.array([[3], [2]], dtype=np.int32),
        request_output_len=np.array([[4], [6]], dtype=np.int32),
        streaming=np.array([[False], [False]]),
        exclude_input_in_output=np.array([[True], [True]]),
    ).rest()
    rows = {
        int(r.as_numpy("batch_index").item()): r.as_numpy("output_ids").size
        for r in batch
        if r.as_numpy("output_ids") is not None
    }
    assert rows == {0: 4, 1: 6}
    assert server.wait_for_gauge("used", 0) == 0
