"""Tensors of upstream's llmapi model <-> arguments and results of tensorrt_llm.LLM. Pure; numpy arrays in and out.

Source: upstream's all_models/llmapi of TensorRT-LLM 1.2 (no batch dimension; sampling_param_* inputs). Added to it, by
the names of tensorrt_llm.SamplingParams and of the ensemble: `_ADDED`, sampling_param_bad and the two counts of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trtbuild.errors import RequestError
from trtbuild.text.stops import certain
from trtbuild.triton.tensors import flag

_SAMPLING = ("best_of", "temperature", "top_k", "top_p", "frequency_penalty", "presence_penalty", "max_tokens", "seed")
_ADDED = ("repetition_penalty", "min_tokens", "end_id", "ignore_eos", "add_special_tokens")
_COUNTS = ("num_input_tokens", "num_output_tokens")
_KV_CACHE = {
    "kv_cache_reused_block": "num_reused_blocks",
    "kv_cache_missed_block": "num_missed_blocks",
    "kv_cache_alloc_new_blocks": "num_new_allocated_blocks",
    "kv_cache_alloc_total_blocks": "num_total_allocated_blocks",
    "kv_cache_hit_rate": "kv_cache_hit_rate",
}
_TIMES = ("arrival_time", "first_scheduled_time", "first_token_time", "last_token_time")
_DRAFTS = ("acceptance_rate", "total_accepted_draft_tokens", "total_draft_tokens")
_FLOATS = ("kv_cache_hit_rate", "acceptance_rate", "cumulative_logprob")


@dataclass(frozen=True)
class LlmRequest:
    """One prompt. `sampling`: arguments of tensorrt_llm.SamplingParams; `echo`: the prompt begins the answer."""

    prompt: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    streaming: bool = False
    echo: bool = True
    wanted: frozenset[str] = frozenset()
    stop: bool = False


def parse_llm_request(tensors: Mapping[str, Any], *, decoupled: bool) -> LlmRequest:
    """The request of these inputs. As upstream, the prompt is echoed unless the request says otherwise.

    Raises:
        RequestError: what one request cannot be.
    """
    if flag(tensors, "stop"):
        return LlmRequest(stop=True)
    if "text_input" not in tensors:
        raise RequestError("text_input is missing")
    if tensors["text_input"].ndim > 1:
        raise RequestError("The current implementation only supports text_input being a 1D tensor.")
    texts = _texts("text_input", tensors["text_input"])
    if len(texts) != 1 or not texts[0]:
        raise RequestError(f"text_input must be one prompt that is not empty, not {len(texts)}")
    streaming = flag(tensors, "streaming")
    if streaming and not decoupled:
        raise RequestError("Streaming is only supported in decoupled mode.")
    sampling = {
        name: _scalar(f"sampling_param_{name}", tensors[f"sampling_param_{name}"])
        for name in (*_SAMPLING, *_ADDED)
        if f"sampling_param_{name}" in tensors
    }
    for name in ("stop", "bad"):
        key = f"sampling_param_{name}"
        if words := [text for text in _texts(key, tensors.get(key)) if text]:
            sampling[name] = words
    if flag(tensors, "sampling_param_return_perf_metrics"):
        sampling["return_perf_metrics"] = True
    names = ("finish_reason", "stop_reason", "cumulative_logprob", *_COUNTS)
    wanted = {name for name in names if flag(tensors, f"return_{name}")}
    echo = not flag(tensors, "sampling_param_exclude_input_from_output")
    return LlmRequest(texts[0], sampling, streaming, echo, frozenset(wanted))


def answer_tensors(text: str, completion: Any, request: LlmRequest) -> dict[str, Any]:
    """Outputs of one response; `completion`: a CompletionOutput of tensorrt_llm."""
    found: dict[str, Any] = {"text_output": text}
    for name in sorted(request.wanted - set(_COUNTS)):
        value = getattr(completion, name, None)
        if name != "cumulative_logprob":
            found[name] = "" if value is None else str(value)
        elif value is not None:
            found[name] = value
    metrics = getattr(completion, "request_perf_metrics", None)
    if metrics is not None and "return_perf_metrics" in request.sampling:
        found |= {name: getattr(metrics.kv_cache_metrics, theirs) for name, theirs in _KV_CACHE.items()}
        for name in _TIMES:
            found[f"{name}_ns"] = round(getattr(metrics.timing_metrics, name).total_seconds() * 1e9)
        found |= {name: getattr(metrics.speculative_decoding, name) for name in _DRAFTS}
    return {name: _array(name, value) for name, value in found.items()}


def count_tensors(output: Any, deltas: Deltas, request: LlmRequest) -> dict[str, Any]:
    """Tokens of the prompt, and those that came since the last response; `output`: a RequestOutput of tensorrt_llm."""
    found = {}
    if "num_input_tokens" in request.wanted:
        found["num_input_tokens"] = len(output.prompt_token_ids)
    if "num_output_tokens" in request.wanted:
        found["num_output_tokens"] = deltas.count(len(output.outputs[0].token_ids))
    return {name: _array(name, value) for name, value in found.items()}


class Deltas:
    """Text so far, as the LLM class gives it -> what is new; together the last text.

    Held back is what can still change: U+FFFD at the end, and the beginning of a stop string, which the class leaves
    in the text until it is whole and then cuts off. The same of the number of tokens.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = stops
        self._tokens = 0
        self.text = ""

    def next(self, text: str, *, final: bool) -> str:
        sure = text if final else text.rstrip("\ufffd")
        if not sure.startswith(self.text):  # it became shorter, and what was given out cannot be taken back
            return ""
        new = sure[len(self.text) :]
        if not final:
            new = new[: certain(new, self._stops)]
        self.text += new
        return new

    def count(self, tokens: int) -> int:
        """Of all tokens so far, those that are new."""
        new, self._tokens = tokens - self._tokens, tokens
        return new


def _array(name: str, value: Any) -> Any:
    import numpy as np

    if isinstance(value, str):
        return np.array([value.encode()], dtype=object)
    kind = np.float32 if name in _FLOATS else np.int64 if name.endswith("_ns") else np.int32
    return np.array([value], dtype=kind)


def _texts(name: str, values: Any) -> list[str]:
    if values is None:
        return []
    try:
        return [v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in values.reshape(-1).tolist()]
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from error


def _scalar(name: str, values: Any) -> Any:
    if values.size != 1:
        raise RequestError(f"Expected a scalar tensor for tensor {name}, not {values.size} values")
    return values.reshape(-1)[0].item()
