"""Every option of trtllm-build 1.2.1 as data, and those that are gone. PURE.

Source: NVIDIA/TensorRT-LLM tensorrt_llm/commands/build.py and tensorrt_llm/plugin/plugin.py of the 1.2 line, its
docs/source/release-notes.md for what was removed (engine-build 2). `--build_config FILE` replaces all options whose
`where` is JSON; plugin options are a base under the file's plugin_config; the others (CLI) act in either case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CLI, JSON, PLUGIN = "cli", "json", "plugin"
FLAG, SWITCH, INT, TEXT, LIST = "flag", "switch", "int", "text", "list"


@dataclass(frozen=True)
class Option:
    """One option. `kind` SWITCH: "enable" or "disable", never bare; FLAG: bare, never a value.

    `field`: the path in BuildOptions that it sets, "" for what trtbuild itself decides or does not offer.
    """

    name: str
    kind: str
    where: str
    default: Any = None
    choices: tuple[str, ...] = ()
    field: str = ""
    aliases: tuple[str, ...] = ()
    deprecated: str = ""


_DTYPES = ("auto", "float16", "float32", "bfloat16", "int32", "disable")
_LORA_MODULES = (
    *("attn_qkv", "attn_q", "attn_k", "attn_v", "attn_dense", "mlp_h_to_4h", "mlp_4h_to_h", "mlp_gate"),
    *("cross_attn_qkv", "cross_attn_q", "cross_attn_k", "cross_attn_v", "cross_attn_dense"),
    *("moe_h_to_4h", "moe_4h_to_h", "moe_gate", "moe_router", "mlp_router", "mlp_gate_up"),
)


def _text(name: str, where: str, default: Any = None, choices: tuple[str, ...] = (), **more: Any) -> Option:
    return Option(name, TEXT, where, default, choices, **more)


def _int(name: str, where: str, default: int | None, **more: Any) -> Option:
    return Option(name, INT, where, default, **more)


def _flag(name: str, where: str, **more: Any) -> Option:
    return Option(name, FLAG, where, False, **more)


def _plugin(name: str, default: str | None, choices: tuple[str, ...] = _DTYPES) -> Option:
    return Option(name, TEXT, PLUGIN, default, choices, f"plugin_config.{name}")


def _switch(name: str, default: bool) -> Option:
    usual = "enable" if default else "disable"
    return Option(name, SWITCH, PLUGIN, usual, ("enable", "disable"), f"plugin_config.{name}")


OPTIONS: tuple[Option, ...] = (
    # 2.1 inputs and outputs
    _text("checkpoint_dir", CLI),
    _text("model_config", CLI),
    _text("build_config", CLI),
    _text("model_cls_file", CLI),
    _text("model_cls_name", CLI),
    _text("output_dir", CLI, "engine_outputs"),
    # 2.2 shapes
    _int("max_batch_size", JSON, 2048, field="max_batch_size"),
    _int("max_input_len", JSON, 1024, field="max_input_len"),
    _int("max_seq_len", JSON, None, field="max_seq_len", aliases=("max_decoder_seq_len",)),
    _int("max_beam_width", JSON, 1, field="max_beam_width"),
    _int("max_num_tokens", JSON, 8192, field="max_num_tokens"),
    _int("opt_num_tokens", JSON, None, field="opt_num_tokens"),
    _int("max_encoder_input_len", JSON, 1024, field="max_encoder_input_len"),
    _int(
        "max_prompt_embedding_table_size",
        JSON,
        0,
        field="max_prompt_embedding_table_size",
        aliases=("max_multimodal_len",),
    ),
    # 2.3 KV cache; tokens_per_block is a plugin option
    _text("kv_cache_type", JSON, None, ("continuous", "paged", "disabled"), field="kv_cache_type"),
    _text("paged_kv_cache", PLUGIN, None, deprecated="kv_cache_type says it"),
    # 2.4 logits
    _text("logits_dtype", CLI, None, ("float16", "float32"), field="logits_dtype"),
    _flag("gather_context_logits", JSON, field="gather_context_logits"),
    _flag(
        "gather_generation_logits",
        JSON,
        field="gather_generation_logits",
        deprecated="a setting of the runtime; as an option of the build it does nothing",
    ),
    _flag("gather_all_token_logits", JSON),
    # 2.5 LoRA
    Option("lora_dir", LIST, CLI, None, (), "lora_config.lora_dir"),
    _text("lora_ckpt_source", CLI, "hf", ("hf", "nemo"), field="lora_config.lora_ckpt_source"),
    Option("lora_target_modules", LIST, CLI, None, _LORA_MODULES, "lora_config.lora_target_modules"),
    _int("max_lora_rank", CLI, 64, field="lora_config.max_lora_rank"),
    # 2.6 speculative decoding
    _text(
        "speculative_decoding_mode",
        JSON,
        None,
        ("draft_tokens_external", "lookahead_decoding", "medusa", "explicit_draft_tokens", "eagle"),
        field="speculative_decoding_mode",
    ),
    _int("max_draft_len", JSON, 0, field="max_draft_len"),
    # 2.7 the builder
    _text("input_timing_cache", JSON),
    _text("output_timing_cache", JSON, "model.cache"),
    _text(
        "profiling_verbosity",
        JSON,
        "layer_names_only",
        ("layer_names_only", "detailed", "none"),
        field="profiling_verbosity",
    ),
    _flag("strip_plan", CLI, field="use_strip_plan"),
    _flag("weight_sparsity", JSON, field="weight_sparsity"),
    _flag("weight_streaming", JSON, field="weight_streaming"),
    _flag("fast_build", CLI, field="fast_build"),
    _int("workers", CLI, 1),
    _text(
        "log_level",
        CLI,
        "info",
        ("internal_error", "error", "warning", "info", "verbose", "debug", "trace"),
        field="log_level",
    ),
    _flag("enable_debug_output", JSON, field="enable_debug_output"),
    _text("visualize_network", JSON),
    _flag("dry_run", JSON),
    _flag("monitor_memory", JSON, field="monitor_memory"),
    # 2.8 plugins and features
    _plugin("bert_attention_plugin", "auto"),
    _plugin("gpt_attention_plugin", "auto"),
    _plugin("gemm_plugin", None, (*_DTYPES[:-1], "fp8", "nvfp4", "disable")),
    _plugin("gemm_swiglu_plugin", "disable", ("fp8", "disable")),
    _plugin("fp8_rowwise_gemm_plugin", "disable"),
    _plugin("lora_plugin", "disable"),
    _switch("dora_plugin", False),
    _plugin("moe_plugin", "auto"),
    _plugin("mamba_conv1d_plugin", "auto"),
    _plugin("nccl_plugin", "auto"),
    _plugin("low_latency_gemm_plugin", "disable", ("fp8", "disable")),
    _plugin("low_latency_gemm_swiglu_plugin", "disable", ("fp8", "disable")),
    _plugin("gemm_allreduce_plugin", "disable", ("float16", "bfloat16", "disable")),
    _switch("context_fmha", True),
    _switch("bert_context_fmha_fp32_acc", False),
    _switch("remove_input_padding", True),
    Option("tokens_per_block", INT, PLUGIN, 32, (), "plugin_config.tokens_per_block"),
    _switch("use_paged_context_fmha", True),
    _switch("use_fp8_context_fmha", True),
    _switch("fuse_fp4_quant", False),
    _switch("multiple_profiles", False),
    _switch("paged_state", True),
    _switch("streamingllm", False),
    _switch("norm_quant_fusion", False),
    _switch("reduce_fusion", False),
    _switch("user_buffer", False),
    _switch("use_fused_mlp", True),
    _switch("pp_reduce_scatter", False),
)

BY_NAME: dict[str, Option] = {name: option for option in OPTIONS for name in (option.name, *option.aliases)}

_PARALLEL = "how many ranks there are is fixed by the checkpoint; convert it with --tp and --pp"
REMOVED: dict[str, str] = {
    "auto_parallel": f"removed in 1.2 with the automatic planner: {_PARALLEL}",
    "gpus_per_node": f"removed in 1.2 with the automatic planner: {_PARALLEL}",
    "cluster_key": f"removed in 1.2 with the automatic planner: {_PARALLEL}",
    "builder_force_num_profiles": "an environment variable since 0.15, BUILDER_FORCE_NUM_PROFILES; in a recipe or "
    "--set it is force_num_profiles",
    "enable_xqa": "removed in 0.16: XQA kernels are chosen at run time",
    "use_custom_all_reduce": "removed before 0.17: the all-reduce is chosen at run time",
    "context_fmha_fp32_acc": "removed before 0.17: it is the runtime's enable_context_fmha_fp32_acc",
    "enable_context_fmha_fp32_acc": "a setting of the runtime, not of the build",
    "multi_block_mode": "a setting of the runtime since 0.13",
    "strongly_typed": "removed: networks are always strongly typed",
    "max_output_len": "removed in 0.11: max_seq_len counts prompt and output together",
    "world_size": _PARALLEL,
    "tp_size": _PARALLEL,
    "pp_size": _PARALLEL,
}
"""Options of older releases (engine-build 2.9): what became of each."""
