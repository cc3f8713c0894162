"""What a generation asks for -> the tensors of the model of a llmapi repository. Pure.

Source: upstream's all_models/llmapi of TensorRT-LLM 1.2; what trtbuild's own model adds to it is in
trtbuild/triton/llmapi_tensors.py.
"""

from __future__ import annotations

from trtbuild.client.payload import Generation, Rows, check_generation, rows, sampling
from trtbuild.errors import RequestError

_NEVER = (
    "length_penalty", "num_return_sequences", "beam_width", "lora_task_id", "embedding_bias", "log_probs", "guide",
    "guide_type",
)  # fmt: skip
"""Choices that this model has no tensor for."""


def llmapi_tensors(generation: Generation) -> Rows:
    """Input tensors; `end_id` -1 is what TensorRT-LLM calls ignore_eos there.

    Raises:
        RequestError: values that no server could take, and choices that this model does not offer.
    """
    g = generation
    check_generation(g)
    asked = [name for name in _NEVER if getattr(g, name) not in (None, False) and getattr(g, name) != {}]
    if asked:
        raise RequestError(f"a llmapi model has no input for {', '.join(asked)}")
    temperature, top_k, top_p = sampling(g)
    return rows(
        ("text_input", "BYTES", g.prompt),
        ("sampling_param_max_tokens", "INT32", g.max_tokens),
        ("streaming", "BOOL", g.stream),
        ("sampling_param_exclude_input_from_output", "BOOL", True),
        ("return_num_output_tokens", "BOOL", True),
        ("return_finish_reason", "BOOL", True),
        ("return_num_input_tokens", "BOOL", g.count_prompt or None),
        ("sampling_param_temperature", "FP32", temperature),
        ("sampling_param_top_k", "INT32", top_k),
        ("sampling_param_top_p", "FP32", top_p),
        ("sampling_param_presence_penalty", "FP32", g.presence_penalty),
        ("sampling_param_frequency_penalty", "FP32", g.frequency_penalty),
        ("sampling_param_repetition_penalty", "FP32", g.repetition_penalty),
        ("sampling_param_min_tokens", "INT32", g.min_tokens),
        ("sampling_param_seed", "UINT64", g.seed),
        ("sampling_param_end_id", "INT32", None if g.end_id == -1 else g.end_id),
        ("sampling_param_ignore_eos", "BOOL", g.end_id == -1 or None),
        ("sampling_param_add_special_tokens", "BOOL", g.add_special_tokens),
        ("sampling_param_stop", "BYTES", g.stop),
        ("sampling_param_bad", "BYTES", g.bad),
    )
