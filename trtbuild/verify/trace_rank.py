"""One rank of an engine under verification: `trace`, or `python -m trtbuild.verify.trace_rank JOB.json` under mpirun.

It runs the program's own operations a layer at a time, twice: each layer from the reference's hidden states, so that
its error is its own, and then all of them one after the other, which gives the logits. T tokens, H hidden features.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trtbuild import mpi
from trtbuild.runtime.comm import Comm
from trtbuild.runtime.executor import Batch
from trtbuild.runtime.info import TOKENS_PER_BLOCK, EngineInfo, read_engine
from trtbuild.runtime.model import RankModel, segments
from trtbuild.runtime.ops import Buffer, Kind, Op
from trtbuild.verify.measure import TokenNoise

if TYPE_CHECKING:
    from mpi4py.MPI import Comm as MpiComm


@dataclass(frozen=True)
class TraceJob:
    """What a rank is told. `hidden` (reference, float32 [layers + 1, samples, T, H]), `ids` (int32 [samples, T]) and
    `logits` (float32 [samples, T, V], to be filled) are raw files; `hidden` "" leaves the layers out. Each first rank
    of a stage writes what it measured into `out`, and all of them count their steps in `steps`, int64 [world].
    """

    engine: str
    ids: str
    hidden: str
    logits: str
    steps: str
    out: str
    samples: int
    length: int
    executor: str = ""

    def array(self, path: str, dtype: Any, *shape: int, mode: str = "r") -> Any:
        return np.memmap(path, dtype, mode, shape=shape)  # type: ignore[call-overload]


def num_steps(num_layers: int, samples: int, *, layers: bool) -> int:
    """What the ranks of a tensor-parallel group count together over all stages."""
    return samples * num_layers * (2 if layers else 1)


def trace(job: TraceJob, rank: int, world: MpiComm | None, step: Callable[[], None]) -> None:
    """Run one rank of the job; `step` is called after every layer of every sample.

    Raises:
        EngineError: the engine is damaged, or cannot be executed.
    """
    info = read_engine(Path(job.engine))
    limits = {"max_num_tokens": job.length, "max_seq_len": job.length, "max_batch_size": 1}
    info = EngineInfo(info.directory, {**info.config, "build_config": {**info.build, **limits}})
    comm = Comm(info.mapping(rank), world)
    blocks = -(-job.length // TOKENS_PER_BLOCK)
    model = RankModel(info, comm, max_batch_size=1, kv_blocks=blocks, executor=job.executor)
    tracer = _Tracer(job, model, info.pretrained, step)
    isolated = tracer.isolated() if job.hidden else {}
    stream = tracer.end_to_end()
    if comm.mapping.tp_rank == 0:
        found = {layer: (noise.db, stream[layer].db) for layer, noise in isolated.items()}
        (Path(job.out) / f"trace{rank}.json").write_text(json.dumps(found))


class _Tracer:
    def __init__(self, job: TraceJob, model: RankModel, config: dict[str, Any], step: Callable[[], None]) -> None:
        self._job, self._model, self._step = job, model, step
        self._mapping = model.comm.mapping
        layers = config["num_hidden_layers"]
        self._numbers = self._mapping.layers(layers)
        # An executor knows a run of operations by its identity: they live as long as this object.
        before, own, after = cut(model.program.ops, len(self._numbers))
        self._before, self._after = segments(before), segments(after)
        self._layers = [segments(ops) for ops in own]
        self._ids = job.array(job.ids, np.int32, job.samples, job.length)
        self._hidden = None
        if job.hidden:
            shape = (layers + 1, job.samples, job.length, config["hidden_size"])
            self._hidden = job.array(job.hidden, np.float32, *shape)
        self._vocab = config["vocab_size"]

    def isolated(self) -> dict[int, TokenNoise]:
        """Layer -> noise of what it adds to the residual stream."""
        found: dict[int, TokenNoise] = {}
        for layer, ops in zip(self._numbers, self._layers, strict=True):
            noise = found[layer] = TokenNoise()
            for sample in range(self._job.samples):
                before, after = self._states(layer, sample), self._states(layer + 1, sample)
                self._x.copy_(before)
                self._model.run(ops, self._batch(sample))
                noise.add(after - before, self._x - after)
                self._step()
        return found

    def end_to_end(self) -> dict[int, TokenNoise]:
        """Layer -> noise of the hidden states after it; rank 0 writes the logits."""
        found = {layer: TokenNoise() for layer in self._numbers}
        logits = None
        if self._mapping.rank == 0:
            shape = (self._job.samples, self._job.length, self._vocab)
            logits = self._job.array(self._job.logits, np.float32, *shape, mode="r+")
        for sample in range(self._job.samples):
            batch = self._batch(sample)
            self._model.run(self._before, batch)
            for layer, ops in zip(self._numbers, self._layers, strict=True):
                self._model.run(ops, batch)
                if self._hidden is not None:
                    after = self._states(layer + 1, sample)
                    found[layer].add(after, self._x - after)
                self._step()
            self._model.run(self._after, batch)
            if logits is not None:
                logits[sample] = self._model.logits(self._job.length)
        return found

    @property
    def _x(self) -> torch.Tensor:
        return self._model.buffers[Buffer.X][: self._job.length]

    def _states(self, layer: int, sample: int) -> torch.Tensor:
        assert self._hidden is not None
        return torch.from_numpy(np.array(self._hidden[layer, sample]))

    def _batch(self, sample: int) -> Batch:
        """A whole sample in one step, on the first blocks of the cache; logits of every token."""
        positions = torch.arange(self._job.length, dtype=torch.int32)
        return Batch(
            token_ids=torch.from_numpy(np.array(self._ids[sample])),
            positions=positions,
            slots=torch.zeros_like(positions),
            block_tables=torch.arange(-(-self._job.length // TOKENS_PER_BLOCK), dtype=torch.int32)[None],
            rows=positions,
            lengths=torch.tensor([self._job.length], dtype=torch.int32),
        )


def cut(ops: tuple[Op, ...], num_layers: int) -> tuple[tuple[Op, ...], list[tuple[Op, ...]], tuple[Op, ...]]:
    """(before, layers, after) of a rank's program; a layer ends with its summand added, so that X alone passes on."""
    bases = [f"transformer.layers.{layer}." for layer in range(num_layers)]
    starts = [next(i for i, op in enumerate(ops) if op.weight.startswith(base)) for base in bases]
    last = [i for i, op in enumerate(ops) if op.kind is Kind.ADD and op.in_ is Buffer.X]
    if not starts:
        return ops, [], ()
    add = ops[last[-1]]
    layers = [
        (replace(ops[start], in2=None), *ops[start + 1 : stop], add)
        for start, stop in zip(starts, [*starts[1:], last[-1]], strict=True)
    ]
    return ops[: starts[0]], layers, ops[last[-1] + 1 :]


def main(path: Path) -> None:
    job = TraceJob(**json.loads(path.read_text()))
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    rank, size = world.Get_rank(), world.Get_size()
    mpi.redirect_output(mpi.rank_log(Path(job.out), rank))
    print(f"rank {rank} of {size}, pid {os.getpid()}: {job.engine}", flush=True)

    steps = job.array(job.steps, np.int64, size, mode="r+")

    def step() -> None:
        steps[rank] += 1

    def run() -> None:
        trace(job, rank, world, step)
        world.Barrier()
        print("done", flush=True)

    mpi.abort_on_error(run, lambda: world.Abort(1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
