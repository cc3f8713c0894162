"""BuildOptions -> what trtllm-build reads as --build_config, and everything that would be refused. PURE.

Fields and their spelling: engine-build 3. Releases up to 1.1 fail without the seven keys of ALWAYS, and lay
plugin_config over the plugin options without looking at it, so booleans are booleans and a plugin that is off is null.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from trtbuild.engine.options import BuildOptions
from trtbuild.engine.tensorrt.effects import SPECULATIVE_MODES, Config, predict
from trtbuild.engine.tensorrt.options_table import BY_NAME
from trtbuild.errors import PlanError

ALWAYS = (
    *("max_input_len", "max_seq_len", "max_batch_size", "max_beam_width", "max_num_tokens", "opt_num_tokens"),
    "kv_cache_type",
)
_COPIED = (
    *("max_input_len", "max_seq_len", "max_batch_size", "max_beam_width", "max_num_tokens", "opt_num_tokens"),
    *("opt_batch_size", "max_prompt_embedding_table_size", "kv_cache_type", "gather_context_logits"),
    *("gather_generation_logits", "force_num_profiles", "profiling_verbosity", "enable_debug_output", "max_draft_len"),
    *("weight_sparsity", "weight_streaming", "use_strip_plan", "max_encoder_input_len", "monitor_memory"),
)
_MOST_TOKENS_PER_BLOCK = 1024


@dataclass(frozen=True)
class BuildPlan:
    """One engine's build: `request` is the build_config as it is written, `effective` as it will be saved."""

    options: BuildOptions
    request: Config
    effective: Config
    warnings: tuple[str, ...] = ()


def plan_build(
    options: BuildOptions, pretrained: Dict[str, Any], sm: int | None, layers: Sequence[str] = ()
) -> BuildPlan:
    """Decide a build for a checkpoint's config.json; `sm`, `layers` as for `effects.predict`.

    Raises:
        PlanError: everything that trtllm-build, build() or the GPU would refuse.
    """
    options.require("tensorrt")
    chosen = options.resolved("tensorrt")
    asked = request(chosen, pretrained)
    off = chosen.plugin_config.gemm_plugin == "disable"
    made = predict(asked, pretrained, sm, layers, gemm_plugin_off=off)
    refusals = [*conflicts(chosen), *made.refusals]
    if refusals:
        raise PlanError(refusals, hint="Nothing was started: trtllm-build would fail on each of these.")
    return BuildPlan(chosen, asked, made.effective, (*made.warnings, *_inert(chosen)))


def request(options: BuildOptions, pretrained: Dict[str, Any]) -> Config:
    """The build_config of options that are resolved for tensorrt, without timing caches."""
    lora = options.lora_config
    return {
        **{name: getattr(options, name) for name in _COPIED},
        "strongly_typed": True,
        "speculative_decoding_mode": SPECULATIVE_MODES[options.speculative_decoding_mode],
        "use_refit": False,
        "use_mrope": pretrained.get("qwen_type") == "qwen2_vl",
        "lora_config": {
            "lora_dir": [str(path) for path in lora.lora_dir],
            "lora_ckpt_source": lora.lora_ckpt_source,
            "max_lora_rank": lora.max_lora_rank,
            "lora_target_modules": list(lora.lora_target_modules),
        },
        "plugin_config": {**plugin_values(options), "manage_weights": options.fast_build},
    }


def plugin_values(options: BuildOptions) -> Config:
    """plugin_config as PluginConfig holds it: off is null."""
    values = {item.name: getattr(options.plugin_config, item.name) for item in fields(options.plugin_config)}
    return {name: None if value == "disable" else value for name, value in values.items()}


def with_timing_cache(asked: Config, read: str | None, write: str) -> Config:
    """The build_config with its caches: absolute paths, as relative ones are taken from the current directory."""
    return {**asked, "input_timing_cache": read, "output_timing_cache": write}


def conflicts(options: BuildOptions) -> list[str]:
    """Combinations that TensorRT-LLM refuses whatever the checkpoint is (engine-build 2.10)."""
    plugins, found = options.plugin_config, []
    if options.gather_context_logits and options.max_draft_len > 0:
        found.append("gather_context_logits cannot be had with max_draft_len above 0; take gather_generation_logits")
    if plugins.multiple_profiles and options.opt_num_tokens is not None:
        found.append("multiple_profiles and opt_num_tokens exclude each other: profiles have token counts of their own")
    swiglu = [n for n in ("gemm_swiglu_plugin", "low_latency_gemm_swiglu_plugin") if getattr(plugins, n) != "disable"]
    if swiglu and not plugins.use_fused_mlp:
        found.append(f"{' and '.join(swiglu)} need use_fused_mlp")
    size = plugins.tokens_per_block
    if size < 1 or size & (size - 1) or size > _MOST_TOKENS_PER_BLOCK:
        found.append(f"tokens_per_block {size} must be a power of two up to {_MOST_TOKENS_PER_BLOCK}")
    known = BY_NAME["lora_target_modules"].choices
    unknown = [name for name in options.lora_config.lora_target_modules if name not in known]
    if unknown:
        found.append(f"lora_target_modules {', '.join(unknown)}: known are {', '.join(known)}")
    if plugins.dora_plugin and plugins.lora_plugin == "disable":
        found.append("dora_plugin needs lora_plugin")
    return found


def _inert(options: BuildOptions) -> list[str]:
    """Options that do nothing, or less than they seem to."""
    lora, on, found = options.lora_config, options.plugin_config.lora_plugin != "disable", []
    if not on and (lora.lora_dir or lora.lora_target_modules):
        found.append("lora_config has no effect without plugin_config.lora_plugin")
    if on and not lora.lora_target_modules and not lora.lora_dir:
        found.append("lora_plugin without lora_target_modules: adapters that come with requests need them")
    if options.gather_generation_logits:
        found.append("gather_generation_logits is a setting of the runtime now; as one of the build it does nothing")
    return found
