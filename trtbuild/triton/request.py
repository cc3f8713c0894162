"""Tensors of upstream's `tensorrt_llm` model -> requests of the cpu runtime. Pure.

Arrays come as the Python backend gives them: scalars (`dims [1]`, reshaped to []) are (batch,), the rest is
(batch, ...). Everything wrong with them is a RequestError, which becomes the answer to that one request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trtbuild.errors import RequestError
from trtbuild.runtime.request import SamplingParams
from trtbuild.text.words import unpack_words

_IGNORED = {
    "decoder_input_ids",
    "decoder_input_lengths",
    "pad_id",
    "len_penalty",
    "early_stopping",
    "beam_search_diversity_rate",
}
_NOT_ON_CPU = {
    "encoder_input_features": "encoder models",
    "encoder_output_lengths": "encoder models",
    "cross_attention_mask": "encoder models",
    "skip_cross_attn_blocks": "encoder models",
    "draft_input_ids": "speculative decoding",
    "draft_logits": "speculative decoding",
    "lookahead_window_size": "speculative decoding",
    "embedding_bias": "embedding bias",
    "prompt_embedding_table": "prompt tuning",
    "mrope_rotary_cos_sin": "multimodal models",
    "mrope_position_deltas": "multimodal models",
    "lora_task_id": "LoRA",
    "lora_weights": "LoRA",
    "lora_config": "LoRA",
    "context_phase_params": "disaggregated serving",
    "retention_token_range_starts": "KV cache retention",
    "guided_decoding_guide_type": "guided decoding",
    "guided_decoding_guide": "guided decoding",
}
_UNSUPPORTED_FLAGS = ("return_context_logits", "return_generation_logits")
_RANDOM = ("temperature", "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens")


@dataclass(frozen=True)
class Limits:
    """Limits of the engine, from its build_config."""

    max_input_len: int
    max_seq_len: int


@dataclass(frozen=True)
class Row:
    """One prompt of a Triton request, ready for the runtime but for its id."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    end_id: int
    sampling: SamplingParams


@dataclass(frozen=True)
class Parsed:
    """All rows of one Triton request, and what its answer has to hold."""

    rows: tuple[Row, ...] = ()
    streaming: bool = False
    exclude_input: bool = False
    return_log_probs: bool = False
    return_num_input_tokens: bool = False
    return_num_output_tokens: bool = False
    stop: bool = field(default=False)


def parse_tensors(tensors: Mapping[str, Any], limits: Limits, *, exclude_input_default: bool) -> Parsed:
    """Check and convert the input tensors of one request.

    Raises:
        RequestError: something the engine or the cpu runtime cannot honour.
    """
    if _flag(tensors, "stop"):
        return Parsed(stop=True)
    _refuse_unsupported(tensors)
    if "input_ids" not in tensors:
        raise RequestError("input_ids is missing")
    batch = len(tensors["input_ids"])
    rows = tuple(_row(_of_row(tensors, index, batch), limits, batch) for index in range(batch))
    return Parsed(
        rows=rows,
        streaming=_flag(tensors, "streaming"),
        exclude_input=_flag(tensors, "exclude_input_in_output", exclude_input_default),
        return_log_probs=_flag(tensors, "return_log_probs"),
        return_num_input_tokens=_flag(tensors, "return_num_input_tokens"),
        return_num_output_tokens=_flag(tensors, "return_num_output_tokens"),
    )


def _refuse_unsupported(tensors: Mapping[str, Any]) -> None:
    for name, what in _NOT_ON_CPU.items():
        if name in tensors and tensors[name].size:
            raise RequestError(f"{name}: the cpu runtime does not do {what}")
    for name in _UNSUPPORTED_FLAGS:
        if _flag(tensors, name):
            raise RequestError(f"{name}: the cpu runtime does not return logits")
    for name, what in (("beam_width", "beam search"), ("num_return_sequences", "several sequences for a prompt")):
        if name in tensors and tensors[name].size and int(tensors[name].max()) > 1:
            raise RequestError(
                f"{name} {int(tensors[name].max())}: the engine was built for 1 ({what} is not supported)"
            )


def _of_row(tensors: Mapping[str, Any], index: int, batch: int) -> dict[str, Any]:
    """One row of each tensor that is there and not empty."""
    row = {}
    for name, values in tensors.items():
        if name in _IGNORED or not values.size:
            continue
        if len(values) != batch:
            raise RequestError(f"{name} has {len(values)} rows, input_ids has {batch}")
        row[name] = values[index]
    return row


def _row(tensors: dict[str, Any], limits: Limits, batch: int) -> Row:
    prompt = [int(i) for i in tensors["input_ids"].reshape(-1)] if "input_ids" in tensors else []
    length = _number(tensors, "input_lengths", len(prompt))
    if batch > 1:  # as upstream: a single row is taken whole
        if not 0 <= length <= len(prompt):
            raise RequestError(f"input_lengths {length} is not within input_ids' {len(prompt)}")
        prompt = prompt[:length]
    if not prompt:
        raise RequestError("the prompt is empty: there is no token to start from")
    wanted = _number(tensors, "request_output_len", 0)
    return Row(tuple(prompt), _fit(len(prompt), wanted, limits), _number(tensors, "end_id", -1), _sampling(tensors))


def _fit(prompt: int, wanted: int, limits: Limits) -> int:
    """The tokens that may be generated: what was asked for, but no more than the engine has room for."""
    if wanted < 1:
        raise RequestError(f"max_tokens (request_output_len) {wanted} must be 1 or more")
    if prompt > limits.max_input_len:
        raise RequestError(
            f"the prompt has {prompt} tokens, more than the engine's max_input_len {limits.max_input_len}"
        )
    room = limits.max_seq_len - prompt
    if room < 1:
        raise RequestError(
            f"the prompt has {prompt} tokens and leaves no room in the engine's max_seq_len {limits.max_seq_len}"
        )
    return min(wanted, room)


def _sampling(tensors: Mapping[str, Any]) -> SamplingParams:
    values: dict[str, Any] = {name: tensors[name].reshape(-1)[0].item() for name in _RANDOM if name in tensors}
    return SamplingParams(
        **values,
        top_k=_number(tensors, "runtime_top_k", 0),
        top_p=_top_p(tensors["runtime_top_p"]) if "runtime_top_p" in tensors else 0.0,
        seed=_number(tensors, "seed", 0),
        stop_words=_words(tensors, "stop_words_list"),
        bad_words=_words(tensors, "bad_words_list"),
        return_log_probs=bool(tensors["return_log_probs"].reshape(-1)[0]) if "return_log_probs" in tensors else False,
    )


def _top_p(values: Any) -> float:
    """Upstream drops a top_p that is not above 0; NaN stays, to be refused."""
    value = float(values.reshape(-1)[0])
    return 0.0 if value < 0 else value


def _words(tensors: Mapping[str, Any], name: str) -> tuple[tuple[int, ...], ...]:
    return unpack_words(name, tensors[name].tolist()) if name in tensors else ()


def _number(tensors: Mapping[str, Any], name: str, default: int) -> int:
    if name not in tensors:
        return default
    values = tensors[name].reshape(-1)
    if len(values) != 1:
        raise RequestError(f"{name} must be one number, not {len(values)}")
    return int(values[0])


def _flag(tensors: Mapping[str, Any], name: str, default: bool = False) -> bool:
    return bool(tensors[name].reshape(-1)[0]) if name in tensors and tensors[name].size else default
