"""One rank of a cpu engine build: `python -m trtbuild.engine.cpu_rank CHECKPOINT OUT LOGS`, alone or under mpirun."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from trtbuild import mpi
from trtbuild.engine.cpu import KERNELS, engine_mapping, read_checkpoint_config
from trtbuild.engine.quantized import RankFile, engine_fields
from trtbuild.errors import CheckpointError
from trtbuild.mapping import Mapping
from trtbuild.runtime.ops import Weight
from trtbuild.runtime.program import Program, build_program


def build_rank(checkpoint: Path, out: Path, config: dict[str, Any], mapping: Mapping) -> None:
    """Read `rankN.safetensors`, quantize and stack, write `rankN.engine`.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or numbers that cannot be.
        EngineError: the runtime cannot execute the model.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    program = build_program(config, mapping)
    path = checkpoint / f"rank{mapping.rank}.safetensors"
    try:
        with safe_open(str(path), framework="pt") as source:
            tensors = dict(_engine_tensors(RankFile(source, path, config), program))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    # Under another name until it is whole: the parent counts finished ranks by their files.
    partial = out / f".rank{mapping.rank}.engine"
    save_file(tensors, str(partial), metadata={"format": "trtbuild-cpu-1"})
    partial.chmod(0o644)  # save_file makes it private
    partial.rename(out / f"rank{mapping.rank}.engine")


def _engine_tensors(file: RankFile, program: Program) -> Iterator[tuple[str, torch.Tensor]]:
    for weight in program.weights:
        base = weight.name.removesuffix("weight")
        if weight.form:
            for suffix, tensor in engine_fields(file, weight, weight.form).items():
                yield base + suffix, tensor
        elif weight.name.endswith(".kv_cache_scaling_factor"):
            yield weight.name, _kv_scale(file, weight.name)
        else:
            tensor = _stacked(file, weight)
            yield weight.name, tensor.to(torch.float32 if weight.float32 else file.dtype).contiguous()


def _stacked(file: RankFile, weight: Weight) -> torch.Tensor:
    file.require(*weight.sources)
    length, *rest = weight.shape
    parts = [file.get(name, (length // len(weight.sources), *rest)) for name in weight.sources]
    tensor: torch.Tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
    if not tensor.is_floating_point() or tensor.dtype is torch.float8_e4m3fn:
        raise CheckpointError(f"{file.path}: {weight.sources[0]} is {tensor.dtype}, but config.json says it is plain")
    return tensor


def _kv_scale(file: RankFile, name: str) -> torch.Tensor:
    """[1]: the greater of the scales of keys and values, or where these are absent the one for both (4.10)."""
    own = [name.replace("kv_cache", f"{which}_cache") for which in ("k", "v")]
    names = own if any(map(file.has, own)) else [name]
    return torch.stack([file.scales(one, (1,), (), zero=False).reshape(1) for one in names]).amax(dim=0)


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
