"""Which tensor of `tensorrt_llm_bls` goes where. Pure; numpy arrays in and out.

Source: upstream's tensorrt_llm_bls of TensorRT-LLM 1.2, whose inputs and outputs are those of the ensemble and a few.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtbuild.errors import RequestError

TO_PREPROCESSING = {
    "QUERY": "text_input",
    "DECODER_QUERY": "decoder_text_input",
    "IMAGE_BYTES": "image_bytes_input",
    "IMAGE_URL": "image_url_input",
    "IMAGE_SIZES": "image_sizes_input",
    "VIDEO_BYTES": "video_bytes_input",
    "REQUEST_OUTPUT_LEN": "max_tokens",
    "BAD_WORDS_DICT": "bad_words",
    "STOP_WORDS_DICT": "stop_words",
    "EMBEDDING_BIAS_WORDS": "embedding_bias_words",
    "EMBEDDING_BIAS_WEIGHTS": "embedding_bias_weights",
    "END_ID": "end_id",
    "PAD_ID": "pad_id",
    "PROMPT_TABLE_EXTRA_ID": "prompt_table_extra_id",
}
FROM_PREPROCESSING = {
    "input_ids": "INPUT_ID",
    "input_lengths": "REQUEST_INPUT_LEN",
    "decoder_input_ids": "DECODER_INPUT_ID",
    "decoder_input_lengths": "REQUEST_DECODER_INPUT_LEN",
    "request_output_len": "REQUEST_OUTPUT_LEN",
    "end_id": "OUT_END_ID",
    "pad_id": "OUT_PAD_ID",
    "embedding_bias": "EMBEDDING_BIAS",
    "stop_words_list": "STOP_WORDS_IDS",
    "bad_words_list": "BAD_WORDS_IDS",
    "prompt_table_extra_ids": "OUT_PROMPT_TABLE_EXTRA_IDS",
}
_RENAMED = {"runtime_top_k": "top_k", "runtime_top_p": "top_p", "len_penalty": "length_penalty", "streaming": "stream"}
_SAME = (
    "exclude_input_in_output", "temperature", "repetition_penalty", "min_tokens", "presence_penalty",
    "frequency_penalty", "seed", "return_log_probs", "return_context_logits", "return_generation_logits",
    "return_perf_metrics", "return_num_input_tokens", "return_num_output_tokens", "num_return_sequences", "beam_width",
    "prompt_embedding_table", "prompt_vocab_size", "lora_task_id", "lora_weights", "lora_config",
    "guided_decoding_guide_type", "guided_decoding_guide",
)  # fmt: skip
FROM_REQUEST = {**_RENAMED, **{name: name for name in _SAME}}
PASSED_ON = (
    "cum_log_probs", "output_log_probs", "context_logits", "generation_logits", "batch_index", "sequence_index",
    "kv_cache_alloc_new_blocks", "kv_cache_reused_blocks", "kv_cache_alloc_total_blocks", "arrival_time_ns",
    "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns", "acceptance_rate",
    "total_accepted_draft_tokens", "total_draft_tokens", "num_input_tokens", "num_output_tokens",
)  # fmt: skip
"""Outputs of tensorrt_llm that the client gets as they are."""


def check_request(tensors: Mapping[str, Any]) -> None:
    """Refuse what the repository has no model for.

    Raises:
        RequestError: speculative decoding with a draft model, or an image.
    """
    for name in ("num_draft_tokens", "use_draft_logits"):
        if name in tensors and tensors[name].size and int(tensors[name].max()) > 0:
            raise RequestError(f"{name}: cannot perform speculative decoding without draft model")
    if "image_input" in tensors and tensors["image_input"].size:
        raise RequestError("image_input: this repository serves a text-only model")


def prompt_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of preprocessing."""
    return {inner: tensors[outer] for inner, outer in TO_PREPROCESSING.items() if outer in tensors}


def engine_tensors(tensors: Mapping[str, Any], prompts: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of tensorrt_llm; scalars come without their last dimension (`reshape: []`) and are sent with it."""
    found = {inner: prompts[outer] for inner, outer in FROM_PREPROCESSING.items() if outer in prompts}
    for inner, outer in FROM_REQUEST.items():
        if outer in tensors:
            values = tensors[outer]
            found[inner] = values.reshape(-1, 1) if values.ndim == 1 else values
    return found


def number(tensors: Mapping[str, Any], name: str, row: int, default: int) -> int:
    """A number of the request, for one row of the batch."""
    if name not in tensors or not tensors[name].size:
        return default
    values = tensors[name].reshape(-1)
    return int(values[min(row, len(values) - 1)])


def stop_words(tensors: Mapping[str, Any], row: int) -> list[str]:
    """Stop words of one row of the batch."""
    if "stop_words" not in tensors:
        return []
    rows = tensors["stop_words"].reshape(len(tensors["stop_words"]), -1)
    cells = rows[min(row, len(rows) - 1)].tolist()
    return [cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell) for cell in cells]
