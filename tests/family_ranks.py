"""Runs many small engines in one MPI job, of four ranks as a rule; `run_jobs` starts it.

Each job takes as many of the ranks as its checkpoint needs; jobs of different ranks run at the same time. Every rank
builds its part of the engine, loads it, and rank 0 of the job writes what it computed to an .npz file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import ROOT
from trtbuild import mpi
from trtbuild.engine.cpu import engine_mapping, read_checkpoint_config
from trtbuild.engine.cpu_rank import build_rank
from trtbuild.engine.options import BuildOptions
from trtbuild.runtime.generator import Generator, follow, load_rank
from trtbuild.runtime.info import RuntimeOptions, read_engine
from trtbuild.runtime.request import Request

LIMITS = {"max_batch_size": 4, "max_seq_len": 96, "max_num_tokens": 16}  # prompts are cut into chunks
CACHE_TOKENS = 512


def job_of(
    checkpoint: Path, stem: str | Path, prompts: list[list[int]], new_tokens: int, executor: str = "torch"
) -> dict[str, Any]:
    """A job for `run_jobs`: it makes STEM.engine and STEM.npz."""
    return {
        "checkpoint": str(checkpoint),
        "engine": f"{stem}.engine",
        "out": f"{stem}.npz",
        "executor": executor,
        "limits": LIMITS,
        "cache_tokens": CACHE_TOKENS,
        "prompts": prompts,
        "new_tokens": new_tokens,
    }


def run_jobs(jobs: list[dict[str, Any]], folder: Path, ranks: int = 4) -> None:
    """Run all of them on `ranks` ranks, as many as the largest job needs; each writes its `out`.

    A job is a `job_of`; it may have other `limits` (arguments of BuildOptions) and `cache_tokens`.
    """
    from trtbuild.runtime.native.library import load_library

    load_library()  # compiled once, not by every rank
    first = 0
    for job in jobs:
        job["first"] = first
        first = (first + read_checkpoint_config(Path(job["checkpoint"]))["mapping"]["world_size"]) % ranks
    (folder / "jobs.json").write_text(json.dumps(jobs))
    argv = [sys.executable, "-c", "from tests.family_ranks import main; from pathlib import Path; import sys;"
            " main(Path(sys.argv[1]))", str(folder / "jobs.json")]  # fmt: skip
    log = folder / "mpirun.log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTBUILD_THREADS", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(ROOT), prepend=":")
        process = mpi.start_ranks(argv, ranks, log=log)
    try:
        assert process.wait(600) == 0, log.read_text()[-3000:]
    finally:
        mpi.stop_ranks(process)


def run_job(job: dict[str, Any], world: Any) -> None:
    """The job's ranks among those of `world`; None: the job has one rank, this process."""
    checkpoint, engine = Path(job["checkpoint"]), Path(job["engine"])
    config = read_checkpoint_config(checkpoint)
    mapping = engine_mapping(config)
    rank, group = 0, None
    if world is not None:
        members = [(job["first"] + i) % world.Get_size() for i in range(mapping.world_size)]
        if world.Get_rank() not in members:
            return
        rank = members.index(world.Get_rank())
        group = world.Create_group(world.Get_group().Incl(members))
    engine.mkdir(exist_ok=True)
    build_rank(checkpoint, engine, config, mapping.at(rank))
    if rank == 0:
        limits = BuildOptions(**job["limits"])
        described = {"target": "cpu", "executor": job["executor"]}
        document = {"pretrained_config": config, "build_config": limits.build_config(config), "trtbuild": described}
        (engine / "config.json").write_text(json.dumps(document))
    if group is not None:
        group.Barrier()
    options = RuntimeOptions(max_tokens_in_paged_kv_cache=job["cache_tokens"])
    comm = group if mapping.world_size > 1 else None
    if rank:
        follow(load_rank(read_engine(engine), rank, options, comm)[0])
    else:
        generator = Generator(engine, options, comm)
        np.savez(job["out"], **compute(generator, job["prompts"], job["new_tokens"]))
        generator.close()


def compute(generator: Generator, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
    """Logits of the first prompt in chunks of two sizes, and greedy tokens of all prompts in flight together.

    `scored` are the logits of the last prompt with its tokens, `kv_blocks_used` those that are not free in the end.
    """
    chunked = generator.score(prompts[0])
    requests = [Request(str(i), tuple(prompt), new_tokens) for i, prompt in enumerate(prompts)]
    outputs = generator.generate(requests)
    tokens = [[token for output in outputs[request.request_id] for token in output.token_ids] for request in requests]
    found = {"logits": chunked, "tokens": np.array(tokens), "scored": generator.score(prompts[-1] + tokens[-1])}
    generator.scheduler.max_num_tokens = 5
    found["smaller_chunks"] = generator.score(prompts[0])
    return {**found, "kv_blocks_used": generator.stats()["kv_blocks_used"]}


def main(jobs: Path) -> None:
    from mpi4py import MPI

    world = MPI.COMM_WORLD

    def run() -> None:
        for job in json.loads(jobs.read_text()):
            print(f"rank {world.Get_rank()}: {job['out']}", flush=True)
            run_job(job, world)

    mpi.abort_on_error(run, lambda: world.Abort(1))
