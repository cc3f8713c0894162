"""A stand-in for `triton_python_backend_utils`, as far as the models of `trtbuild/triton` use it, without a server.

It holds to two of its rules: a sender must not be touched after FINAL, and one that is not decoupled sends once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class TritonError:
    INTERNAL, INVALID_ARG, UNAVAILABLE, CANCELLED = 1, 3, 4, 7

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class TritonModelException(Exception):
    """What a model that cannot be called raises."""


@dataclass(frozen=True)
class Tensor:
    _name: str
    _values: Any

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._values


@dataclass(frozen=True)
class InferenceResponse:
    tensors: list[Tensor] = field(default_factory=list)
    _error: TritonError | None = None

    def __init__(self, output_tensors: Iterable[Tensor] = (), error: TritonError | None = None) -> None:
        object.__setattr__(self, "tensors", list(output_tensors))
        object.__setattr__(self, "_error", error)

    def output_tensors(self) -> list[Tensor]:
        return self.tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class Sender:
    """What a client gets. `got`: outputs of every response, or the message of its error; `finals`: FINAL flags."""

    def __init__(self, *, decoupled: bool = True) -> None:
        self.got: list[dict[str, Any] | str] = []
        self.codes: list[int] = []
        self.decoupled = decoupled
        self.cancelled = False
        self.done = threading.Event()

    def is_cancelled(self) -> bool:
        assert not self.done.is_set(), "the server crashes"
        return self.cancelled

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.done.is_set(), "the server crashes"
        assert self.decoupled or (response is not None and not self.got), "Triton wants exactly one response"
        if response is not None and (error := response.error()):
            self.got.append(error.message())
            self.codes.append(error.code())
        elif response is not None:
            self.got.append({t.name(): t.as_numpy() for t in response.output_tensors()})
        if flags or not self.decoupled:
            self.done.set()

    def texts(self) -> list[list[str]]:
        """`text_output` of every response; an error is one as well."""
        return [[one] if isinstance(one, str) else [cell.decode() for cell in one["text_output"]] for one in self.got]

    def places(self) -> list[tuple[int, int]]:
        """(batch_index, sequence_index) of every response, 0 where it is not told."""
        names = ("batch_index", "sequence_index")
        return [
            tuple(int(one[n].item()) if n in one else 0 for n in names) for one in self.got if isinstance(one, dict)
        ]  # type: ignore[misc]


@dataclass
class Request:
    """A request to the model under test."""

    wanted: set[str]
    id: str = "7"
    said: str = ""

    def request_id(self) -> str:
        return self.id

    def parameters(self) -> str:
        return self.said

    def requested_output_names(self) -> list[str]:
        return list(self.wanted)


class MetricFamily:
    """`values`: of every gauge, by its family's name and its labels."""

    GAUGE = 1
    values: dict[tuple[str, ...], float]

    def __init__(self, name: str, description: str, kind: int) -> None:
        self.name = name

    def Metric(self, labels: dict[str, str]) -> MetricFamily:
        return type(self)._gauge(self.name, labels)

    @classmethod
    def _gauge(cls, name: str, labels: dict[str, str]) -> Any:
        key = (name, *labels.values())
        cls.values[key] = 0.0
        return type("Gauge", (), {"set": lambda _, value: cls.values.__setitem__(key, value)})()


class Backend:
    """The module `pb_utils` with models behind it: name -> a function of a request's inputs to its responses."""

    Tensor, InferenceResponse, TritonError = Tensor, InferenceResponse, TritonError
    TritonModelException = TritonModelException
    TRITONSERVER_RESPONSE_COMPLETE_FINAL = TRITONSERVER_RESPONSE_COMPLETE_FINAL

    def __init__(self, models: Mapping[str, Callable[[Any], Iterable[InferenceResponse]]]) -> None:
        self.requests: list[Any] = []
        self.models = dict(models)
        self.gauges: dict[tuple[str, ...], float] = {}
        self.MetricFamily = type("MetricFamily", (MetricFamily,), {"values": self.gauges})
        backend = self

        @dataclass
        class InferenceRequest:
            model_name: str
            inputs: list[Tensor]
            requested_output_names: list[str]
            request_id: str = ""
            parameters: Any = None

            def exec(self, decoupled: bool = False) -> Any:
                backend.requests.append(self)
                answers = backend.models[self.model_name](self)
                return iter(answers) if decoupled else next(iter(answers))

            def values(self) -> dict[str, Any]:
                return {t.name(): t.as_numpy() for t in self.inputs}

        self.InferenceRequest = InferenceRequest

    def stopped(self) -> list[str]:
        """Ids of requests that were to be stopped."""
        return [request.request_id for request in self.requests if "stop" in request.values()]


def ids_of(rows: list[list[int]], **others: Any) -> InferenceResponse:
    """A response of tensorrt_llm; shorter beams are padded with -1, as the C++ backend does it."""
    width = max(map(len, rows))
    padded = [row + [-1] * (width - len(row)) for row in rows]
    told = {name: np.array([[value]]) for name, value in others.items()}
    lengths = np.array([[len(row) for row in rows]], dtype=np.int32)
    values = {"output_ids": np.array([padded], dtype=np.int32), "sequence_length": lengths, **told}
    return InferenceResponse([Tensor(name, value) for name, value in values.items()])
