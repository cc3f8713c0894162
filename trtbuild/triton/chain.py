"""A text request -> the tensors of `tensorrt_llm`: what the maps of the ensemble do, for `tensorrt_llm_bls`. Pure.

Arrays are as the Python backend gives them, (batch, ...); scalars with `reshape []` in the configuration are (batch,)
and become (batch, 1) again, as the inner model's configuration has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtbuild.errors import RequestError
from trtbuild.triton.prompts import Prompts, texts_of

TO_PROMPTS = {
    "text_input": "QUERY",
    "decoder_text_input": "DECODER_QUERY",
    "max_tokens": "REQUEST_OUTPUT_LEN",
    "bad_words": "BAD_WORDS_DICT",
    "stop_words": "STOP_WORDS_DICT",
    "embedding_bias_words": "EMBEDDING_BIAS_WORDS",
    "embedding_bias_weights": "EMBEDDING_BIAS_WEIGHTS",
    "end_id": "END_ID",
    "pad_id": "PAD_ID",
    "prompt_table_extra_id": "PROMPT_TABLE_EXTRA_ID",
}
"""Input of the text request -> input of `preprocessing`."""
FROM_PROMPTS = {
    "INPUT_ID": "input_ids",
    "REQUEST_INPUT_LEN": "input_lengths",
    "DECODER_INPUT_ID": "decoder_input_ids",
    "REQUEST_DECODER_INPUT_LEN": "decoder_input_lengths",
    "REQUEST_OUTPUT_LEN": "request_output_len",
    "OUT_END_ID": "end_id",
    "OUT_PAD_ID": "pad_id",
    "EMBEDDING_BIAS": "embedding_bias",
    "STOP_WORDS_IDS": "stop_words_list",
    "BAD_WORDS_IDS": "bad_words_list",
    "OUT_PROMPT_TABLE_EXTRA_IDS": "prompt_table_extra_ids",
}
"""Output of `preprocessing` -> input of `tensorrt_llm`."""
TO_ENGINE = {
    "top_k": "runtime_top_k",
    "top_p": "runtime_top_p",
    "length_penalty": "len_penalty",
    "stream": "streaming",
    **{
        name: name
        for name in (
            *("temperature", "repetition_penalty", "min_tokens", "presence_penalty", "frequency_penalty", "seed"),
            *("return_log_probs", "return_context_logits", "return_generation_logits", "return_perf_metrics"),
            *("return_num_input_tokens", "return_num_output_tokens", "exclude_input_in_output"),
            *("num_return_sequences", "beam_width", "prompt_embedding_table", "prompt_vocab_size"),
            *("lora_task_id", "lora_weights", "lora_config"),
            *("guided_decoding_guide_type", "guided_decoding_guide"),
        )
    },
}
"""Input of the text request -> input of `tensorrt_llm`."""
_IMAGES = ("image_input", "image_bytes_input", "image_url_input", "image_sizes_input", "video_bytes_input")


@dataclass(frozen=True)
class TextRequest:
    """One request. `inner`: tensors of `tensorrt_llm`; `prompts` (token ids) and `stops` by row; `beams`: 1 or more."""

    inner: Mapping[str, Any]
    prompts: tuple[tuple[int, ...], ...]
    stops: tuple[tuple[str, ...], ...]
    streaming: bool
    sequences: int
    beams: int


def text_request(tensors: Mapping[str, Any], prompts: Prompts, add_special_tokens: bool | None = None) -> TextRequest:
    """Check and translate the input tensors of one request.

    Raises:
        RequestError: what is missing, does not belong together, or is not served here.
    """
    _refuse(tensors)
    made = prompts.process(
        {TO_PROMPTS[name]: tensors[name] for name in TO_PROMPTS if name in tensors}, add_special_tokens
    )
    batch = len(made["INPUT_ID"])
    inner = {FROM_PROMPTS[name]: values for name, values in made.items()}
    inner |= {TO_ENGINE[name]: _column(tensors[name]) for name in TO_ENGINE if name in tensors}
    rows = zip(made["INPUT_ID"], made["REQUEST_INPUT_LEN"], strict=True)
    stops = texts_of("stop_words", tensors["stop_words"]) if "stop_words" in tensors else [[]] * batch
    return TextRequest(
        inner,
        tuple(tuple(row[: int(length[0])].tolist()) for row, length in rows),
        tuple(tuple(stop for stop in row if stop) for row in stops),
        streaming=bool(tensors["stream"].any()) if "stream" in tensors else False,
        sequences=batch * _largest(tensors, "num_return_sequences"),
        beams=_largest(tensors, "beam_width"),
    )


def _refuse(tensors: Mapping[str, Any]) -> None:
    """Sentences that have upstream's words begin with them."""
    missing = [name for name in ("text_input", "max_tokens") if name not in tensors]
    if missing:
        raise RequestError(f"{' and '.join(missing)} missing: a text request needs text_input and max_tokens")
    if int(tensors["max_tokens"].min()) < 1:
        raise RequestError(f"max_tokens must be a single value > 0, not {int(tensors['max_tokens'].min())}")
    if image := next((name for name in _IMAGES if name in tensors), None):
        raise RequestError(f"{image}: this repository serves a text-only model")
    if "num_draft_tokens" in tensors and int(tensors["num_draft_tokens"].max()) > 0:
        raise RequestError("num_draft_tokens: cannot perform speculative decoding without draft model")


def _largest(tensors: Mapping[str, Any], name: str) -> int:
    return max(1, int(tensors[name].max())) if name in tensors and tensors[name].size else 1


def _column(values: Any) -> Any:
    return values.reshape(-1, 1) if values.ndim == 1 else values
