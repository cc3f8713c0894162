"""`tensorrt_llm_bls`: text in, text out by one model that calls `tensorrt_llm`, for both targets.

Tokenizing and detokenizing happen in this process, where a stream's state lives from its first to its last token: text
is exact whatever the request ids are, and stop words are looked for in the text. Each request has a thread, as what it
does is to wait; Python runs between the tokens of others.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trtbuild.errors import RequestError, TrtbuildError
from trtbuild.text.tokenizer import load_tokenizer
from trtbuild.triton.chain import TextRequest, text_request
from trtbuild.triton.prompts import Prompts, parse_switch
from trtbuild.triton.texts import Texts

PASSED_ON = (
    *("cum_log_probs", "output_log_probs", "context_logits", "generation_logits", "batch_index", "sequence_index"),
    *("kv_cache_alloc_new_blocks", "kv_cache_reused_blocks", "kv_cache_alloc_total_blocks", "arrival_time_ns"),
    *("first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns", "acceptance_rate"),
    *("total_accepted_draft_tokens", "total_draft_tokens", "num_input_tokens", "num_output_tokens"),
)
"""Outputs of `tensorrt_llm` that are outputs of this model."""
_READ = ("output_ids", "sequence_length")
_CPU = ("STREAM_ID", "IS_FINAL")


class Answer:
    """The response sender of one request; it must not be touched after its FINAL flag, which crashes the server."""

    def __init__(self, pb: Any, sender: Any, *, decoupled: bool) -> None:
        self._pb, self._sender, self._decoupled = pb, sender, decoupled
        self._lock = threading.Lock()
        self._open = True
        self.gone = False
        """The client cancelled, or left."""

    def send(self, tensors: Mapping[str, Any], *, final: bool = False) -> None:
        made = [self._pb.Tensor(name, values) for name, values in tensors.items()]
        self._respond(self._pb.InferenceResponse(output_tensors=made), final=final)

    def fail(self, message: str, kind: Any = None) -> None:
        error = self._pb.TritonError(message, *(() if kind is None else (kind,)))
        self._respond(self._pb.InferenceResponse(output_tensors=[], error=error), final=True)

    def end(self) -> None:
        """End an answer that has had its last response; one that is still open where Triton wants exactly one fails."""
        if not self._decoupled:
            self.fail("the request was cancelled", self._pb.TritonError.CANCELLED)
        with self._lock:
            if self._open:
                self._open = False
                self._sender.send(flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def left(self) -> bool:
        """True once, when the client is found to have cancelled."""
        with self._lock:
            if not self._open or self.gone or not self._sender.is_cancelled():
                return False
            self.gone = True
            return True

    def _respond(self, response: Any, *, final: bool) -> None:
        with self._lock:
            if not self._open:
                return
            if final:
                self._open = False
                self._sender.send(response, flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            else:
                self._sender.send(response)


class Bls:
    """The model. `execute` is called by the Python backend, the rest by threads of its own."""

    def __init__(self, pb: Any, parameters: Mapping[str, str], repository: Path, *, decoupled: bool) -> None:
        self._pb, self._decoupled = pb, decoupled
        self._model = parameters.get("tensorrt_llm_model_name") or "tensorrt_llm"
        self._accumulate = parse_switch(parameters.get("accumulate_tokens"), False)
        self._skip_special = parse_switch(parameters.get("skip_special_tokens"), True)
        self._tokenizer = load_tokenizer(repository / parameters["tokenizer_dir"])
        self._prompts = Prompts(
            self._tokenizer,
            add_special_tokens=parse_switch(parameters.get("add_special_tokens"), True),
            max_input_len=int(parameters.get("max_input_len") or 0),
        )
        own = _CPU if parse_switch(parameters.get("stream_ids"), False) else ()
        self._outputs = [*_READ, *PASSED_ON, *own]
        self._pool = ThreadPoolExecutor(int(parameters.get("concurrent_requests") or 64), thread_name_prefix="bls")
        self._waiting: dict[str, Answer] = {}  # id of the inner request -> answer
        self._closing = threading.Event()
        self._period = float(parameters.get("cancellation_check_period_ms") or 100) / 1000
        threading.Thread(target=self._poll_clients, daemon=True, name="clients").start()

    def execute(self, tensors: Mapping[str, Any], parameters: Mapping[str, Any], sender: Any) -> None:
        """Take one request; its answers go to `sender`, now or later."""
        answer = Answer(self._pb, sender, decoupled=self._decoupled)
        self._pool.submit(self._run, answer, tensors, parameters.get("add_special_tokens"))

    def close(self) -> None:
        self._closing.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, answer: Answer, tensors: Mapping[str, Any], add_special_tokens: bool | None) -> None:
        try:
            self._serve(answer, text_request(tensors, self._prompts, add_special_tokens))
        except TrtbuildError as error:
            answer.fail(error.message, self._pb.TritonError.INVALID_ARG)
        except Exception as error:
            answer.fail(f"{type(error).__name__}: {error}")

    def _serve(self, answer: Answer, request: TextRequest) -> None:
        """Raises RequestError for what cannot be served in this form."""
        texts = Texts(request, self._tokenizer, self._skip_special, self._accumulate)
        if self._accumulate and request.streaming and request.beams > 1:
            raise RequestError("Accumulation of tokens is only implemented for beam width = 1")
        with self._named(answer) as inner_id:
            for response in self._responses(request, inner_id):
                if response.has_error():
                    answer.fail(response.error().message())
                    continue  # the rest must be taken as well
                found = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
                if "output_ids" not in found:
                    continue
                ended = texts.done
                lines = texts.text_of(found)
                if lines is not None:
                    told = {name: found[name] for name in PASSED_ON if name in found}
                    last = texts.done or not self._decoupled
                    answer.send({"text_output": _strings(lines), **told}, final=last)
                if texts.stopped and not ended:
                    self._stop(inner_id)
            for (row, number), text in texts.rest():
                answer.send({"text_output": _strings([text]), **_place(request, row, number)})
        answer.end()

    def _responses(self, request: TextRequest, inner_id: str) -> Iterable[Any]:
        tensors = [self._pb.Tensor(name, values) for name, values in request.inner.items()]
        inner = self._inner(tensors, self._outputs, inner_id)
        return inner.exec(decoupled=True) if self._decoupled else (inner.exec(),)

    def _inner(self, tensors: list[Any], outputs: list[str], inner_id: str) -> Any:
        return self._pb.InferenceRequest(
            model_name=self._model, request_id=inner_id, inputs=tensors, requested_output_names=outputs
        )

    @contextmanager
    def _named(self, answer: Answer) -> Iterator[str]:
        """An id for the inner request: a client's own may be used twice, and `stop` goes by id."""
        inner_id = uuid.uuid4().hex
        self._waiting[inner_id] = answer
        try:
            yield inner_id
        finally:
            del self._waiting[inner_id]

    def _poll_clients(self) -> None:
        """Clients that cancelled or disconnected; Triton only answers when asked."""
        while not self._closing.wait(self._period):
            for inner_id, answer in list(self._waiting.items()):
                if answer.left() or answer.gone:  # again and again: the inner request may not have begun
                    self._stop(inner_id)

    def _stop(self, inner_id: str) -> None:
        """Upstream's way to cancel: a second request with the same id, `stop` and the tensors that are required."""
        import numpy as np

        one = np.ones((1, 1), dtype=np.int32)
        tensors = {"input_ids": one, "input_lengths": one, "request_output_len": one, "stop": np.array([[True]])}
        made = [self._pb.Tensor(name, values) for name, values in tensors.items()]
        request = self._inner(made, list(_READ), inner_id)
        for _ in request.exec(decoupled=True) if self._decoupled else (request.exec(),):
            pass


def _strings(lines: list[str]) -> Any:
    """(1, beams) of bytes."""
    import numpy as np

    return np.array([line.encode() for line in lines], dtype=object).reshape(1, -1)


def _place(request: TextRequest, row: int, number: int) -> dict[str, Any]:
    import numpy as np

    named = {"batch_index": (row, len(request.prompts) > 1), "sequence_index": (number, request.sequences > 1)}
    return {name: np.array([[value]], dtype=np.int32) for name, (value, told) in named.items() if told}
