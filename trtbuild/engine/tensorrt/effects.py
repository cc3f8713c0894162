"""What TensorRT-LLM's build() changes or refuses by itself, told before it runs. PURE.

`predict` applies the rules of engine-build 4.1 in their order to a build_config. Most of them are silent upstream but
for a line in the log, and some switch off what a server relies on (KV cache reuse, chunked context).
Source: NVIDIA/TensorRT-LLM tensorrt_llm/builder.py (build, _init_max_seq_len), tensorrt_llm/_common.py
(check_max_num_tokens), tensorrt_llm/plugin/plugin.py (validate), of October 2025, that is 1.2.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping as Dict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trtbuild.quantization import (
    DATA_CENTER_BLACKWELL,
    KV_LEAST_SM,
    KV_NOT_ON_BLACKWELL,
    LEAST_SM,
    NOT_ON_BLACKWELL,
)
from trtbuild.spec import deduced_seq_len, rotary_factor

Config = dict[str, Any]

SPECULATIVE_MODES = {
    "none": 1,
    "draft_tokens_external": 2,
    "medusa": 4,
    "lookahead_decoding": 8,
    "explicit_draft_tokens": 16,
    "eagle": 32,
}
"""SpeculativeDecodingMode of tensorrt_llm/models/modeling_utils.py, which JSON holds as a number."""
FP8_FMHA = ("FP8", "W4A8_AWQ", "NVFP4")
"""quant_algos whose context attention may run in fp8."""
REDUCE_FUSION = ("LlamaForCausalLM", "Gemma2ForCausalLM", "MedusaForCausalLM")
_RECURRENT = {"MambaForCausalLM": False, "RecurrentGemmaForCausalLM": True}  # whether it has a paged KV cache too
_ENCODERS = ("EncoderModel",)
_PP_REDUCE_SCATTER = ("MixtralForCausalLM",)
_NORM_QUANT_FUSION = ("LlamaForCausalLM",)
_SM100_PLUGINS = (
    *("gemm_swiglu_plugin", "fp8_rowwise_gemm_plugin", "low_latency_gemm_plugin", "low_latency_gemm_swiglu_plugin"),
    "bert_context_fmha_fp32_acc",
)
_OLDEST_SM = 80
_MUCH_TOKENS = 16384
_LONG = 16384


@dataclass
class Prediction:
    """`effective`: the build_config that build() will save. `warnings`: what it changes, and what that means."""

    effective: Config
    warnings: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def change(self, name: str, value: Any, why: str) -> None:
        """Set a field of the build_config or of its plugin_config, and tell it where it differs."""
        place = self.plugins if name in self.plugins else self.effective
        if place.get(name) != value:
            self.warnings.append(f"{name} {_shown(place.get(name))} will become {_shown(value)}: {why}")
        place[name] = value

    @property
    def plugins(self) -> Config:
        found: Config = self.effective["plugin_config"]
        return found


def predict(
    request: Config,
    pretrained: Dict[str, Any],
    sm: int | None,
    layers: Sequence[str] = (),
    *,
    gemm_plugin_off: bool = False,
) -> Prediction:
    """The fate of `request` (a build_config as `build_config.request` makes it) for a checkpoint's config.

    `sm`: compute capability, e.g. 90; None where it is not known, and nothing that depends on it is said. `layers`:
    the quant_algos of a MIXED_PRECISION checkpoint's modules. `gemm_plugin_off`: it was disabled by name.
    """
    made = Prediction(copy.deepcopy(request))
    quantization = pretrained.get("quantization") or {}
    algo, kv = quantization.get("quant_algo"), quantization.get("kv_cache_quant_algo")
    _kinds(made, pretrained)
    _lengths(made, pretrained)
    _fusions(made, pretrained, algo)
    _speculation(made, pretrained)
    _context_attention(made, algo, kv, sm)
    _hardware(made, {name for name in (algo, *layers) if name}, kv, sm)
    _plugins_of_quantization(made, None if gemm_plugin_off else algo, int(pretrained["mapping"]["world_size"]))
    _consequences(made, request, algo)
    return made


def _kinds(made: Prediction, pretrained: Dict[str, Any]) -> None:
    """The kind of KV cache, and what only other architectures use."""
    paged = made.effective["kv_cache_type"] == "paged"
    recurrent = pretrained["architecture"] in _RECURRENT
    made.plugins["paged_kv_cache"] = paged and _RECURRENT.get(pretrained["architecture"], True)
    made.plugins["paged_state"] = paged and recurrent  # of transformers it is always off; nobody asked for it
    if made.plugins["streamingllm"]:
        made.refusals.append("streamingllm is no longer supported; it never had to do with streaming the output")
    if made.plugins["pp_reduce_scatter"] and pretrained["architecture"] not in _PP_REDUCE_SCATTER:
        known = " or ".join(_PP_REDUCE_SCATTER)
        made.refusals.append(f"pp_reduce_scatter is for {known} only, not {pretrained['architecture']}")


def _lengths(made: Prediction, pretrained: Dict[str, Any]) -> None:
    config, plugins = made.effective, made.plugins
    if pretrained["architecture"] in _ENCODERS:
        if config["max_seq_len"] is None:
            config["max_seq_len"] = config["max_input_len"]
        if config["max_seq_len"] != config["max_input_len"]:
            made.refusals.append(
                f"an encoder needs equal max_input_len and max_seq_len, not {config['max_input_len']} and "
                f"{config['max_seq_len']}"
            )
    positions = pretrained.get("max_position_embeddings")
    deduced = deduced_seq_len(pretrained)
    if config["max_seq_len"] is None:
        config["max_seq_len"] = deduced
        advice = "; set max_seq_len to what requests need" if deduced > _LONG else ""
        made.warnings.append(f"max_seq_len is not set: {deduced} is deduced from the checkpoint{advice}")
    elif positions and config["max_seq_len"] > positions * rotary_factor(pretrained):
        made.warnings.append(
            f"max_seq_len {config['max_seq_len']} is beyond the {deduced} tokens the model was made for"
        )
    if config["max_input_len"] > config["max_seq_len"]:
        if plugins["remove_input_padding"] and plugins["context_fmha"]:
            config["max_input_len"] = config["max_seq_len"]  # nothing is lost: it is not used at all then
        made.change("max_input_len", config["max_seq_len"], "it cannot be longer than max_seq_len")
    _num_tokens(made, plugins)


def _num_tokens(made: Prediction, plugins: Config) -> None:
    """check_max_num_tokens of tensorrt_llm/_common.py."""
    config = made.effective
    most = config["max_seq_len"] * config["max_batch_size"]
    if not plugins["remove_input_padding"]:
        made.change("max_num_tokens", most, "without remove_input_padding it is max_batch_size x max_seq_len")
        return
    if config["max_num_tokens"] is None:
        made.change("max_num_tokens", most, "it is not set")
    if config["opt_num_tokens"] is None and not plugins["multiple_profiles"]:
        config["opt_num_tokens"] = min(config["max_batch_size"] * config["max_beam_width"], config["max_num_tokens"])
    if config["max_num_tokens"] > _MUCH_TOKENS:
        made.warnings.append(
            f"max_num_tokens {config['max_num_tokens']} is above {_MUCH_TOKENS}: more memory for activations, hardly "
            "more speed, and it may exceed TensorRT's tensor volume"
        )
    if config["max_num_tokens"] > most:
        made.change("max_num_tokens", most, "there are no more than max_batch_size x max_seq_len")
    if not plugins["context_fmha"] and config["max_num_tokens"] < config["max_input_len"]:
        made.change("max_num_tokens", config["max_input_len"], "without context_fmha a prompt is not cut")
    elif plugins["context_fmha"] and config["max_num_tokens"] < plugins["tokens_per_block"]:
        made.change("max_num_tokens", plugins["tokens_per_block"], "a step takes at least one block; chunk contexts")
    if config["opt_num_tokens"] is not None and config["opt_num_tokens"] > config["max_num_tokens"]:
        made.change("opt_num_tokens", config["max_num_tokens"], "it cannot exceed max_num_tokens")


def _fusions(made: Prediction, pretrained: Dict[str, Any], algo: str | None) -> None:
    plugins, architecture = made.plugins, pretrained["architecture"]
    tp = int(pretrained["mapping"].get("tp_size", 1))
    if plugins["reduce_fusion"] and (tp == 1 or architecture not in REDUCE_FUSION):
        why = "there is no all-reduce with tp 1" if tp == 1 else f"{architecture} does not have it"
        made.change("reduce_fusion", False, why)
    if plugins["user_buffer"] and not plugins["reduce_fusion"]:
        made.change("user_buffer", False, "it needs reduce_fusion")
    if plugins["norm_quant_fusion"] and (
        plugins["reduce_fusion"] or architecture not in _NORM_QUANT_FUSION or algo != "NVFP4"
    ):
        made.change("norm_quant_fusion", False, "it is for Llama in NVFP4 without reduce_fusion")


def _speculation(made: Prediction, pretrained: Dict[str, Any]) -> None:
    """Draft tokens lengthen sequences and steps."""
    config, mode = made.effective, made.effective["speculative_decoding_mode"]
    if not config["max_draft_len"] and pretrained.get("max_draft_len"):
        made.change("max_draft_len", int(pretrained["max_draft_len"]), "the checkpoint says so")
    if pretrained.get("redrafter_num_beams") and pretrained.get("redrafter_draft_len_per_beam"):
        mode = config["speculative_decoding_mode"] = SPECULATIVE_MODES["explicit_draft_tokens"]
        config["max_draft_len"] = pretrained["redrafter_num_beams"] * pretrained["redrafter_draft_len_per_beam"]
    if mode == SPECULATIVE_MODES["none"]:
        if config["max_draft_len"]:
            made.warnings.append(f"max_draft_len {config['max_draft_len']} has no effect without a mode of speculation")
        return
    draft = config["max_draft_len"]
    if not draft:
        made.refusals.append("speculative_decoding_mode needs max_draft_len above 0")
    made.change("max_seq_len", config["max_seq_len"] + draft, "draft tokens are held beside the sequence")
    if mode == SPECULATIVE_MODES["eagle"]:
        extra = int(pretrained.get("num_eagle_layers") or 0)
        made.change("max_seq_len", config["max_seq_len"] + extra, "so are those of the EAGLE layers")
        if not extra:
            made.refusals.append("speculative_decoding_mode eagle needs a checkpoint with num_eagle_layers")
        if config["max_batch_size"] > 512:
            made.refusals.append(f"EAGLE takes max_batch_size up to 512, not {config['max_batch_size']}")
        if draft > 256:
            made.refusals.append(f"EAGLE takes max_draft_len up to 256, not {draft}")
    least = config["max_batch_size"] * (draft + 1)
    if config["max_num_tokens"] < least:
        made.change("max_num_tokens", least, "each sequence of a step has its draft tokens and one more")


def _context_attention(made: Prediction, algo: str | None, kv: str | None, sm: int | None) -> None:
    """Fused attention over prompts: paged (which reuse and chunking need) and in fp8."""
    plugins = made.plugins
    if not plugins["context_fmha"]:
        for name in ("use_fp8_context_fmha", "use_paged_context_fmha"):
            made.change(name, False, "context_fmha is off")
    elif algo not in FP8_FMHA or (sm is not None and sm < 89):
        plugins["use_fp8_context_fmha"] = False  # no loss: the model has no fp8 activations
        if kv == "FP8":
            made.change("use_paged_context_fmha", False, "an fp8 KV cache needs fp8 attention, and so fp8 weights")
    elif plugins["use_paged_context_fmha"]:
        if kv != "FP8" and plugins["use_fp8_context_fmha"]:
            made.change("use_fp8_context_fmha", False, "paged context attention in fp8 needs an fp8 KV cache")
        elif kv == "FP8" and not plugins["use_fp8_context_fmha"]:
            made.change("use_fp8_context_fmha", True, "paged context attention over an fp8 KV cache needs it")
    if kv == "INT8":
        made.change("use_paged_context_fmha", False, "it does not work with an int8 KV cache")
    if made.effective["speculative_decoding_mode"] == SPECULATIVE_MODES["eagle"]:
        made.change("use_paged_context_fmha", True, "EAGLE needs it")


def _hardware(made: Prediction, algos: set[str], kv: str | None, sm: int | None) -> None:
    """What the GPU does not have (engine-build 4.1, 3.2 and 7)."""
    if sm is None:
        return
    if sm < _OLDEST_SM:
        made.refusals.append(f"TensorRT-LLM 1.2 has no engines for SM {sm}: it needs SM {_OLDEST_SM} or newer")
    for algo in sorted(algos):
        if sm < LEAST_SM.get(algo, 0):
            made.refusals.append(f"quant_algo {algo} needs SM {LEAST_SM[algo]} or newer; this GPU is SM {sm}")
        if sm in DATA_CENTER_BLACKWELL and algo in NOT_ON_BLACKWELL:
            made.refusals.append(
                f"quant_algo {algo}: {NOT_ON_BLACKWELL[algo]} are not supported on SM {sm}; use fp8 or no quantization"
            )
    if kv and sm < KV_LEAST_SM.get(kv, 0):
        made.refusals.append(f"an {kv.lower()} KV cache needs SM {KV_LEAST_SM[kv]} or newer; this GPU is SM {sm}")
    if kv in KV_NOT_ON_BLACKWELL and sm in DATA_CENTER_BLACKWELL:
        made.refusals.append(f"an {kv.lower()} KV cache is not supported on SM {sm}; use fp8 or none")
    if sm == 100:
        on = [name for name in _SM100_PLUGINS if made.plugins[name]]
        made.refusals += [f"{name} is not supported on SM 100" for name in on]


def _plugins_of_quantization(made: Prediction, algo: str | None, world_size: int) -> None:
    """Plugins that build() switches by itself; nothing is lost by them, so nothing is said."""
    plugins = made.plugins
    if world_size == 1:
        plugins["nccl_plugin"] = None
    if algo == "NVFP4":
        plugins["gemm_plugin"] = "nvfp4"


def _consequences(made: Prediction, request: Config, algo: str | None) -> None:
    """What follows from the effective values for whoever serves the engine (engine-build 9.2, 10, 12)."""
    config, plugins = made.effective, made.plugins
    if request["plugin_config"]["use_paged_context_fmha"] and not plugins["use_paged_context_fmha"]:
        made.warnings.append("so the server has neither KV cache reuse nor chunked context")
    longest = config["max_seq_len"] - 1
    packed = plugins["remove_input_padding"] and plugins["context_fmha"]
    if packed and not plugins["use_paged_context_fmha"] and config["max_num_tokens"] < longest:
        made.warnings.append(f"prompts longer than max_num_tokens {config['max_num_tokens']} will be refused")
    if config["gather_context_logits"]:
        made.warnings.append("gather_context_logits switches KV cache reuse off at run time and costs memory")
    if config["kv_cache_type"] != "paged" or not plugins["gpt_attention_plugin"] or not plugins["remove_input_padding"]:
        made.warnings.append(
            "Triton serves decoders by inflight batching, which needs gpt_attention_plugin, remove_input_padding and "
            "kv_cache_type paged"
        )
    if config["max_num_tokens"] < config["max_batch_size"]:
        made.warnings.append(
            f"max_num_tokens {config['max_num_tokens']} is below max_batch_size {config['max_batch_size']}: "
            "a step cannot give every sequence its next token"
        )
    if algo == "FP8" and plugins["gemm_plugin"] not in (None, "fp8"):
        made.warnings.append("gemm_plugin is for fp16 and bf16; FP8 models are faster without it at high throughput")
    if config["use_strip_plan"]:
        made.warnings.append("use_strip_plan: the engine has no weights until trtllm-refit puts them back")


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "off" if value is None else str(value)
