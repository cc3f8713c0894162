"""Many engines of up to N ranks under one mpirun: `python -m tests.layout_ranks JOBS.json`, as N processes.

Starting mpirun costs seconds, an engine of a tiny model none, so each engine runs on the first ranks of one world.
`run_layouts` is the other side.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trtbuild import mpi


@dataclass(frozen=True)
class Job:
    """Greedy generation of `new_tokens` for every prompt, all in flight at once; then logits after each token of the
    longest sequence."""

    engine: str
    executor: str
    prompts: tuple[tuple[int, ...], ...]
    new_tokens: int


@dataclass(frozen=True)
class Result:
    sequences: list[list[int]]
    """Prompt and what was generated."""
    logits: np.ndarray
    """After every token of the longest sequence, [T, vocab_size]."""

    @property
    def longest(self) -> int:
        return max(range(len(self.sequences)), key=lambda i: len(self.sequences[i]))


def run_layouts(jobs: dict[str, Job], folder: Path, ranks: int) -> dict[str, Result]:
    """Run all jobs in one MPI job of `ranks` processes; results by the jobs' names. `folder` must be empty."""
    (folder / "jobs.json").write_text(json.dumps({name: asdict(job) for name, job in jobs.items()}))
    argv = [sys.executable, "-m", "tests.layout_ranks", str(folder / "jobs.json")]
    process = mpi.start_ranks(argv, ranks, log=folder / "mpirun.log")
    try:
        code = process.wait(600)
    finally:
        mpi.stop_ranks(process)
    assert code == 0, (folder / "mpirun.log").read_text()[-3000:]
    return {name: _load(folder, name) for name in jobs}


def _load(folder: Path, name: str) -> Result:
    return Result(json.loads((folder / f"{name}.json").read_text()), np.load(folder / f"{name}.npy"))


def _run(job: Job, world: Any) -> tuple[list[list[int]], np.ndarray] | None:
    from tests.engines import greedy, tokens_of
    from trtbuild.runtime.generator import Generator, follow, load_rank
    from trtbuild.runtime.info import RuntimeOptions, read_engine

    options = RuntimeOptions(executor=job.executor, max_tokens_in_paged_kv_cache=2048)
    if world.Get_rank():
        model, _limits = load_rank(read_engine(Path(job.engine)), world.Get_rank(), options, world)
        follow(model)
        return None
    generator = Generator(Path(job.engine), options, world)
    requests = [greedy(str(i), tuple(prompt), job.new_tokens) for i, prompt in enumerate(job.prompts)]
    outputs = generator.generate(requests)
    sequences = [[*request.prompt_ids, *tokens_of(outputs[request.request_id])] for request in requests]
    logits = generator.score(max(sequences, key=len))
    generator.close()
    return sequences, logits


def main(jobs: Path) -> None:
    from mpi4py import MPI

    from trtbuild.runtime.info import read_engine

    world = MPI.COMM_WORLD
    rank, todo = world.Get_rank(), {name: Job(**fields) for name, fields in json.loads(jobs.read_text()).items()}
    sizes = {name: read_engine(Path(job.engine)).mapping().world_size for name, job in todo.items()}
    first = {size: world.Split(int(rank >= size), rank) for size in sorted(set(sizes.values()))}
    for name, job in todo.items():
        found = _run(job, first[sizes[name]]) if rank < sizes[name] else None
        if found is not None:
            (jobs.parent / f"{name}.json").write_text(json.dumps(found[0]))
            np.save(jobs.parent / f"{name}.npy", found[1])
        done = world.Ibarrier()
        while not done.Test():  # MPI's own waiting would take the cores from the ranks that compute
            time.sleep(0.005)


if __name__ == "__main__":
    from mpi4py import MPI

    mpi.abort_on_error(lambda: main(Path(sys.argv[1])), lambda: MPI.COMM_WORLD.Abort(1))
