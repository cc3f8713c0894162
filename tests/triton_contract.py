"""The tensors and parameters of TensorRT-LLM 1.2.1's Triton models, by hand from a description of upstream's templates.

A tensor is one line: name, type, dims, marks. Marks: `!` required, `s` dims [1] reshaped to [], `r` ragged batches.
LOGITS, TABLE and FEATURES are template variables there.
"""

from __future__ import annotations

from typing import Any

LOGITS, TABLE, FEATURES = "FP32", "FP16", "FP16"

_LLM_IN = f"""
input_ids INT32 -1 r
encoder_input_features {FEATURES} -1,-1 r
encoder_output_lengths INT32 1 s
input_lengths INT32 1 s!
request_output_len INT32 1 s!
num_return_sequences INT32 1 s
draft_input_ids INT32 -1 r
decoder_input_ids INT32 -1 r
decoder_input_lengths INT32 1 s
draft_logits {LOGITS} -1,-1 r
draft_acceptance_threshold FP32 1 s
end_id INT32 1 s
pad_id INT32 1 s
stop_words_list INT32 2,-1 r
bad_words_list INT32 2,-1 r
embedding_bias FP32 -1 r
beam_width INT32 1 s
temperature FP32 1 s
runtime_top_k INT32 1 s
runtime_top_p FP32 1 s
runtime_top_p_min FP32 1 s
runtime_top_p_decay FP32 1 s
runtime_top_p_reset_ids INT32 1 s
len_penalty FP32 1 s
early_stopping BOOL 1 s
repetition_penalty FP32 1 s
min_tokens INT32 1 s
beam_search_diversity_rate FP32 1 s
presence_penalty FP32 1 s
frequency_penalty FP32 1 s
seed UINT64 1 s
return_log_probs BOOL 1 s
return_context_logits BOOL 1 s
return_generation_logits BOOL 1 s
return_perf_metrics BOOL 1 s
return_num_input_tokens BOOL 1 s
return_num_output_tokens BOOL 1 s
exclude_input_in_output BOOL 1 s
stop BOOL 1 s
streaming BOOL 1 s
prompt_embedding_table {TABLE} -1,-1 r
prompt_table_extra_ids UINT64 -1 r
prompt_vocab_size INT32 1 s
cross_attention_mask BOOL -1,-1 r
mrope_rotary_cos_sin FP32 -1
mrope_position_deltas INT64 1
lora_task_id UINT64 1 s
lora_weights FP16 -1,-1 r
lora_config INT32 -1,3 r
context_phase_params UINT8 -1 r
skip_cross_attn_blocks BOOL 1 r
retention_token_range_starts INT32 -1 r
retention_token_range_ends INT32 -1 r
retention_token_range_priorities INT32 -1 r
retention_token_range_durations_ms INT32 -1 r
retention_decode_priority INT32 1 r
retention_decode_duration_ms INT32 1 r
guided_decoding_guide_type STRING 1 r
guided_decoding_guide STRING 1 r
lookahead_window_size INT32 1 r
lookahead_ngram_size INT32 1 r
lookahead_verification_set_size INT32 1 r
"""

_ANSWERS = f"""
cum_log_probs FP32 -1
output_log_probs FP32 -1,-1
context_logits {LOGITS} -1,-1
generation_logits {LOGITS} -1,-1,-1
batch_index INT32 1
sequence_index INT32 1
kv_cache_alloc_new_blocks INT32 1
kv_cache_reused_blocks INT32 1
kv_cache_alloc_total_blocks INT32 1
arrival_time_ns INT64 1
first_scheduled_time_ns INT64 1
first_token_time_ns INT64 1
last_token_time_ns INT64 1
acceptance_rate FP32 1
total_accepted_draft_tokens INT32 1
total_draft_tokens INT32 1
num_input_tokens INT32 1
num_output_tokens INT32 1
"""

_LLM_OUT = "output_ids INT32 -1,-1\nsequence_length INT32 -1\ncontext_phase_params UINT8 -1" + _ANSWERS
STREAMS = "STREAM_ID UINT64 1\nIS_FINAL BOOL 1"
"""Ours, between tensorrt_llm and postprocessing of the cpu target."""

_PRE_IN = """
QUERY STRING 1 !
DECODER_QUERY STRING 1
IMAGE_BYTES UINT8 -1,-1,-1,-1
IMAGE_URL STRING -1
IMAGE_SIZES INT64 -1,2
VIDEO_BYTES UINT8 -1,-1,-1,-1
REQUEST_OUTPUT_LEN INT32 1 !
BAD_WORDS_DICT STRING -1
STOP_WORDS_DICT STRING -1
EMBEDDING_BIAS_WORDS STRING -1
EMBEDDING_BIAS_WEIGHTS FP32 -1
END_ID INT32 1
PAD_ID INT32 1
PROMPT_TABLE_EXTRA_ID UINT64 1
"""

_PRE_OUT = """
INPUT_ID INT32 -1
REQUEST_INPUT_LEN INT32 1
DECODER_INPUT_ID INT32 -1
REQUEST_DECODER_INPUT_LEN INT32 1
BAD_WORDS_IDS INT32 2,-1
STOP_WORDS_IDS INT32 2,-1
EMBEDDING_BIAS FP32 -1
REQUEST_OUTPUT_LEN INT32 -1
OUT_END_ID INT32 1
OUT_PAD_ID INT32 1
OUT_PROMPT_TABLE_EXTRA_IDS UINT64 -1
PIXEL_VALUES FP16 -1,-1,-1,-1
ASPECT_RATIO_IDS INT64 -1
ASPECT_RATIO_MASK INT64 -1,-1
CROSS_ATTENTION_MASK INT64 -1,-1,-1
IMAGE_SIZES INT64 -1,2
IS_VIDEO_INPUT BOOL 1
ATTENTION_MASK INT64 -1
IMAGE_GRID_THW INT64 3
VISION_INPUT_ID INT32 -1
"""

_POST_IN = (
    "TOKENS_BATCH INT32 -1,-1 !\nSEQUENCE_LENGTH INT32 -1 !\nBATCH_INDEX INT32 1\nSEQUENCE_INDEX INT32 1\n" + STREAMS
)
_POST_OUT = "OUTPUT STRING -1"

_ENSEMBLE_IN = f"""
text_input STRING 1 !
decoder_text_input STRING 1
max_tokens INT32 1 !
num_return_sequences INT32 1
bad_words STRING -1
stop_words STRING -1
exclude_input_in_output BOOL 1
end_id INT32 1
pad_id INT32 1
top_k INT32 1
top_p FP32 1
temperature FP32 1
length_penalty FP32 1
repetition_penalty FP32 1
min_tokens INT32 1
presence_penalty FP32 1
frequency_penalty FP32 1
seed UINT64 1
return_log_probs BOOL 1
return_context_logits BOOL 1
return_generation_logits BOOL 1
return_perf_metrics BOOL 1
return_num_input_tokens BOOL 1
return_num_output_tokens BOOL 1
beam_width INT32 1
stream BOOL 1
prompt_embedding_table {TABLE} -1,-1
prompt_table_extra_id UINT64 1
prompt_vocab_size INT32 1
embedding_bias_words STRING -1
embedding_bias_weights FP32 -1
lora_task_id UINT64 1
lora_weights FP16 -1,-1 r
lora_config INT32 -1,3 r
guided_decoding_guide_type STRING 1 r
guided_decoding_guide STRING 1 r
"""

_BLS_MORE = """
image_input FP16 -1,3,-1,-1
image_bytes_input UINT8 -1,-1,-1,-1
image_url_input STRING 1
image_sizes_input INT64 -1,2
video_bytes_input UINT8 -1,-1,-1,-1
num_draft_tokens INT32 1
use_draft_logits BOOL 1 s
"""
_BLS_SCALARS = ("num_return_sequences", "lora_task_id")
"""Besides return_*: they have `reshape: []` in the BLS model and not in the ensemble."""

_LLMAPI_IN = """
text_input STRING -1 !
streaming BOOL 1
sampling_param_best_of INT32 1
sampling_param_top_k INT32 1
sampling_param_max_tokens INT32 1
sampling_param_temperature FP32 1
sampling_param_top_p FP32 1
sampling_param_frequency_penalty FP32 1
sampling_param_presence_penalty FP32 1
sampling_param_stop STRING -1
sampling_param_seed UINT64 1
sampling_param_exclude_input_from_output BOOL 1
sampling_param_return_perf_metrics BOOL 1
return_finish_reason BOOL 1
return_stop_reason BOOL 1
return_cumulative_logprob BOOL 1
stop BOOL 1
"""
_LLMAPI_OUT = """
text_output STRING -1
finish_reason STRING -1
stop_reason STRING -1
cumulative_logprob FP32 -1
kv_cache_reused_block INT32 -1
kv_cache_missed_block INT32 -1
kv_cache_alloc_new_blocks INT32 -1
kv_cache_alloc_total_blocks INT32 -1
kv_cache_hit_rate FP32 -1
arrival_time_ns INT64 1
first_scheduled_time_ns INT64 1
first_token_time_ns INT64 1
last_token_time_ns INT64 1
acceptance_rate FP32 -1
total_accepted_draft_tokens INT32 -1
total_draft_tokens INT32 -1
"""

Tensor = tuple[str, tuple[int, ...], bool, bool, bool]
"""type, dims, optional, reshaped to [], ragged"""


def _table(text: str, *, output: bool = False) -> dict[str, Tensor]:
    found = {}
    for line in text.split("\n"):
        if line:
            name, kind, dims, marks = (line + " -").split(" ")[:4]
            optional = not output and "!" not in marks
            found[name] = (kind, tuple(map(int, dims.split(","))), optional, "s" in marks, "r" in marks)
    return found


def _bls() -> dict[str, Tensor]:
    found = _table(_ENSEMBLE_IN + _BLS_MORE)
    for name in found:
        if name.startswith("return_") or name in _BLS_SCALARS:
            kind, dims, optional, _reshaped, ragged = found[name]
            found[name] = (kind, dims, optional, True, ragged)
    return found


INPUTS: dict[str, dict[str, Tensor]] = {
    "preprocessing": _table(_PRE_IN),
    "tensorrt_llm": _table(_LLM_IN),
    "postprocessing": _table(_POST_IN),
    "ensemble": _table(_ENSEMBLE_IN),
    "tensorrt_llm_bls": _bls(),
    "llmapi": _table(_LLMAPI_IN),
}
OUTPUTS: dict[str, dict[str, Tensor]] = {
    "preprocessing": _table(_PRE_OUT, output=True),
    "tensorrt_llm": _table(_LLM_OUT, output=True),
    "postprocessing": _table(_POST_OUT, output=True),
    "ensemble": _table("text_output STRING -1" + _ANSWERS, output=True),
    "tensorrt_llm_bls": _table("text_output STRING -1" + _ANSWERS, output=True),
    "llmapi": _table(_LLMAPI_OUT, output=True),
}

MAPS: dict[str, tuple[str, str]] = {
    # step: inputs "inner<outer", outputs "inner>outer"; a name alone is the same on both sides
    "preprocessing": (
        "QUERY<text_input DECODER_QUERY<decoder_text_input REQUEST_OUTPUT_LEN<max_tokens BAD_WORDS_DICT<bad_words "
        "STOP_WORDS_DICT<stop_words EMBEDDING_BIAS_WORDS<embedding_bias_words "
        "EMBEDDING_BIAS_WEIGHTS<embedding_bias_weights END_ID<end_id PAD_ID<pad_id "
        "PROMPT_TABLE_EXTRA_ID<prompt_table_extra_id",
        "REQUEST_INPUT_LEN>_REQUEST_INPUT_LEN INPUT_ID>_INPUT_ID "
        "REQUEST_DECODER_INPUT_LEN>_REQUEST_DECODER_INPUT_LEN DECODER_INPUT_ID>_DECODER_INPUT_ID "
        "REQUEST_OUTPUT_LEN>_REQUEST_OUTPUT_LEN STOP_WORDS_IDS>_STOP_WORDS_IDS BAD_WORDS_IDS>_BAD_WORDS_IDS "
        "EMBEDDING_BIAS>_EMBEDDING_BIAS OUT_END_ID>_PREPROCESSOR_END_ID OUT_PAD_ID>_PREPROCESSOR_PAD_ID "
        "OUT_PROMPT_TABLE_EXTRA_IDS>_OUT_PROMPT_TABLE_EXTRA_IDS",
    ),
    "tensorrt_llm": (
        "input_ids<_INPUT_ID input_lengths<_REQUEST_INPUT_LEN decoder_input_ids<_DECODER_INPUT_ID "
        "decoder_input_lengths<_REQUEST_DECODER_INPUT_LEN request_output_len<_REQUEST_OUTPUT_LEN "
        "end_id<_PREPROCESSOR_END_ID pad_id<_PREPROCESSOR_PAD_ID embedding_bias<_EMBEDDING_BIAS "
        "stop_words_list<_STOP_WORDS_IDS bad_words_list<_BAD_WORDS_IDS "
        "prompt_table_extra_ids<_OUT_PROMPT_TABLE_EXTRA_IDS runtime_top_k<top_k runtime_top_p<top_p "
        "len_penalty<length_penalty streaming<stream exclude_input_in_output temperature repetition_penalty min_tokens "
        "presence_penalty frequency_penalty seed return_log_probs return_context_logits return_generation_logits "
        "return_perf_metrics return_num_input_tokens return_num_output_tokens num_return_sequences beam_width "
        "prompt_embedding_table prompt_vocab_size lora_task_id lora_weights lora_config guided_decoding_guide_type "
        "guided_decoding_guide",
        "output_ids>_TOKENS_BATCH sequence_length>_SEQUENCE_LENGTH "
        + " ".join(line.split()[0] for line in _ANSWERS.split("\n") if line),
    ),
    "postprocessing": ("TOKENS_BATCH<_TOKENS_BATCH SEQUENCE_LENGTH<_SEQUENCE_LENGTH", "OUTPUT>text_output"),
}

PARAMETERS: dict[str, str | None] = {
    # key: what the C++ backend takes without it; None: no value (or one that depends), so the key is not written
    "max_beam_width": "1",
    "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
    "gpt_model_type": None,
    "gpt_model_path": None,
    "encoder_model_path": None,
    "max_tokens_in_paged_kv_cache": None,
    "max_attention_window_size": None,
    "sink_token_length": None,
    "batch_scheduler_policy": "guaranteed_no_evict",
    "kv_cache_free_gpu_mem_fraction": "0.9",
    "cross_kv_cache_fraction": None,
    "kv_cache_host_memory_bytes": "0",
    "kv_cache_onboard_blocks": "true",
    "enable_kv_cache_reuse": "true",
    "exclude_input_in_output": "false",
    "cancellation_check_period_ms": "100",
    "stats_check_period_ms": "100",
    "recv_poll_period_ms": "0",
    "iter_stats_max_iterations": "1000",
    "request_stats_max_iterations": "0",
    "normalize_log_probs": "true",
    "enable_chunked_context": "false",
    "gpu_device_ids": None,
    "participant_ids": None,
    "num_nodes": "1",
    "lora_cache_optimal_adapter_size": "8",
    "lora_cache_max_adapter_size": "64",
    "lora_cache_gpu_memory_fraction": "0.05",
    "lora_cache_host_memory_bytes": "1073741824",
    "lora_prefetch_dir": None,
    "decoding_mode": None,
    "executor_worker_path": "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker",
    "lookahead_window_size": None,
    "lookahead_ngram_size": None,
    "lookahead_verification_set_size": None,
    "medusa_choices": None,
    "eagle_choices": None,
    "gpu_weights_percent": "1.0",
    "enable_context_fmha_fp32_acc": "false",
    "multi_block_mode": "true",
    "cuda_graph_mode": "false",
    "cuda_graph_cache_size": "0",
    "speculative_decoding_fast_logits": "false",
    "tokenizer_dir": None,
    "guided_decoding_backend": None,
    "xgrammar_tokenizer_info_path": None,
    "enable_trt_overlap": None,
}

OTHER_PARAMETERS: dict[str, set[str]] = {
    "preprocessing": {"tokenizer_dir", "add_special_tokens", "multimodal_model_path", "gpt_model_path",
                      "max_num_images"},
    "postprocessing": {"tokenizer_dir", "skip_special_tokens"},
    "tensorrt_llm_bls": {"accumulate_tokens", "tensorrt_llm_model_name", "tensorrt_llm_draft_model_name",
                         "multimodal_encoders_name"},
}  # fmt: skip


def tensors_of(text: str) -> dict[str, Tensor]:
    """Outputs, from lines of this file."""
    return _table(text, output=True)


def tensors(side: Any) -> dict[str, Tensor]:
    """The same form of the `input` or `output` of a parsed configuration (`ModelConfig`)."""
    from tritonclient.grpc import model_config_pb2

    found = {}
    for tensor in side:
        kind = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
        optional, ragged = getattr(tensor, "optional", False), getattr(tensor, "allow_ragged_batch", False)
        reshaped = tensor.HasField("reshape") and not tensor.reshape.shape
        found[tensor.name] = (kind, tuple(tensor.dims), bool(optional), bool(reshaped), bool(ragged))
    return found


def mapped(text: str) -> dict[str, str]:
    """One side of MAPS as inner -> outer."""
    pairs = [word.replace("<", ">").split(">") for word in text.split()]
    return {pair[0]: pair[-1] for pair in pairs}
