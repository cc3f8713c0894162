"""What `tensorrt_llm_bls` does: preprocessing, tensorrt_llm and the text of its answers, for many requests at once.

Unlike the ensemble it knows where a stream begins and ends whatever the backend, so its text is exact with
TensorRT-LLM's C++ backend too. A thread serves each request, up to a number of them; another asks whether clients are
still there, and stops the engine's work for those that are not (upstream generates to the end).
"""

from __future__ import annotations

import json
import secrets
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from trtbuild.errors import TrtbuildError
from trtbuild.text.detokenize import Decodes
from trtbuild.triton.bls_answer import Answer, InnerError, Settings
from trtbuild.triton.call import Call
from trtbuild.triton.prompts import parse_switch

_CLOSING_S = 5.0
_MOST_THREADS = 256
"""Requests that are served at once; others wait for one of them to end."""


class Bls:
    """The model behind its Triton class; `pb` is Triton's Python module, `config` the model's configuration."""

    def __init__(self, pb: Any, config: Mapping[str, Any], tokenizer: Decodes) -> None:
        self._pb = pb
        self._tokenizer = tokenizer
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled"))
        self._settings = Settings(
            decoupled=decoupled,
            accumulate=decoupled and parse_switch(parameters.get("accumulate_tokens"), False),
            skip_special_tokens=parse_switch(parameters.get("skip_special_tokens"), True),
            exclude_input=parse_switch(parameters.get("exclude_input_in_output"), False),
            llm=parameters.get("tensorrt_llm_model_name") or "tensorrt_llm",
            preprocessing=parameters.get("preprocessing_model_name") or "preprocessing",
            final_output=parameters.get("final_output") or "",
        )
        self._period = float(parameters.get("cancellation_check_period_ms") or 100) / 1000
        self._calls: set[Call] = set()
        self._waiting: dict[Call, tuple[Mapping[str, Any], dict[str, Any], set[str]]] = {}
        self._most = int(parameters.get("concurrent_requests") or _MOST_THREADS)
        self._threads = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        threading.Thread(target=self._poll_clients, daemon=True, name="clients").start()

    def execute(self, request: Any, tensors: Mapping[str, Any], sender: Any) -> None:
        """Take one request; its answers go to `sender` from another thread."""
        inner_id = f"{request.request_id() or 'bls'}-{secrets.token_hex(8)}"
        call = Call(self._pb, sender, inner_id, decoupled=self._settings.decoupled)
        work = (tensors, json.loads(request.parameters() or "{}"), set(request.requested_output_names()))
        with self._lock:
            self._calls.add(call)
            self._waiting[call] = work
            more = self._threads < self._most
            self._threads += more
        if more:
            self._start_thread()

    def close(self) -> None:
        """Wait a moment for what is left; no model can be called any more, so that nothing can be stopped either."""
        self._stopping.set()
        self._refuse_waiting("the model is unloaded")
        deadline = time.monotonic() + _CLOSING_S
        while self._open_calls() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _start_thread(self) -> None:
        try:
            threading.Thread(target=self._work, daemon=True, name="bls").start()
        except RuntimeError as error:  # the system has no room for one
            with self._lock:
                self._threads -= 1
                alone = not self._threads
            if alone:
                self._refuse_waiting(str(error))

    def _refuse_waiting(self, why: str) -> None:
        with self._lock:
            calls = list(self._waiting)
            self._waiting.clear()
            self._calls.difference_update(calls)
        for call in calls:
            call.fail(f"tensorrt_llm_bls: {why}", self._pb.TritonError.UNAVAILABLE)

    def _work(self) -> None:
        """A thread: requests one after the other. One that fails ends it, for the log to say why; another goes on."""
        more = True
        try:
            while more:
                more = self._serve_next()
        finally:
            if more:
                self._start_thread()

    def _serve_next(self) -> bool:
        """False where no request waits, and the thread is counted no more."""
        with self._lock:
            if not self._waiting:
                self._threads -= 1
                return False
            call = next(iter(self._waiting))
            work = self._waiting.pop(call)
        self._serve(call, *work)
        return True

    def _serve(self, call: Call, tensors: Mapping[str, Any], parameters: dict[str, Any], wanted: set[str]) -> None:
        def ask(model: str, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Any:
            return self._request(model, inputs, outputs, call.inner_id, parameters)

        try:
            answer = Answer(self._pb, self._settings, self._tokenizer, call, ask, lambda: self._stop_engine(call))
            answer.run(tensors, wanted)
        except InnerError as error:
            call.fail(str(error), error.code)
        except TrtbuildError as error:
            call.fail(error.message, self._pb.TritonError.INVALID_ARG)
        except self._pb.TritonModelException as error:  # a model that is not there
            call.fail(str(error), self._pb.TritonError.UNAVAILABLE)
        finally:
            # A call that is still open: the log has the trace, and nobody joins this thread who could tell the client.
            call.fail("tensorrt_llm_bls failed; the server's log says why")
            with self._lock:
                self._calls.discard(call)

    def _open_calls(self) -> list[Call]:
        with self._lock:
            return list(self._calls)

    def _poll_clients(self) -> None:
        while not self._stopping.wait(self._period):
            for call in self._open_calls():
                try:
                    if call.client_left():
                        self._client_left(call)
                except self._pb.TritonModelException:  # the clients of others are still to be looked after
                    traceback.print_exc()

    def _client_left(self, call: Call) -> None:
        """Again and again for the same client: the engine may not have known the request yet."""
        with self._lock:
            waited = self._waiting.pop(call, None)
            if waited is not None:
                self._calls.discard(call)
        if waited is not None:
            call.finish()
        else:
            self._stop_engine(call)

    def _stop_engine(self, call: Call) -> None:
        """Upstream's way to cancel: a second request with the same id and `stop`; an unknown id is no error."""
        import numpy as np

        one = np.ones((1, 1), dtype=np.int32)
        inputs = {"input_ids": one, "input_lengths": one, "request_output_len": one, "stop": np.array([[True]])}
        request = self._request(self._settings.llm, inputs, ["output_ids"], call.inner_id, {})
        if self._settings.decoupled:
            for _response in request.exec(decoupled=True):
                pass
        else:
            request.exec()

    def _request(
        self, model: str, inputs: Mapping[str, Any], outputs: Sequence[str], request_id: str, parameters: dict[str, Any]
    ) -> Any:
        return self._pb.InferenceRequest(
            model_name=model,
            request_id=request_id,
            requested_output_names=list(outputs),
            inputs=[self._pb.Tensor(name, values) for name, values in inputs.items()],
            parameters=parameters,
        )
