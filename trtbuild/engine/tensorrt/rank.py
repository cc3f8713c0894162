"""One MPI process of a build: `python -m trtbuild.engine.tensorrt.rank JOB_FILE`, alone, under mpirun or srun.

It does for its ranks what trtllm-build does (NVIDIA/TensorRT-LLM tensorrt_llm/commands/build.py, build_model and
parallel_build), by the same calls of tensorrt_llm, and adds what a supervisor needs: a log a rank, files that appear
whole, a record with hashes.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from trtbuild import mpi
from trtbuild.engine.tensorrt.ranks import Workplace, record_done
from trtbuild.manifest import sha256_file

STARTED, DONE = "trtbuild: rank {} of {}: started", "trtbuild: rank {}: done"


def main(job_file: Path) -> None:
    job = json.loads(job_file.read_text())
    world = _world(len(job["ranks"]))
    place = Workplace(Path(job["engine"]), Path(job["logs"]))

    def run() -> None:
        number, local = _place(world, len(job["ranks"]))
        for rank in job["ranks"][number]:
            mpi.redirect_output(mpi.rank_log(place.logs, rank))
            print(STARTED.format(rank, job["world_size"]), f"(pid {os.getpid()}, GPU {local})", flush=True)
            build_rank(job, rank, local, place)
            print(DONE.format(rank), flush=True)

    mpi.abort_on_error(run, lambda: world.Abort(1) if world is not None else None)


def build_rank(job: dict[str, Any], rank: int, gpu: int, place: Workplace) -> None:
    """Load the checkpoint for one rank, build, and leave `rankN.engine` with its record.

    Raises:
        ImportError, AssertionError, RuntimeError and others: whatever TensorRT-LLM says; it becomes the log.
    """
    import tensorrt
    import tensorrt_llm
    import torch
    from tensorrt_llm.builder import BuildConfig, build
    from tensorrt_llm.logger import logger
    from tensorrt_llm.models import MODEL_MAP, PretrainedConfig
    from tensorrt_llm.plugin import PluginConfig

    torch.cuda.set_device(gpu)
    logger.set_level(job["log_level"])
    checkpoint = job["checkpoint"]
    config = copy.deepcopy(PretrainedConfig.from_json_file(str(Path(checkpoint) / "config.json")))
    if job["logits_dtype"] is not None:
        config.logits_dtype = job["logits_dtype"]
    config.set_rank(rank)
    if config.architecture not in MODEL_MAP:
        raise RuntimeError(f"Unsupported model architecture: {config.architecture}")
    model = MODEL_MAP[config.architecture].from_checkpoint(checkpoint, config=config)
    plugins = PluginConfig()
    if job["gemm_plugin_off"]:
        plugins._explicitly_disable_gemm_plugin = True  # as its own command line does
    build_config = BuildConfig.from_json_file(str(place.build_config), plugin_config=plugins)
    build_config.plugin_config.validate()
    if getattr(config, "is_pruned", False):
        build_config.use_strip_plan = True
    engine = build(model, build_config)
    assert engine is not None
    major, minor = torch.cuda.get_device_capability(gpu)
    facts = {
        "tensorrt_llm": tensorrt_llm.__version__,
        "tensorrt": tensorrt.__version__,
        "sm": 10 * major + minor,
        "gpu": torch.cuda.get_device_name(gpu),
    }
    save_rank(engine, rank, place, facts)
    del engine, model
    gc.collect()
    torch.cuda.empty_cache()


def save_rank(engine: Any, rank: int, place: Workplace, facts: dict[str, Any]) -> None:
    """Save into a folder of its own, then put each file into its place; the record comes last.

    Raises:
        RuntimeError: the engine's own file is not there, or empty.
    """
    own = place.folder / f"rank{rank}"
    shutil.rmtree(own, ignore_errors=True)
    engine.save(str(own))
    for name in (f"rank{rank}.engine", *(["config.json"] if rank == 0 else [])):
        if not (own / name).is_file() or not (own / name).stat().st_size:
            raise RuntimeError(f"tensorrt_llm saved no {name}")
    files = {}
    for path in sorted(path for path in own.rglob("*") if path.is_file()):
        name = path.relative_to(own).as_posix()
        if rank and not path.name.startswith(f"rank{rank}"):
            continue  # adapters are the same for all ranks, and rank 0 brings them
        files[name] = sha256_file(path)
        target = place.engine / name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    shutil.rmtree(own)
    record_done(place.done(rank), files, facts)


def _world(processes: int) -> Any:
    """All processes, None for one alone. From here on a failure must abort: MPI's own end waits for the others."""
    if processes == 1:
        return None
    from mpi4py import MPI

    return MPI.COMM_WORLD


def _place(world: Any, processes: int) -> tuple[int, int]:
    """(number of this process, its number on this host), as tensorrt_llm counts local ranks."""
    if world is None:
        return 0, 0
    from mpi4py import MPI

    if world.Get_size() != processes:
        raise RuntimeError(
            f"MPI started {world.Get_size()} process(es) in a world, not {processes}: mpi4py and the launcher are of "
            "different MPI libraries"
        )
    return world.Get_rank(), world.Split_type(MPI.COMM_TYPE_SHARED).Get_rank()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
