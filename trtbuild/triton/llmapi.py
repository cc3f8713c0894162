"""What the `llmapi` model does: requests of Triton to tensorrt_llm.LLM, on an event loop of its own thread.

tensorrt_llm is imported when the model is loaded, and nowhere else in trtbuild's serving.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtbuild.errors import EngineError, TrtbuildError
from trtbuild.handover import DRAINING, Gate
from trtbuild.triton.call import Call
from trtbuild.triton.llmapi_tensors import Deltas, LlmRequest, answer_tensors, count_tensors, parse_llm_request
from trtbuild.triton.metrics import MetricsReporter
from trtbuild.triton.prompts import parse_switch

MODEL_FILE = "model.yaml"
FILE_ENV = "LLM_CONFIG_PATH"
"""Upstream's way to name another file, from the version folder."""
_METRICS_S = 0.1
"""As often as the cpu engine's metrics are refreshed: `trtbuild serve` drains by them."""


def read_arguments(folder: Path, environment: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arguments of the LLM class, triton_config) of model.yaml.

    Raises:
        EngineError: it is missing or no mapping.
    """
    import yaml

    path = folder / environment.get(FILE_ENV, MODEL_FILE)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise EngineError(f"'{path.name}' containing TRT-LLM engine args not found in {folder}: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("triton_config") or {}, dict):
        raise EngineError(f"{path} is not a mapping of arguments")
    return {k: v for k, v in document.items() if k != "triton_config"}, dict(document.get("triton_config") or {})


class LlmService:
    """One LLM behind Triton; `config`: the model's configuration, `folder`: its version folder."""

    def __init__(self, pb: Any, config: Mapping[str, Any], folder: Path) -> None:
        arguments, triton = read_arguments(folder, os.environ)
        self._pb = pb
        self._decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled"))
        if bool(triton.get("decoupled", False)) != self._decoupled:
            raise EngineError(
                f"{MODEL_FILE} says decoupled {bool(triton.get('decoupled'))}, config.pbtxt {self._decoupled}: write "
                "the same in both, as Triton reads the one and this model the other"
            )
        self._accumulate = bool(triton.get("accumulate_tokens", False))
        told = config.get("parameters", {}).get("accumulate_tokens", {}).get("string_value")
        if told is not None and parse_switch(told, False) != self._accumulate:
            raise EngineError(
                f"{MODEL_FILE} says accumulate_tokens {self._accumulate}, config.pbtxt {told}: write the same in both, "
                "as this model reads the one and clients the other"
            )
        self._period = float(triton.get("cancellation_check_period_ms", 100)) / 1000
        self._gate = Gate()
        self._calls: set[Call] = set()  # from their arrival on; the tasks are the loop's own
        self._tasks: dict[asyncio.Task[None], Call] = {}
        from tensorrt_llm import LLM, SamplingParams

        self._sampling_params = SamplingParams
        self._llm = LLM(**arguments)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True, name="llm")
        self._thread.start()
        name = str(config.get("name") or folder.parent.name)
        self._metrics = MetricsReporter(pb, name, folder.name, self.stats, _METRICS_S, only=self.stats())

    def stats(self) -> dict[str, int]:
        """Counters for the metrics, by the names that the cpu runtime gives its own.

        None of steps: while the LLM class works on a whole answer, there is nothing to be seen of it.
        """
        return {"active_requests": len(self._calls)}

    def execute(self, request_id: str, tensors: Mapping[str, Any], sender: Any) -> None:
        """Take one request; its answers go to `sender` from the event loop."""
        call = Call(self._pb, sender, request_id, decoupled=self._decoupled)
        try:
            request = parse_llm_request(tensors, decoupled=self._decoupled)
        except TrtbuildError as error:
            call.fail(error.message, self._pb.TritonError.INVALID_ARG)
            return
        if request.stop:
            self._loop.call_soon_threadsafe(self._stop, call)
        elif self._gate.closed:
            call.fail(DRAINING, self._pb.TritonError.UNAVAILABLE)
        else:
            self._calls.add(call)
            self._loop.call_soon_threadsafe(self._start, request, call)

    def close(self) -> None:
        """Cancel what is left, then let the LLM go."""
        self._metrics.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        if hasattr(self._llm, "shutdown"):
            self._llm.shutdown()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        poll = self._loop.create_task(self._poll_clients())
        self._loop.run_forever()
        left = [poll, *self._tasks]
        while left:  # and once more for what has just come
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            left = list(self._tasks)

    def _start(self, request: LlmRequest, call: Call) -> None:
        task = self._loop.create_task(self._serve(request, call))
        self._tasks[task] = call
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Whatever the LLM raised is the answer to that request only."""
        call = self._tasks.pop(task)
        self._calls.discard(call)
        error = None if task.cancelled() else task.exception()
        if task.cancelled():  # before its first step, so that it could not end its call itself
            call.finish()
        elif error is not None:
            call.fail(f"Error generating request: {error}")

    def _stop(self, call: Call) -> None:
        """Upstream's way to cancel: a second request with the same id and `stop`; an unknown id is no error."""
        if not call.inner_id:
            call.fail("Trying to stop a request but request ID is not provided", self._pb.TritonError.INVALID_ARG)
            return
        for task, other in list(self._tasks.items()):
            if other.inner_id == call.inner_id:
                task.cancel()
        if self._decoupled:
            call.finish()
        else:
            call.send([], final=True)

    async def _poll_clients(self) -> None:
        while True:
            await asyncio.sleep(self._period)
            for task, call in list(self._tasks.items()):
                if call.client_left():
                    task.cancel()

    async def _serve(self, request: LlmRequest, call: Call) -> None:
        promise: Any = None
        try:
            sampling = self._sampling_params(**request.sampling)
            promise = self._llm.generate_async(request.prompt, sampling, streaming=request.streaming)
            deltas = Deltas(request.sampling.get("stop", ()))
            if request.streaming:
                async for output in promise:
                    self._send(request, call, deltas, output, final=bool(output.finished))
            else:
                self._send(request, call, deltas, await promise, final=True)
            call.finish()
        except asyncio.CancelledError:
            if promise is not None:
                promise.abort()
            call.finish()

    def _send(self, request: LlmRequest, call: Call, deltas: Deltas, output: Any, *, final: bool) -> None:
        completion = output.outputs[0]
        new = deltas.next(completion.text, final=final)
        text = deltas.text if self._accumulate else new
        if request.echo and (self._accumulate or not call.begun):
            text = request.prompt + text
        tensors = {**answer_tensors(text, completion, request), **count_tensors(output, deltas, request)}
        call.send([self._pb.Tensor(name, value) for name, value in tensors.items()], final=final)
