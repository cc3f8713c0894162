"""The cpu target: a checkpoint becomes an engine directory, built by TP x PP processes under mpirun.

The directory mirrors a TensorRT one: `config.json` (version, pretrained_config, build_config) and `rank{N}.engine`.
A rank file is a safetensors file with the tensors of `runtime.program`: q, k, v and fc, gate stacked, quantized
weights packed as `runtime.forms` says, in the row order that the kernels stream; it is memory-mapped at load.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from trtbuild import mpi
from trtbuild.engine.options import BuildOptions
from trtbuild.errors import CheckpointError, PlanError
from trtbuild.mapping import Mapping
from trtbuild.progress import Progress, silent
from trtbuild.quantization import LAYERS, MIXED, whole_model
from trtbuild.quantize.methods import METHODS
from trtbuild.runtime.forms import form_of, layout_sm
from trtbuild.spec import ConvertOptions
from trtbuild.staging import write_error

_POLL_S = 0.05
_QUANT_NAMES = {method.quant_algo: method.name for method in METHODS.values()}
LAUNCHER_LOG = "mpirun.log"
KERNELS = "kernels.json"  # what was measured; its figures differ from build to build, so nothing is derived from them
MEASURED: dict[str, tuple[str, ...]] = {KERNELS: (), "config.json": ("trtbuild.executor",)}
"""What cannot be the same twice: file -> dotted paths of JSON values, none = all of it."""


def read_checkpoint_config(checkpoint: Path) -> dict[str, Any]:
    """config.json of a TensorRT-LLM checkpoint whose rank files are all there.

    Under MIXED_PRECISION it gets the `quantized_layers` of quant_cfg.json (see `quantization.py`).

    Raises:
        CheckpointError: it is not one, or rank files are missing.
    """
    path = checkpoint / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint} is not a TensorRT-LLM checkpoint: {error}") from error
    if "architecture" not in config or "mapping" not in config:
        hint = (
            "This looks like a Hugging Face folder: give it to `trtbuild engine` directly."
            if "architectures" in config
            else ""
        )
        raise CheckpointError(f"{path} has no architecture and mapping", hint=hint)
    world = range(config["mapping"]["world_size"])
    missing = [f"rank{r}.safetensors" for r in world if not (checkpoint / f"rank{r}.safetensors").is_file()]
    if missing:
        raise CheckpointError(f"checkpoint {checkpoint} lacks {', '.join(missing)}")
    if (config.get("quantization") or {}).get("quant_algo") == MIXED:
        path = checkpoint / "quant_cfg.json"
        try:
            sizes = (config["mapping"]["pp_size"], config["num_hidden_layers"])
            config[LAYERS] = whole_model(json.loads(path.read_text())[LAYERS], *sizes)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            hint = "MIXED_PRECISION takes the algorithm of each layer from it; convert the model again."
            raise CheckpointError(f"cannot read {path}: {error}", hint=hint) from error
    return config


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a TensorRT-LLM checkpoint rather than a Hugging Face model."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "architecture" in config and "mapping" in config


def require_same_options(config: dict[str, Any], options: ConvertOptions) -> None:
    """Refuse options that contradict a ready checkpoint; what was left at its default follows the checkpoint.

    Raises:
        PlanError: names every contradiction.
    """
    default = ConvertOptions()
    layers = ", ".join(f"{layer.pattern}={layer.method}" for layer in options.quant_layers)
    found = {
        "tp": (options.tp_size, default.tp_size, config["mapping"]["tp_size"]),
        "pp": (options.pp_size, default.pp_size, config["mapping"]["pp_size"]),
        "dtype": (options.dtype, default.dtype, config["dtype"]),
        "quant": (options.quant, default.quant, _QUANT_NAMES.get((config.get("quantization") or {}).get("quant_algo"))),
        "quant-layer": (layers, "", "other methods"),
        "quantize-lm-head": (options.quantize_lm_head, False, form_of(config, "lm_head") is not None),
        "use-parallel-embedding": (options.use_parallel_embedding, False, config.get("use_parallel_embedding", False)),
        "embedding-sharding-dim": (options.embedding_sharding_dim, 0, config.get("embedding_sharding_dim", 0)),
    }
    problems = [
        f"--{name} {asked} was asked for, but the checkpoint was made with {has}"
        for name, (asked, usual, has) in found.items()
        if asked not in (usual, has)
    ]
    if problems:
        raise PlanError(problems, hint="Leave the options out, or convert the model again.")


def engine_mapping(config: dict[str, Any]) -> Mapping:
    return Mapping.of_config(config["mapping"])


def build_engine(
    checkpoint: Path, out: Path, options: BuildOptions, *, log_dir: Path, version: str, progress: Progress = silent
) -> None:
    """Write the engine of `checkpoint` into the existing directory `out`.

    Raises:
        CheckpointError, PlanError, EngineError: it cannot be built; said before a process is started.
        ToolError: mpirun is missing or a rank died; names the rank and shows its last lines.
        OutputError: the disk is full.
    """
    from trtbuild.runtime.architectures import require_seq_len
    from trtbuild.runtime.program import build_program

    config = read_checkpoint_config(checkpoint)
    build_config = options.build_config(config)
    mapping = engine_mapping(config)
    program = build_program(config, mapping)
    require_seq_len(program.features, build_config["max_seq_len"])
    if any(weight.form and weight.form.zero for weight in program.weights):
        layout_sm(config)
    argv = [sys.executable, "-m", "trtbuild.engine.cpu_rank", str(checkpoint), str(out), str(log_dir)]
    launcher_log = log_dir / LAUNCHER_LOG
    process = mpi.start_ranks(argv, mapping.world_size, log=launcher_log)
    try:
        while process.poll() is None:
            built = sum((out / f"rank{rank}.engine").exists() for rank in range(mapping.world_size))
            progress(built, mapping.world_size, f"{built}/{mapping.world_size} ranks")
            time.sleep(_POLL_S)
        if process.returncode:
            failure = mpi.job_failure(process, log_dir, launcher_log, "engine build", mapping.world_size)
            if any(os.strerror(errno.ENOSPC) in line for line in failure.log_tail):
                raise write_error(out, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from failure
            raise failure
    finally:
        mpi.stop_ranks(process)
    chosen = json.loads((out / KERNELS).read_text())
    document = {
        "version": version,
        "pretrained_config": config,
        "build_config": build_config,
        "trtbuild": {"target": "cpu", "executor": chosen["executor"], "cpu": chosen["cpu"]},
    }
    (out / "config.json").write_text(json.dumps(document, indent=2) + "\n")
    progress(mapping.world_size, mapping.world_size, "done")
