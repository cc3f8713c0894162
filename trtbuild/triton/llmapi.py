"""`tensorrt_llm` of the llmapi target: TensorRT-LLM's own LLM class (PyTorch backend) behind upstream's tensors.

Requests run in one event loop on a thread of its own. A streamed response is the new piece of the text, as in all
repositories of trtbuild; with `accumulate_text` in model.yaml's triton_config it is all text so far, as upstream's is.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trtbuild.errors import RequestError
from trtbuild.triton.answer import Answer

_SAMPLING = "sampling_param_"
_USUAL = {"best_of": 1, "exclude_input_from_output": False}
"""What upstream sends where a request says nothing; of the rest the LLM class has its own defaults."""


@dataclass(frozen=True)
class LlmRequest:
    """`sampling`: arguments of SamplingParams. The rest: what the answer holds."""

    prompt: str
    sampling: Mapping[str, Any]
    streaming: bool = False
    finish_reason: bool = False
    stop_reason: bool = False
    cumulative_logprob: bool = False
    stop: bool = False


def llm_request(tensors: Mapping[str, Any], *, decoupled: bool) -> LlmRequest:
    """Check and convert the input tensors of one request.

    Raises:
        RequestError: no prompt, several of them, or a stream where the model answers once.
    """
    flags = {name: _flag(tensors, f"return_{name}") for name in ("finish_reason", "stop_reason", "cumulative_logprob")}
    if _flag(tensors, "stop"):
        return LlmRequest("", {}, stop=True)
    prompts = tensors["text_input"].reshape(-1).tolist() if "text_input" in tensors else []
    if len(prompts) != 1:
        raise RequestError(f"text_input: one prompt a request, not {len(prompts)}")
    streaming = _flag(tensors, "streaming")
    if streaming and not decoupled:
        raise RequestError("Streaming is only supported in decoupled mode.")
    given = {name[len(_SAMPLING) :]: values for name, values in tensors.items() if name.startswith(_SAMPLING)}
    sampling = {name: _value(name, values) for name, values in given.items()}
    return LlmRequest(_text("text_input", prompts[0]), {**_USUAL, **sampling}, streaming, **flags)


class LlmServing:
    """`llm` has `generate_async` and `shutdown`, `sampling_params` makes its SamplingParams."""

    def __init__(
        self, pb: Any, llm: Any, sampling_params: Callable[..., Any], options: Mapping[str, Any], *, decoupled: bool
    ) -> None:
        self._pb, self._llm, self._sampling_params, self._decoupled = pb, llm, sampling_params, decoupled
        self._accumulate = bool(options.get("accumulate_text", False))
        self._period = float(options.get("cancellation_check_period_ms", 100)) / 1000
        self._running: dict[str, list[Any]] = {}  # Triton's request id -> results in flight
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="llm").start()

    def execute(self, request_id: str, tensors: Mapping[str, Any], sender: Any) -> None:
        """Take one request; its answers go to `sender`, now or later."""
        answer = Answer(self._pb, sender, decoupled=self._decoupled)
        try:
            request = llm_request(tensors, decoupled=self._decoupled)
        except RequestError as error:
            answer.fail(error.message, self._pb.TritonError.INVALID_ARG)
            return
        work = self._stop(request_id, answer) if request.stop else self._serve(request_id, request, answer)
        asyncio.run_coroutine_threadsafe(work, self._loop).add_done_callback(answer.fail_with)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._llm.shutdown()

    async def _serve(self, request_id: str, request: LlmRequest, answer: Answer) -> None:
        sampling = self._sampling_params(**request.sampling)
        result = self._llm.generate_async(request.prompt, sampling, streaming=request.streaming)
        self._running.setdefault(request_id, []).append(result)
        watch = asyncio.ensure_future(self._watch(answer, result))
        try:
            sent = ""
            async for output in _outputs(result, streaming=request.streaming):
                told = output.text if self._accumulate or not request.streaming else output.text[len(sent) :]
                sent = output.text
                answer.send(_tensors(request, output, told), final=not self._decoupled)
            answer.end()
        finally:
            watch.cancel()
            self._running[request_id].remove(result)
            if not self._running[request_id]:
                del self._running[request_id]

    async def _watch(self, answer: Answer, result: Any) -> None:
        """End what nobody waits for any more; Triton only answers when asked."""
        while not answer.left():
            await asyncio.sleep(self._period)
        result.abort()

    async def _stop(self, request_id: str, answer: Answer) -> None:
        """Upstream's way to cancel: a second request with the same id and `stop`; an unknown id is no error."""
        for result in self._running.get(request_id, ()):
            result.abort()
        if self._decoupled:
            answer.end()
        else:
            answer.send({}, final=True)


async def _outputs(result: Any, *, streaming: bool) -> AsyncIterator[Any]:
    """The completions of a request as they come; one where it is no stream."""
    if not streaming:
        yield (await result).outputs[0]
        return
    async for step in result:
        yield step.outputs[0]


def _tensors(request: LlmRequest, output: Any, text: str) -> dict[str, Any]:
    import numpy as np

    found: dict[str, Any] = {"text_output": np.array([text.encode()], dtype=object)}
    if request.finish_reason:
        found["finish_reason"] = np.array([str(output.finish_reason or "").encode()], dtype=object)
    if request.stop_reason:
        found["stop_reason"] = np.array([str(output.stop_reason or "").encode()], dtype=object)
    if request.cumulative_logprob:
        value = float("nan") if output.cumulative_logprob is None else output.cumulative_logprob
        found["cumulative_logprob"] = np.array([value], dtype=np.float32)
    return found


def _flag(tensors: Mapping[str, Any], name: str) -> bool:
    return bool(tensors[name].reshape(-1)[0]) if name in tensors and tensors[name].size else False


def _value(name: str, values: Any) -> Any:
    flat = values.reshape(-1).tolist()
    if name == "stop":
        return [_text(name, item) for item in flat]
    if len(flat) != 1:
        raise RequestError(f"{_SAMPLING}{name}: one value, not {len(flat)}")
    return flat[0]


def _text(name: str, value: Any) -> str:
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from error
