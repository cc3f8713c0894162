"""BuildConfig, build() with all that it changes by itself, and Engine.save. Nothing is compiled.

Written from the description of the real one's rules (max lengths, fusions, speculation, context attention, hardware),
in its order and with its messages, and without a look at trtbuild's own.
"""

import copy
import hashlib
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

from tensorrt_llm import faults
from tensorrt_llm.logger import logger
from tensorrt_llm.models import Model, PretrainedConfig
from tensorrt_llm.plugin import PluginConfig

_REQUIRED = ("max_input_len", "max_seq_len", "max_batch_size", "max_beam_width", "max_num_tokens", "opt_num_tokens")
_DEFAULTS: dict[str, Any] = {
    "opt_batch_size": 8,
    "max_prompt_embedding_table_size": 0,
    "kv_cache_type": None,
    "gather_context_logits": False,
    "gather_generation_logits": False,
    "strongly_typed": True,
    "force_num_profiles": None,
    "profiling_verbosity": "layer_names_only",
    "enable_debug_output": False,
    "max_draft_len": 0,
    "speculative_decoding_mode": 1,
    "use_refit": False,
    "input_timing_cache": None,
    "output_timing_cache": "model.cache",
    "weight_sparsity": False,
    "weight_streaming": False,
    "use_strip_plan": False,
    "max_encoder_input_len": 1024,
    "dry_run": False,
    "visualize_network": None,
    "monitor_memory": False,
    "use_mrope": False,
}
_OPTIONAL_INT = {"max_seq_len", "opt_num_tokens", "force_num_profiles"}
_TEXT = {"kv_cache_type", "profiling_verbosity", "input_timing_cache", "output_timing_cache", "visualize_network"}
_LORA = {"lora_dir": [], "lora_ckpt_source": "hf", "max_lora_rank": 64, "lora_target_modules": []}
NONE, EAGLE = 1, 32
_MODES = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512}


class BuildConfig:
    def __init__(self, values: dict[str, Any], plugin_config: PluginConfig, lora_config: dict[str, Any]) -> None:
        for name in _REQUIRED:
            if name not in values:
                raise KeyError(name)
        unknown = values.keys() - _DEFAULTS.keys() - set(_REQUIRED)
        if unknown:
            raise ValueError(f"1 validation error for BuildConfig\nunknown {sorted(unknown)}")
        self.__dict__.update({**_DEFAULTS, **values})
        for name, value in self.__dict__.items():
            self._check(name, value)
        self.plugin_config, self.lora_config = plugin_config, {**_LORA, **lora_config}

    def _check(self, name: str, value: Any) -> None:
        if name in _TEXT:
            fits = value is None or isinstance(value, str)
        elif isinstance(_DEFAULTS.get(name), bool):
            fits = type(value) is bool
        else:
            fits = type(value) is int or (name in _OPTIONAL_INT and value is None)
        if not fits or (name == "speculative_decoding_mode" and value not in _MODES):
            raise ValueError(f"1 validation error for BuildConfig\n{name}: {value!r}")
        if name == "kv_cache_type" and value is not None and value.upper() not in ("PAGED", "CONTINUOUS", "DISABLED"):
            raise ValueError(f"Invalid KV cache type: {value}")

    @classmethod
    def from_json_file(cls, path: str, plugin_config: PluginConfig | None = None) -> "BuildConfig":
        values = json.loads(Path(path).read_text())
        base = plugin_config or PluginConfig()
        given = values.pop("plugin_config", None)
        if given is not None:
            if "kv_cache_type" not in values:
                raise KeyError("kv_cache_type")
            base = base.overlaid(given)
        return cls({k: v for k, v in values.items() if k != "lora_config"}, base, values.get("lora_config", {}))

    def to_dict(self) -> dict[str, Any]:
        made = {key: value for key, value in self.__dict__.items() if key != "plugin_config"}
        made["kv_cache_type"] = made["kv_cache_type"].upper()
        return {**made, "plugin_config": self.plugin_config.to_dict()}


def build(model: Model, build_config: BuildConfig) -> "Engine":
    started = time.time()
    bc = copy.deepcopy(build_config)
    config, plugins = model.config, bc.plugin_config
    plugins.dtype = config.dtype
    bc.kv_cache_type = (bc.kv_cache_type or "paged").lower()
    recurrent = config.architecture in ("MambaForCausalLM", "RecurrentGemmaForCausalLM")
    if plugins.paged_kv_cache is not None:
        assert plugins.paged_kv_cache == (bc.kv_cache_type == "paged")
    plugins.paged_kv_cache = bc.kv_cache_type == "paged"
    if not recurrent:
        plugins.paged_state = False
    _lengths(bc, config)
    _fusions(bc, config)
    _speculation(bc, config)
    _attention(bc, config)
    _hardware(config)
    if (plugins.gemm_swiglu_plugin or plugins.low_latency_gemm_swiglu_plugin) and not plugins.use_fused_mlp:
        raise RuntimeError("GemmSwiGLU plugin requires --use_fused_mlp flag")
    assert not plugins.streamingllm, "StreamingLLM is no longer supported"
    _quantization_plugins(bc, config)
    if config.mapping.world_size == 1:
        logger.info("Set nccl_plugin to None.")
        plugins.nccl_plugin = None
    if bc.speculative_decoding_mode == EAGLE:
        assert bc.max_batch_size <= 512, "Max batch size > 512 is not supported for EAGLE"
        assert bc.max_draft_len <= 256, "Max draft len > 256 is not supported for EAGLE"
        plugins.use_paged_context_fmha = True
    logger.info(f"Total time of constructing network from module object {time.time() - started} seconds")
    plan = None if bc.dry_run else _compile(model, bc)
    _timing_cache(bc, config.mapping.rank)
    logger.info("Build phase peak memory: 1234.00 MB, children: 12.00 MB")
    return Engine(config, bc, plan)


def _lengths(bc: BuildConfig, config: PretrainedConfig) -> None:
    scaling = getattr(config, "rotary_scaling", None) or {}
    kind = scaling.get("type", scaling.get("rope_type"))
    factor = 1 if kind in ("su", "longrope", "llama3") else scaling.get("factor", 1.0)
    positions = getattr(config, "max_position_embeddings", None)
    if config.architecture == "EncoderModel":
        bc.max_seq_len = bc.max_seq_len or bc.max_input_len
        assert bc.max_input_len == bc.max_seq_len, "EncoderModel should have same --max_input_len and --max_seq_len"
    if bc.max_seq_len is None:
        bc.max_seq_len = math.ceil((positions or 2048) * factor)
        logger.info(f"max_seq_len is not specified, using deduced value {bc.max_seq_len}")
    elif positions and bc.max_seq_len > positions * factor:
        logger.warning(f"max_seq_len {bc.max_seq_len} is larger than ..., the model accuracy might be affected")
    if bc.max_input_len > bc.max_seq_len:
        logger.warning("max_input_len is larger than max_seq_len, clipping it to max_seq_len")
        bc.max_input_len = bc.max_seq_len
    plugins, product = bc.plugin_config, bc.max_seq_len * bc.max_batch_size
    if not plugins.remove_input_padding:
        bc.max_num_tokens = product
        return
    if bc.max_num_tokens is None:
        bc.max_num_tokens = product
    if bc.opt_num_tokens is None and not plugins.multiple_profiles:
        bc.opt_num_tokens = min(bc.max_batch_size * bc.max_beam_width, bc.max_num_tokens)
    if bc.max_num_tokens > product:
        logger.warning(f"max_num_tokens ({bc.max_num_tokens}) shouldn't be greater than {product}")
        bc.max_num_tokens = product
    if not plugins.context_fmha:
        bc.max_num_tokens = max(bc.max_num_tokens, bc.max_input_len)
    else:
        bc.max_num_tokens = max(bc.max_num_tokens, plugins.tokens_per_block)
    if bc.opt_num_tokens is not None:
        bc.opt_num_tokens = min(bc.opt_num_tokens, bc.max_num_tokens)
    if plugins.context_fmha:
        logger.warning("padding removal and fMHA are both enabled, max_input_len is not required and will be ignored")


def _fusions(bc: BuildConfig, config: PretrainedConfig) -> None:
    plugins = bc.plugin_config
    family = ("LlamaForCausalLM", "Gemma2ForCausalLM", "MedusaForCausalLM")
    plugins.reduce_fusion = plugins.reduce_fusion and config.mapping.tp_size > 1 and config.architecture in family
    plugins.user_buffer = plugins.user_buffer and plugins.reduce_fusion
    plugins.norm_quant_fusion = (
        plugins.norm_quant_fusion
        and not plugins.reduce_fusion
        and config.architecture == "LlamaForCausalLM"
        and config.quantization.quant_algo == "NVFP4"
    )
    assert not plugins.pp_reduce_scatter or config.architecture == "MixtralForCausalLM"


def _speculation(bc: BuildConfig, config: PretrainedConfig) -> None:
    if bc.max_draft_len == 0:
        bc.max_draft_len = getattr(config, "max_draft_len", 0)
    if bc.speculative_decoding_mode == NONE:
        return
    bc.max_seq_len += bc.max_draft_len
    if bc.speculative_decoding_mode == EAGLE:
        bc.max_seq_len += config.num_eagle_layers
    bc.max_num_tokens = max(bc.max_num_tokens, bc.max_batch_size * (bc.max_draft_len + 1))


def _attention(bc: BuildConfig, config: PretrainedConfig) -> None:
    from tensorrt_llm._utils import get_sm_version

    plugins, algo, kv = bc.plugin_config, config.quantization.quant_algo, config.quantization.kv_cache_quant_algo
    if not plugins.context_fmha:
        logger.warning("Context FMHA is disabled, FP8 Context FMHA and Paged Context FMHA are disabled.")
        plugins.use_fp8_context_fmha = plugins.use_paged_context_fmha = False
    elif algo not in ("FP8", "W4A8_AWQ", "NVFP4") or get_sm_version() < 89:
        plugins.use_fp8_context_fmha = False
        if kv == "FP8":
            logger.warning("FP8 Paged Context FMHA is disabled because FP8 context FMHA is disabled.")
            plugins.use_paged_context_fmha = False
    elif plugins.use_paged_context_fmha:
        plugins.use_fp8_context_fmha = kv == "FP8"
    if kv == "INT8":
        logger.warning("Paged Context FMHA is disabled because it doesn't work with int8 kv cache currently.")
        plugins.use_paged_context_fmha = False


def _hardware(config: PretrainedConfig) -> None:
    from tensorrt_llm._utils import get_sm_version

    algo, kv = config.quantization.quant_algo or "", config.quantization.kv_cache_quant_algo
    if not 100 <= get_sm_version() < 120:
        return
    if algo.startswith(("W8A16", "W4A16", "W4A8")) or kv == "INT8":
        raise RuntimeError("INT8/INT4 quantization is not supported on SM>=100.")
    if algo.startswith("W8A8"):
        raise RuntimeError("SmoothQuant is not supported on SM>=100.")
    if algo == "FP8_PER_CHANNEL_PER_TOKEN":
        raise RuntimeError("Per-channel or per-token scaling is not supported on SM>=100.")


def _quantization_plugins(bc: BuildConfig, config: PretrainedConfig) -> None:
    plugins, algo = bc.plugin_config, config.quantization.quant_algo or ""
    if algo == "NVFP4" and not plugins._explicitly_disable_gemm_plugin:
        plugins.gemm_plugin = "nvfp4"
    if algo in ("W8A16", "W4A16"):
        plugins.weight_only_quant_matmul_plugin = config.dtype
    elif algo.startswith(("W4A16", "W4A8", "W8A16")):
        plugins.weight_only_groupwise_quant_matmul_plugin = config.dtype


def _compile(model: Model, bc: BuildConfig) -> bytes:
    """Time passes, lines come, and the bytes tell what they are of."""
    rank, seconds = model.config.mapping.rank, float(os.environ.get("TRTBUILD_FAKE_SECONDS", "0"))
    logger.info("Build TensorRT engine Unnamed Network 0")
    for number in range(10):
        if number == 5:
            faults.while_building(rank)
        time.sleep(seconds / 10)
        logger.say("I", f"[GraphReduction] step {number}", "TRT")
    faults.while_building(rank)
    logger.say("I", f"Engine generation completed in {seconds} seconds.", "TRT")
    logger.info("Total time of building Unnamed Network 0: 00:00:01")
    digest = hashlib.sha256(model.weights.read_bytes() if model.weights else b"").hexdigest()
    return json.dumps({"stand-in": "not a TensorRT engine", "rank": rank, "weights": digest}).encode()


def _timing_cache(bc: BuildConfig, rank: int) -> None:
    """Rank 0 writes how many builds have filled it."""
    read = Path(bc.input_timing_cache) if bc.input_timing_cache else None
    if read is not None and not read.is_file():
        logger.warning("Invalid timing cache, using freshly created one")
    if bc.output_timing_cache is None or rank:
        return
    before = int(read.read_text()) if read is not None and read.is_file() else 0
    assert not faults.wanted("timing-cache", rank), "Failed to save timing cache."
    Path(bc.output_timing_cache).write_text(str(before + 1))
    logger.info(f"Timing cache serialized to {bc.output_timing_cache}")


class Engine:
    def __init__(self, config: PretrainedConfig, build_config: BuildConfig, plan: bytes | None) -> None:
        self.config, self.build_config, self.plan = config, build_config, plan

    def save(self, folder: str) -> None:
        out, rank = Path(folder), self.config.mapping.rank
        out.mkdir(parents=True, exist_ok=True)
        faults.while_saving(rank)
        self._adapters(out)
        if rank == 0 and not faults.wanted("no-config", rank):
            self._config(out)
        if self.plan is not None and not faults.wanted("missing-file", rank):
            path = out / f"rank{rank}.engine"
            logger.info(f"Serializing engine to {path}...")
            path.write_bytes(b"" if faults.wanted("empty-file", rank) else self.plan)
            logger.info("Engine serialized. Total time: 00:00:00")
        if self.build_config.plugin_config.manage_weights:
            shutil.copyfile(self.config_weights(), out / f"rank{rank}_managed_weights.safetensors")

    def config_weights(self) -> Path:
        return Path(__file__)

    def _adapters(self, out: Path) -> None:
        folders = self.build_config.lora_config["lora_dir"]
        if not folders:
            shutil.rmtree(out / "lora", ignore_errors=True)
        for number, folder in enumerate(list(folders)):
            target = out / "lora" / str(number)
            target.mkdir(parents=True, exist_ok=True)
            for name in ("adapter_config.json", "adapter_model.bin", "adapter_model.safetensors"):
                if (Path(folder) / name).is_file():
                    shutil.copyfile(Path(folder) / name, target / name)
            folders[number] = f"lora/{number}"

    def _config(self, out: Path) -> None:
        from tensorrt_llm import __version__

        pretrained, build = self.config.to_dict(), self.build_config.to_dict()
        for name in ("dry_run", "visualize_network"):
            build.pop(name)
        layers = pretrained["quantization"].pop("quantized_layers", None)
        if layers is not None:
            table = {"version": __version__, **pretrained["quantization"], "quantized_layers": layers}
            (out / "quant_cfg.json").write_text(json.dumps(table, indent=4))
        document = {"version": __version__, "pretrained_config": pretrained, "build_config": build}
        (out / "config.json").write_text(json.dumps(document, indent=4))
