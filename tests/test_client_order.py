"""The order of answers in the client, against a queue that is filled before the first one is read."""

from __future__ import annotations

from typing import Any

from trtbuild.client.stream import _Connection


class Result:
    """What tritonclient hands to the callback, with a text and the final flag."""

    def __init__(self, text: str, final: bool) -> None:
        self._text, self._final = text, final

    def as_numpy(self, name: str) -> Any:
        import numpy as np

        return np.array([self._text.encode()], dtype=object) if name == "text_output" else np.array([1])

    def get_response(self) -> Any:
        from tritonclient.grpc import service_pb2

        response = service_pb2.ModelInferResponse()
        response.parameters["triton_final_response"].bool_param = self._final
        return response


def test_answers_that_are_there_before_the_first_is_read_keep_their_order() -> None:
    connection = _Connection("127.0.0.1:9", "ensemble", 1.0)
    for index, text in enumerate("abc"):
        connection._answers.put((Result(text, index == 2), None))
    connection.await_first(5.0)
    chunks = [connection.next(5.0) for _ in range(3)]
    assert [chunk.text for chunk in chunks] == ["a", "b", "c"]
    assert [chunk.final for chunk in chunks] == [False, False, True]
