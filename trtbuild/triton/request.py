"""Tensors of upstream's `tensorrt_llm` model -> requests of the cpu runtime. Pure.

Arrays come as the Python backend gives them: scalars (`dims [1]`, reshaped to []) are (batch,), the rest is
(batch, ...). Everything wrong with them is a RequestError, which becomes the answer to that one request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from trtbuild.errors import RequestError
from trtbuild.runtime.request import SamplingParams
from trtbuild.text.words import unpack_words
from trtbuild.triton.tensors import flag

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
_UNSUPPORTED_FLAGS = {
    "return_context_logits": "return logits",
    "return_generation_logits": "return logits",
    "return_perf_metrics": "measure single requests",
}
_RANDOM = ("temperature", "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens")


@dataclass(frozen=True)
class Limits:
    """Limits of the engine, from its build_config, and of the model as it is served.

    `decoupled` False: one response a request, as Triton's unary calls want it. `wrap_ids` is the vocabulary size where
    ids outside of it are to be taken modulo that size (load generators send random numbers), 0 where they are refused.
    """

    max_input_len: int
    max_seq_len: int
    max_batch_size: int = 64
    decoupled: bool = True
    wrap_ids: int = 0


@dataclass(frozen=True)
class Row:
    """One sequence to generate, ready for the runtime but for its id: number `number` of prompt `batch`."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    end_id: int
    sampling: SamplingParams
    batch: int = 0
    number: int = 0


@dataclass(frozen=True)
class Parsed:
    """All rows of one Triton request, and what its answer has to hold."""

    rows: tuple[Row, ...] = ()
    streaming: bool = False
    exclude_input: bool = False
    return_log_probs: bool = False
    return_num_input_tokens: bool = False
    return_num_output_tokens: bool = False
    name_batch: bool = False
    name_sequence: bool = False
    stop: bool = field(default=False)


def parse_tensors(tensors: Mapping[str, Any], limits: Limits, *, exclude_input_default: bool) -> Parsed:
    """Check and convert the input tensors of one request.

    Raises:
        RequestError: something the engine or the cpu runtime cannot honour.
    """
    if flag(tensors, "stop"):
        return Parsed(stop=True)
    _refuse_unsupported(tensors)
    if "input_ids" not in tensors:
        raise RequestError("input_ids is missing")
    batch = len(tensors["input_ids"])
    rows = tuple(row for index in range(batch) for row in _rows(_of_row(tensors, index, batch), limits, index, batch))
    streaming = flag(tensors, "streaming")
    _check_one_response(limits, streaming, batch, len(rows))
    return Parsed(
        rows=rows,
        streaming=streaming,
        name_batch=batch > 1,
        name_sequence=len(rows) > batch,
        exclude_input=flag(tensors, "exclude_input_in_output", exclude_input_default),
        return_log_probs=flag(tensors, "return_log_probs"),
        return_num_input_tokens=flag(tensors, "return_num_input_tokens"),
        return_num_output_tokens=flag(tensors, "return_num_output_tokens"),
    )


def _refuse_unsupported(tensors: Mapping[str, Any]) -> None:
    for name, what in _NOT_ON_CPU.items():
        if name in tensors and tensors[name].size:
            raise RequestError(f"{name}: the cpu runtime does not do {what}")
    for name, what in _UNSUPPORTED_FLAGS.items():
        if flag(tensors, name):
            raise RequestError(f"{name}: the cpu runtime does not {what}")
    begin = tensors.get("decoder_input_lengths")
    if begin is not None and begin.size and int(begin.max()) > 1:
        raise RequestError("decoder_input_ids (decoder_text_input): the cpu runtime does not do encoder models")
    beams = int(tensors["beam_width"].max()) if "beam_width" in tensors and tensors["beam_width"].size else 1
    if beams > 1:
        raise RequestError(
            f"beam_width {beams}: the cpu runtime does no beam search, its max_beam_width is 1; leave it out, or send"
            f" num_return_sequences {beams} with top_k or top_p for as many samples"
        )


def _check_one_response(limits: Limits, streaming: bool, batch: int, sequences: int) -> None:
    """What a model that is not decoupled cannot answer; the sentences begin as upstream's do."""
    if limits.decoupled:
        return
    remedy = "make the repository with --decoupled"
    if streaming:
        raise RequestError(f"Streaming is only supported if model is deployed using decoupled mode: {remedy}")
    if batch > 1:
        raise RequestError(f"Batch size {batch} > 1 requires the decoupled transaction policy: {remedy}")
    if sequences > 1:
        raise RequestError(f"num_return_sequences {sequences} > 1 requires the decoupled transaction policy: {remedy}")


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


def _rows(tensors: dict[str, Any], limits: Limits, index: int, batch: int) -> list[Row]:
    """The sequences of prompt `index`; every one after the first draws from the next seed, as upstream's do."""
    row = _row(tensors, limits, batch)
    count = _number(tensors, "num_return_sequences", 1)
    if not 1 <= count <= limits.max_batch_size:
        raise RequestError(
            f"num_return_sequences {count} must be within 1..{limits.max_batch_size}, the engine's max_batch_size"
        )
    seeds = range(row.sampling.seed, row.sampling.seed + count)
    return [
        replace(row, batch=index, number=number, sampling=replace(row.sampling, seed=seed % 2**64))
        for number, seed in enumerate(seeds)
    ]


def _row(tensors: dict[str, Any], limits: Limits, batch: int) -> Row:
    prompt = [int(i) for i in tensors["input_ids"].reshape(-1)] if "input_ids" in tensors else []
    length = _number(tensors, "input_lengths", len(prompt))
    if batch > 1:  # as upstream: a single row is taken whole
        if not 0 <= length <= len(prompt):
            raise RequestError(f"input_lengths {length} is not within input_ids' {len(prompt)}")
        prompt = prompt[:length]
    if limits.wrap_ids:
        prompt = [token % limits.wrap_ids for token in prompt]
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
