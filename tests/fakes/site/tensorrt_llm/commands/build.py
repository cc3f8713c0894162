"""The command line of trtllm-build 1.2.1: options, conflicts, precedence of --build_config, ranks under MPI."""

import argparse
import copy
import os
import traceback
from pathlib import Path
from typing import Any

import torch

from tensorrt_llm import faults
from tensorrt_llm._utils import local_mpi_rank, local_mpi_size, mpi_barrier, mpi_comm, mpi_rank, mpi_world_size
from tensorrt_llm.builder import BuildConfig, build
from tensorrt_llm.logger import logger, severity_map
from tensorrt_llm.models import MODEL_MAP, PretrainedConfig
from tensorrt_llm.plugin import PluginConfig, add_plugin_argument

MODES = {"draft_tokens_external": 2, "lookahead_decoding": 8, "medusa": 4, "explicit_draft_tokens": 16, "eagle": 32}
LORA_MODULES = [
    *(f"{kind}_{part}" for kind in ("attn", "cross_attn") for part in ("qkv", "q", "k", "v", "dense")),
    *(f"{kind}_{part}" for kind in ("mlp", "moe") for part in ("h_to_4h", "4h_to_h", "gate", "router")),
    "mlp_gate_up",
]


def parse_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trtllm-build", allow_abbrev=True)

    def text(*names: str, default: str | None = None, **more: Any) -> None:
        parser.add_argument(*[f"--{name}" for name in names], type=str, default=default, **more)

    def number(*names: str, default: int | None = None) -> None:
        parser.add_argument(*[f"--{name}" for name in names], type=int, default=default)

    def flag(name: str) -> None:
        parser.add_argument(f"--{name}", action="store_true", default=False)

    for name in ("checkpoint_dir", "model_config", "build_config", "model_cls_file", "model_cls_name"):
        text(name)
    text("output_dir", default="engine_outputs")
    number("max_batch_size", default=2048)
    number("max_input_len", default=1024)
    number("max_seq_len", "max_decoder_seq_len")
    number("max_beam_width", default=1)
    number("max_num_tokens", default=8192)
    number("opt_num_tokens")
    number("max_encoder_input_len", default=1024)
    number("max_prompt_embedding_table_size", "max_multimodal_len", default=0)
    text("kv_cache_type", choices=["continuous", "paged", "disabled"])
    text("paged_kv_cache")
    text("logits_dtype", choices=["float16", "float32"])
    for name in ("gather_context_logits", "gather_generation_logits", "gather_all_token_logits"):
        flag(name)
    parser.add_argument("--lora_dir", type=str, nargs="+")
    text("lora_ckpt_source", default="hf", choices=["hf", "nemo"])
    parser.add_argument("--lora_target_modules", nargs="+", choices=LORA_MODULES)
    number("max_lora_rank", default=64)
    text("speculative_decoding_mode", choices=sorted(MODES))
    number("max_draft_len", default=0)
    text("input_timing_cache")
    text("output_timing_cache", default="model.cache")
    text("profiling_verbosity", default="layer_names_only", choices=["layer_names_only", "detailed", "none"])
    for name in ("strip_plan", "weight_sparsity", "weight_streaming", "fast_build", "enable_debug_output", "dry_run"):
        flag(name)
    flag("monitor_memory")
    number("workers", default=1)
    text("log_level", default="info", choices=list(severity_map))
    text("visualize_network")
    add_plugin_argument(parser)
    return parser


def main() -> None:
    args = parse_arguments().parse_args()
    logger.warning("Option --gather_generation_logits is deprecated, a build flag is not required anymore.")
    if args.gather_all_token_logits:
        args.gather_context_logits = args.gather_generation_logits = True
    if args.gather_context_logits and args.max_draft_len > 0:
        raise RuntimeError("Gather context logits is not support with draft len > 0.")
    os.makedirs(args.output_dir, exist_ok=True)
    if args.model_cls_file is not None:
        assert args.model_cls_name is not None
    workers = min(torch.cuda.device_count(), args.workers)
    plugins = PluginConfig(**vars(args))
    plugins.validate()
    if args.fast_build:
        plugins.manage_weights = True
    source = args.checkpoint_dir if args.checkpoint_dir is not None else args.model_config
    checkpoint = None if source.lower().endswith(".json") else source
    config = PretrainedConfig.from_json_file(source if checkpoint is None else os.path.join(source, "config.json"))
    if args.build_config is not None:
        build_config = BuildConfig.from_json_file(args.build_config, plugin_config=plugins)
    else:
        build_config = _from_options(args, plugins)
    build_all(args, config, checkpoint, build_config, workers)


def _from_options(args: argparse.Namespace, plugins: PluginConfig) -> BuildConfig:
    if args.multiple_profiles == "enable" and args.opt_num_tokens is not None:
        raise RuntimeError(
            "multiple_profiles is enabled, while opt_num_tokens is set. They are not supposed to be working in the "
            "same time for now."
        )
    names = (
        *("max_input_len", "max_seq_len", "max_batch_size", "max_beam_width", "max_num_tokens", "opt_num_tokens"),
        *("max_prompt_embedding_table_size", "gather_context_logits", "gather_generation_logits", "weight_sparsity"),
        *("profiling_verbosity", "enable_debug_output", "max_draft_len", "input_timing_cache", "output_timing_cache"),
        *(
            "dry_run",
            "visualize_network",
            "max_encoder_input_len",
            "weight_streaming",
            "monitor_memory",
            "kv_cache_type",
        ),
    )
    values = {name: getattr(args, name) for name in names}
    values["speculative_decoding_mode"] = MODES.get(args.speculative_decoding_mode, 1)
    return BuildConfig(values, plugins, {})


def build_one(
    rank: int, gpu: int, args: argparse.Namespace, config: PretrainedConfig, checkpoint: str | None, bc: BuildConfig
) -> None:
    torch.cuda.set_device(gpu)
    logger.set_level(args.log_level)
    config = copy.deepcopy(config)
    if args.logits_dtype is not None:
        config.logits_dtype = args.logits_dtype
    assert rank < config.mapping.world_size
    config.set_rank(rank)
    known = config.architecture in MODEL_MAP and not faults.wanted("architecture", rank)
    assert known, f"Unsupported model architecture: {config.architecture}"
    cls = MODEL_MAP[config.architecture]
    model = cls(config, None) if checkpoint is None else cls.from_checkpoint(checkpoint, config=config)
    bc = copy.deepcopy(bc)
    if bc.plugin_config.lora_plugin is not None:
        bc.lora_config = {
            "lora_dir": list(args.lora_dir or []),
            "lora_ckpt_source": args.lora_ckpt_source,
            "max_lora_rank": args.max_lora_rank,
            "lora_target_modules": args.lora_target_modules or [],
        }
    bc.use_strip_plan = bc.use_strip_plan or args.strip_plan
    build(model, bc).save(args.output_dir)


def build_all(
    args: argparse.Namespace, config: PretrainedConfig, checkpoint: str | None, bc: BuildConfig, workers: int
) -> None:
    return parallel_build(args, config, checkpoint, bc, workers)


def parallel_build(
    args: argparse.Namespace, config: PretrainedConfig, checkpoint: str | None, bc: BuildConfig, workers: int
) -> None:
    world = config.mapping.world_size
    if mpi_world_size() == 1:
        if workers < 1:
            raise ValueError("max_workers must be greater than 0")
        for rank in range(world):
            build_one(rank, rank % workers, args, config, checkpoint, bc)
        return
    failed = False
    for rank in range(world):
        if rank % mpi_world_size() != mpi_rank():
            continue
        try:
            build_one(rank, local_mpi_rank() % local_mpi_size(), args, config, checkpoint, bc)
        except Exception:
            traceback.print_exc()
            failed = True
    mpi_barrier()
    if failed:
        print("Engine building failed, please check error log.", flush=True)
        mpi_comm().Abort()
    logger.info("Total time of building all engines: 00:00:01")


if __name__ == "__main__":
    assert Path(__file__).name == "build.py"
    main()
