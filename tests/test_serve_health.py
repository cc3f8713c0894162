"""What is asked of a running server, and what answers that make no sense mean."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor

from trtbuild.errors import ServerError
from trtbuild.serve.first_token import FirstToken


class Answers(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """One model with `inputs`, over real gRPC; every request is answered with `outputs`: name -> bytes of an INT32."""

    def __init__(self, inputs: tuple[str, ...], outputs: dict[str, bytes]) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.asked: list[Any] = []

    def RepositoryIndex(self, _request: Any, _context: Any) -> Any:
        entry = service_pb2.RepositoryIndexResponse.ModelIndex(name="ensemble", version="1", state="READY")
        return service_pb2.RepositoryIndexResponse(models=[entry, entry])

    def ModelMetadata(self, _request: Any, _context: Any) -> Any:
        tensors = [service_pb2.ModelMetadataResponse.TensorMetadata(name=name, shape=[1]) for name in self.inputs]
        return service_pb2.ModelMetadataResponse(name="ensemble", inputs=tensors)

    def ModelStreamInfer(self, requests: Any, _context: Any) -> Iterator[Any]:
        for request in requests:
            self.asked.append(request)
            response = service_pb2.ModelInferResponse(model_name="ensemble", id=request.id)
            for name, content in self.outputs.items():
                response.outputs.add(name=name, datatype="INT32", shape=[1])
                response.raw_output_contents.append(content)
            response.parameters["triton_final_response"].bool_param = True
            yield service_pb2.ModelStreamInferResponse(infer_response=response)


@contextmanager
def served(answers: Answers) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(answers, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def first_token(answers: Answers) -> FirstToken:
    with served(answers) as port:
        token = FirstToken("127.0.0.1", port, 10.0)
        deadline = time.monotonic() + 20
        while not token.done and time.monotonic() < deadline:
            time.sleep(0.01)
        assert token.done
    return token


TEXT = ("text_input", "max_tokens")


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (b"\1\0\0\0", None),
        (b"\2\0\0\0", "answered with 2 tokens"),
        (b"\1\0\0\0\1\0\0\0", "asking for it failed: Value"),
    ],
)
def test_ready_needs_one_token_and_no_surprise(count: bytes, words: str | None) -> None:
    """The last one is no INT32 of one element: whatever the answer breaks, it is no token."""
    answers = Answers(TEXT, {"num_output_tokens": count})
    token = first_token(answers)
    assert token.models == ("ensemble",)
    assert len(answers.asked) == 1
    assert (token.error is None) == (words is None)
    assert token.error is None or (isinstance(token.error, ServerError) and words in token.error.message)


@pytest.mark.parametrize(("output", "words"), [("text_output", None), ("finish_reason", "answered without text")])
def test_a_model_of_the_llm_class_is_asked_too(output: str, words: str | None) -> None:
    """It has other names, and counts no tokens."""
    answers = Answers(("text_input", "streaming", "sampling_param_max_tokens"), {output: b"\1\0\0\0"})
    token = first_token(answers)
    assert token.models == ("ensemble",)
    assert (token.error is None) == (words is None)
    assert token.error is None or words in token.error.message
    (asked,) = answers.asked
    tensors = dict(zip((tensor.name for tensor in asked.inputs), asked.raw_input_contents, strict=True))
    assert deserialize_bytes_tensor(tensors["text_input"]).tolist() == [b"1"]
    assert np.frombuffer(tensors["sampling_param_max_tokens"], np.int32).tolist() == [1]
