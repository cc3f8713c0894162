"""One rank of a cpu engine build: `python -m trtbuild.engine.cpu_rank CHECKPOINT OUT LOGS`, alone or under mpirun."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trtbuild import mpi
from trtbuild.engine.cpu import KERNELS, engine_mapping, read_checkpoint_config
from trtbuild.errors import CheckpointError
from trtbuild.mapping import Mapping
from trtbuild.runtime.ops import Weight
from trtbuild.runtime.program import Program, build_program

if TYPE_CHECKING:
    from safetensors import safe_open as Source

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def build_rank(checkpoint: Path, out: Path, config: dict[str, Any], mapping: Mapping) -> None:
    """Read `rankN.safetensors`, quantize and stack, write `rankN.engine`.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or holds NaN or infinity.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    program = build_program(config, mapping)
    path = checkpoint / f"rank{mapping.rank}.safetensors"
    try:
        with safe_open(str(path), framework="pt") as source:
            tensors = dict(_engine_tensors(source, path, program, config))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    # Under another name until it is whole: the parent counts finished ranks by their files.
    partial = out / f".rank{mapping.rank}.engine"
    save_file(tensors, str(partial), metadata={"format": "trtbuild-cpu-1"})
    partial.chmod(0o644)  # save_file makes it private
    partial.rename(out / f"rank{mapping.rank}.engine")


def _engine_tensors(
    source: Source, path: Path, program: Program, config: dict[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    int8 = (config.get("quantization") or {}).get("quant_algo") == "W8A16"
    dtype = _DTYPES[config["dtype"]]
    held = set(source.keys())
    for weight in program.weights:
        tensor = _stacked(source, held, path, weight)
        if weight.quantized and int8:
            values, scale = _quantized(tensor)
            yield weight.name, values
            # Upstream stores the scale in the model's dtype but divides by the exact one (checkpoint format 4.2).
            yield weight.name.removesuffix(".weight") + ".per_channel_scale", scale.to(dtype).float()
        else:
            yield weight.name, tensor.to(torch.float32 if weight.float32 else dtype).contiguous()


def _quantized(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8, float32 scales) of a weight [out, in], or of each expert of a stack [experts, out, in] on its own."""
    from trtbuild.quantize.methods.int8 import quantize

    if tensor.dim() == 2:
        return quantize(tensor)
    values, scales = torch.empty(tensor.shape, dtype=torch.int8), torch.empty(tensor.shape[:2])
    for expert, weight in enumerate(tensor):  # one at a time: the formula works on a float32 copy
        values[expert], scales[expert] = quantize(weight)
    return values, scales


def _stacked(source: Source, held: set[str], path: Path, weight: Weight) -> torch.Tensor:
    missing = [name for name in weight.sources if name not in held]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}")
    parts = [source.get_tensor(name) for name in weight.sources]
    tensor: torch.Tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
    if tuple(tensor.shape) != weight.shape:
        raise CheckpointError(
            f"{path}: {' + '.join(weight.sources)} has shape {tuple(tensor.shape)}, expected {weight.shape}"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{path}: {' + '.join(weight.sources)} holds NaN or infinity")
    return tensor


def main(checkpoint: Path, out: Path, log_dir: Path) -> None:
    config = read_checkpoint_config(checkpoint)
    mapping, rank, world = engine_mapping(config), 0, None
    if mapping.world_size > 1:
        from mpi4py import MPI

        world = MPI.COMM_WORLD
        rank = world.Get_rank()
        assert world.Get_size() == mapping.world_size, f"{world.Get_size()} processes for {mapping.world_size} ranks"
    mpi.redirect_output(mpi.rank_log(log_dir, rank))

    def run() -> None:
        print(f"rank {rank} of {mapping.world_size}, pid {os.getpid()}: building", flush=True)
        torch.set_num_threads(1 if mapping.world_size > 1 else len(os.sched_getaffinity(0)))
        build_rank(checkpoint, out, config, mapping.at(rank))
        if world is not None:
            world.Barrier()  # the machine is quiet when kernels are measured
        if rank == 0:
            from trtbuild.engine.kernels import choose_executor

            chosen = choose_executor(out / "rank0.engine", config, mapping)
            (out / KERNELS).write_text(json.dumps(chosen, indent=2) + "\n")
        print("done", flush=True)

    mpi.abort_on_error(run, lambda: world.Abort(1) if world is not None else None)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
