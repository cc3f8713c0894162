"""The arguments of tensorrt_llm.LLM (its PyTorch backend) as data, and what is wrong with given ones. PURE.

Sources: TorchLlmArgs and BaseLlmArgs in tensorrt_llm/llmapi/llm_args.py of 1.2.0rc, and the API reference of 1.3.0rc7;
1.2.1 lies between them. The class refuses names that it does not know, and releases differ in them, so a name that is
missing here is a warning, and no error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ARGUMENTS: dict[str, str] = {
    # name -> kind of the value; "?": null is a value, too
    "tokenizer": "str?", "tokenizer_mode": "str", "custom_tokenizer": "str?", "tokenizer_revision": "str?",
    "skip_tokenizer_init": "bool", "trust_remote_code": "bool", "dtype": "str", "revision": "str?",
    "model_kwargs": "dict?", "load_format": "str", "checkpoint_format": "str?", "backend": "str?",
    # parallelism
    "tensor_parallel_size": "int", "pipeline_parallel_size": "int", "context_parallel_size": "int",
    "gpus_per_node": "int?", "moe_cluster_parallel_size": "int?", "moe_tensor_parallel_size": "int?",
    "moe_expert_parallel_size": "int?", "enable_attention_dp": "bool", "enable_lm_head_tp_in_adp": "bool",
    "attention_dp_config": "dict?", "pp_partition": "list?", "cp_config": "dict?", "allreduce_strategy": "str?",
    # sizes
    "max_batch_size": "int?", "max_input_len": "int?", "max_seq_len": "int?", "max_beam_width": "int?",
    "max_num_tokens": "int?", "enable_chunked_prefill": "bool", "fail_fast_on_attention_window_too_large": "bool",
    # parts with settings of their own
    "kv_cache_config": "dict", "scheduler_config": "dict", "peft_cache_config": "dict?",
    "cache_transceiver_config": "dict?", "sparse_attention_config": "dict?", "speculative_config": "dict?",
    "cuda_graph_config": "dict?", "moe_config": "dict", "nvfp4_gemm_config": "dict", "torch_compile_config": "dict?",
    "kv_connector_config": "dict?", "enable_lora": "bool", "lora_config": "dict?",
    "layer_wise_benchmarks_config": "dict",
    # how it computes
    "attn_backend": "str", "sampler_type": "str", "sampler_force_async_worker": "bool",
    "disable_flashinfer_sampling": "bool", "disable_overlap_scheduler": "bool", "guided_decoding_backend": "str?",
    "force_dynamic_quantization": "bool", "enable_autotuner": "bool", "enable_min_latency": "bool",
    "mm_encoder_only": "bool", "gather_generation_logits": "bool", "garbage_collection_gen0_threshold": "int",
    "use_cute_dsl_blockscaling_mm": "bool", "use_cute_dsl_blockscaling_bmm": "bool", "enable_sleep": "bool",
    # when it answers
    "stream_interval": "int", "batch_wait_timeout_ms": "float", "batch_wait_timeout_iters": "int",
    "batch_wait_max_tokens_ratio": "float", "num_postprocess_workers": "int", "postprocess_tokenizer_dir": "str?",
    "reasoning_parser": "str?",
    # what it tells
    "iter_stats_max_iterations": "int?", "request_stats_max_iterations": "int?", "max_stats_len": "int",
    "enable_iter_perf_stats": "bool", "enable_iter_req_stats": "bool", "print_iter_log": "bool",
    "return_perf_metrics": "bool", "perf_metrics_max_requests": "int", "enable_layerwise_nvtx_marker": "bool",
    "otlp_traces_endpoint": "str?",
    # processes
    "orchestrator_type": "str?", "env_overrides": "dict?", "ray_worker_extension_cls": "str?",
    "ray_placement_config": "dict?", "ray_worker_nsight_options": "dict?",
}  # fmt: skip
"""Those that YAML can say; `model` is the checkpoint's own."""

FLAGS = {
    "tensor_parallel_size": "--tp",
    "pipeline_parallel_size": "--pp",
    "kv_cache_config.max_tokens": "--max-tokens-in-kv",
    "kv_cache_config.free_gpu_memory_fraction": "--kv-mem-fraction",
}
"""Argument, or a setting inside of one -> the option of `trtbuild repo` that is for it."""

_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "dict": (dict,),
    "list": (list,),
}


def argument_problems(arguments: Mapping[str, Any]) -> list[str]:
    """One sentence for every value of another kind, and for what the llmapi model cannot have."""
    problems = []
    for key, value in arguments.items():
        if key == "model":
            problems.append("argument model is the checkpoint's own folder and cannot be set")
        elif key in ARGUMENTS and not _fits(value, ARGUMENTS[key]):
            wanted = ARGUMENTS[key].replace("?", " or null")
            problems.append(f"argument {key}: {value!r} is not of the kind {wanted}")
    if arguments.get("backend") not in (None, "pytorch"):
        problems.append(f"argument backend {arguments['backend']!r}: upstream's llmapi model serves pytorch only")
    return problems


def unknown_arguments(arguments: Mapping[str, Any]) -> list[str]:
    """One sentence for every name that is none of ARGUMENTS."""
    from difflib import get_close_matches

    sentences = []
    for key in arguments:
        if key not in ARGUMENTS and key != "model":
            close = get_close_matches(key, ARGUMENTS, 1)
            meant = f"; did you mean {close[0]}?" if close else ""
            sentences.append(f"{key} is no argument of tensorrt_llm.LLM 1.2 that trtbuild knows{meant}")
    return sentences


def flag_problems(arguments: Mapping[str, Any]) -> list[str]:
    """One sentence for every argument that an option of its own is for; of two values one would win unseen."""
    cache = arguments.get("kv_cache_config")
    given = set(arguments) | {f"kv_cache_config.{key}" for key in (cache if isinstance(cache, dict) else ())}
    return [f"argument {key} has an option of its own: {flag}" for key, flag in FLAGS.items() if key in given]


def read_arguments(texts: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """(Values that were given as YAML texts, what is wrong with those that are none)."""
    import yaml

    found, problems = {}, []
    for key, text in texts.items():
        try:
            found[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            problems.append(f"argument {key}: {text!r} is not YAML: {str(error).splitlines()[0]}")
    return found, problems


def _fits(value: Any, kind: str) -> bool:
    if value is None:
        return kind.endswith("?")
    wanted = _KINDS[kind.rstrip("?")]
    return isinstance(value, wanted) and (not isinstance(value, bool) or bool in wanted)
