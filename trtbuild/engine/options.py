"""What is fixed when an engine is built, by the names of TensorRT-LLM's BuildConfig, PluginConfig and LoraConfig.

Facts: engine-build 2 (options of trtllm-build 1.2.1), 3 (BuildConfig and PluginConfig). A field that is None in
`BuildOptions` has the default of the target. The cpu engine has a few of them only, and refuses the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from trtbuild.errors import PlanError
from trtbuild.spec import deduced_seq_len

PluginDtype = Literal["auto", "float16", "float32", "bfloat16", "int32", "disable"]
GemmPlugin = Literal["auto", "float16", "float32", "bfloat16", "int32", "fp8", "nvfp4", "disable"]
Fp8Plugin = Literal["fp8", "disable"]
KvCacheType = Literal["continuous", "paged", "disabled"]
Verbosity = Literal["layer_names_only", "detailed", "none"]
SpeculativeMode = Literal[
    "none", "draft_tokens_external", "lookahead_decoding", "medusa", "explicit_draft_tokens", "eagle"
]
LogLevel = Literal["internal_error", "error", "warning", "info", "verbose", "debug", "trace"]


@dataclass(frozen=True)
class PluginOptions:
    """Plugins and kernel features, with the defaults of trtllm-build 1.2.1 (engine-build 2.8).

    A plugin is a dtype, "auto" for the model's, or "disable"; a feature is true or false. What has no option there is
    switched by TensorRT-LLM itself.
    """

    bert_attention_plugin: PluginDtype = "auto"
    gpt_attention_plugin: PluginDtype = "auto"
    gemm_plugin: GemmPlugin | None = None
    """None: off, but nvfp4 for an NVFP4 checkpoint; "disable" keeps it off there too (engine-build 4.1)."""
    gemm_swiglu_plugin: Fp8Plugin = "disable"
    fp8_rowwise_gemm_plugin: PluginDtype = "disable"
    lora_plugin: PluginDtype = "disable"
    dora_plugin: bool = False
    moe_plugin: PluginDtype = "auto"
    mamba_conv1d_plugin: PluginDtype = "auto"
    nccl_plugin: PluginDtype = "auto"
    low_latency_gemm_plugin: Fp8Plugin = "disable"
    low_latency_gemm_swiglu_plugin: Fp8Plugin = "disable"
    gemm_allreduce_plugin: Literal["float16", "bfloat16", "disable"] = "disable"
    context_fmha: bool = True
    bert_context_fmha_fp32_acc: bool = False
    remove_input_padding: bool = True
    tokens_per_block: int = 32
    use_paged_context_fmha: bool = True
    use_fp8_context_fmha: bool = True
    fuse_fp4_quant: bool = False
    multiple_profiles: bool = False
    paged_state: bool = True
    streamingllm: bool = False
    norm_quant_fusion: bool = False
    reduce_fusion: bool = False
    user_buffer: bool = False
    use_fused_mlp: bool = True
    pp_reduce_scatter: bool = False


@dataclass(frozen=True)
class LoraOptions:
    """Adapters (engine-build 2.5); inert unless `plugin_config.lora_plugin` is on."""

    lora_dir: tuple[Path, ...] = ()
    lora_ckpt_source: Literal["hf", "nemo"] = "hf"
    lora_target_modules: tuple[str, ...] = ()
    max_lora_rank: int = 64


@dataclass(frozen=True)
class BuildOptions:
    """Limits and switches of an engine; None is the target's default (`resolved`).

    `max_seq_len` None: deduced from the checkpoint, as trtllm-build does. `opt_num_tokens` None: deduced too.
    `logits_dtype` None: the checkpoint's. `max_num_tokens`: tokens of one step, all sequences together.
    """

    max_batch_size: int | None = None
    max_seq_len: int | None = None
    max_num_tokens: int | None = None
    max_input_len: int = 1024
    max_beam_width: int = 1
    opt_num_tokens: int | None = None
    opt_batch_size: int = 8
    max_encoder_input_len: int = 1024
    max_prompt_embedding_table_size: int = 0
    kv_cache_type: KvCacheType = "paged"
    logits_dtype: Literal["float16", "float32"] | None = None
    gather_context_logits: bool = False
    gather_generation_logits: bool = False
    speculative_decoding_mode: SpeculativeMode = "none"
    max_draft_len: int = 0
    profiling_verbosity: Verbosity = "layer_names_only"
    enable_debug_output: bool = False
    weight_sparsity: bool = False
    weight_streaming: bool = False
    use_strip_plan: bool = False
    fast_build: bool = False
    monitor_memory: bool = False
    force_num_profiles: int | None = None
    log_level: LogLevel = "info"
    lora_config: LoraOptions = field(default_factory=LoraOptions)
    plugin_config: PluginOptions = field(default_factory=PluginOptions)

    def resolved(self, target: str) -> BuildOptions:
        """The same with the target's defaults in the place of None."""
        usual = DEFAULTS[target]
        return replace(
            self,
            max_batch_size=usual["max_batch_size"] if self.max_batch_size is None else self.max_batch_size,
            max_num_tokens=usual["max_num_tokens"] if self.max_num_tokens is None else self.max_num_tokens,
        )

    def require(self, target: str = "cpu") -> None:
        """Raise PlanError with every limit that is impossible, contradicts another, or that the target does not have.

        What only TensorRT-LLM refuses is found by `engine.tensorrt.build_config`.
        """
        chosen = self.resolved(target)
        at_least = {"max_batch_size": 1, "max_num_tokens": 1, "max_seq_len": 2, "max_input_len": 1, "opt_batch_size": 1}
        at_least |= {"max_beam_width": 1, "opt_num_tokens": 1, "max_draft_len": 0, "max_encoder_input_len": 1}
        problems = [
            f"{name} {getattr(chosen, name)} must be at least {least}"
            for name, least in at_least.items()
            if getattr(chosen, name) is not None and getattr(chosen, name) < least
        ]
        if target == "cpu":
            assert chosen.max_batch_size is not None
            assert chosen.max_num_tokens is not None
            if 0 < chosen.max_num_tokens < chosen.max_batch_size:
                problems.append(
                    f"max_num_tokens {chosen.max_num_tokens} is below max_batch_size {chosen.max_batch_size}: "
                    "a step could not give every sequence its next token"
                )
            problems += [f"{name}: the cpu engine does not have it" for name in changed(self) if name not in CPU]
        if problems:
            raise PlanError(problems)

    def build_config(self, pretrained: dict[str, Any]) -> dict[str, Any]:
        """The `build_config` of a cpu engine's config.json."""
        chosen = self.resolved("cpu")
        assert chosen.max_batch_size is not None
        assert chosen.max_num_tokens is not None
        longest = self.max_seq_len or deduced_seq_len(pretrained)
        return {
            "max_input_len": longest - 1,
            "max_seq_len": longest,
            "max_batch_size": chosen.max_batch_size,
            "max_beam_width": 1,
            "max_num_tokens": chosen.max_num_tokens,
            "opt_num_tokens": min(chosen.max_batch_size, chosen.max_num_tokens),
            "kv_cache_type": "paged",
            "gather_context_logits": False,
            "gather_generation_logits": False,
        }

    def recorded(self, target: str) -> dict[str, Any]:
        """What a manifest says of them: plain values, of the cpu engine only what it has."""
        whole: dict[str, Any] = _plain(self.resolved(target))
        return {name: whole[name] for name in CPU} if target == "cpu" else whole


@dataclass(frozen=True)
class LaunchOptions:
    """How a tensorrt engine is built; nothing of it changes the engine.

    `mode`: in-process, where our ranks call tensorrt_llm and those that are finished are not built again; or command,
    which runs trtllm-build itself. `processes`: MPI processes, each with a GPU, that share the ranks; None is one a
    rank, or one a GPU where this host has fewer. `hostfile`: of several hosts with a common file system.
    `timeout_s`, `hang_s` (no log line and no CPU time): seconds until the build is ended, 0 never.
    """

    mode: Literal["in-process", "command"] = "in-process"
    launcher: Literal["auto", "mpirun", "srun", "none"] = "auto"
    processes: int | None = None
    hostfile: Path | None = None
    timeout_s: float = 0.0
    hang_s: float = 900.0
    timing_cache: Path | None = None
    log_dir: Path | None = None


CPU = ("max_batch_size", "max_seq_len", "max_num_tokens")
"""The fields that the cpu engine has."""

DEFAULTS: dict[str, dict[str, int]] = {
    "cpu": {"max_batch_size": 64, "max_num_tokens": 128},
    "tensorrt": {"max_batch_size": 2048, "max_num_tokens": 8192},  # BuildConfig's (engine-build 3.1)
}


def changed(options: object, path: str = "") -> list[str]:
    """Paths of the fields that differ from the defaults of their class ("plugin_config.gemm_plugin")."""
    assert is_dataclass(options)
    assert not isinstance(options, type)
    usual, found = options.__class__(), []
    for item in fields(options):
        value = getattr(options, item.name)
        if is_dataclass(value):
            found += changed(value, f"{path}{item.name}.")
        elif value != getattr(usual, item.name):
            found.append(path + item.name)
    return found


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
