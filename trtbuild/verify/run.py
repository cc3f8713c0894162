"""The order of work of a verification, once both models stand: reference, the engine's ranks, weights, logits."""

from __future__ import annotations

import itertools
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trtbuild import mpi
from trtbuild.mapping import Mapping
from trtbuild.progress import Progress, stretch
from trtbuild.runtime.info import read_engine
from trtbuild.staging import log_folder
from trtbuild.verify.measure import LogitMeter, decibels
from trtbuild.verify.reference import Reference
from trtbuild.verify.report import LayerSnr, OneRank, Report
from trtbuild.verify.task import Task
from trtbuild.verify.trace_rank import TraceJob, num_steps, trace
from trtbuild.verify.weights import weight_snrs

if TYPE_CHECKING:
    from numpy.typing import NDArray

_POLL_S = 0.05
_LAUNCHER_LOG = "mpirun.log"
_FOLDED = "scales of {} norms lie in the weights that read them: these were compared as products"


def measure(task: Task, engine: Path, one_rank: Path | None, scratch: Path, progress: Progress) -> Report:
    """Everything but the verdicts. `engine`: of the subject; `one_rank`: of the same weights on one rank, or None.

    Raises:
        EngineError, CheckpointError, VerifyError: the engine or the model cannot be run or read.
        ToolError: mpirun is missing, or a rank died.
    """
    reference = Reference(task.config, task.whole, task.index, task.ids, scratch / "hidden")
    reference.run(stretch(progress, 0.0, 0.4))
    np.asarray(task.ids).tofile(scratch / "ids")
    executor = read_engine(engine).executor
    hidden = str(scratch / "hidden")
    logits, layers = _traced(task, engine, hidden, executor, scratch / "logits", stretch(progress, 0.4, 0.7))
    whole = None
    if one_rank is not None:
        shown = stretch(progress, 0.7, 0.8)
        whole, _ = _traced(task, one_rank, "", executor, scratch / "logits1", shown)
    weights, folded = weight_snrs(engine, task.subject.config, task.ranks, task.index, stretch(progress, 0.8, 0.9))
    meter = LogitMeter()
    for sample, ids in enumerate(task.ids):
        progress(0.9 + 0.1 * sample / len(task.ids), 1.0, "logits")
        meter.add(reference.logits(sample), torch.from_numpy(np.array(logits[sample])), ids)
    progress(1.0, 1.0, "")
    config, quantization = task.subject.config, task.subject.config.get("quantization") or {}
    return Report(
        subject=str(task.subject.folder),
        kind=task.subject.kind,
        model=task.model,
        architecture=config["architecture"],
        dtype=config["dtype"],
        quant_algo=quantization.get("quant_algo") or "",
        kv_cache_quant_algo=quantization.get("kv_cache_quant_algo") or "",
        tp_size=task.subject.options.tp_size,
        pp_size=task.subject.options.pp_size,
        executor=executor,
        text=task.text,
        logits=meter.result(),
        layers=layers,
        weights=weights,
        one_rank=None if whole is None else _against_one_rank(logits, whole),
        notes=(*task.notes, *([_FOLDED.format(folded)] if folded else [])),
    )


def _traced(
    task: Task, engine: Path, hidden: str, executor: str, logits: Path, progress: Progress
) -> tuple[NDArray[Any], tuple[LayerSnr, ...]]:
    """(logits [samples, T, V], layers) of an engine; several ranks run under mpirun, a single one here."""
    with log_folder("trtbuild-verify-") as out:
        return _traced_in(out, task, engine, hidden, executor, logits, progress)


def _traced_in(
    out: Path, task: Task, engine: Path, hidden: str, executor: str, logits: Path, progress: Progress
) -> tuple[NDArray[Any], tuple[LayerSnr, ...]]:
    mapping = read_engine(engine).mapping()
    made = np.memmap(logits, np.float32, "w+", shape=(*task.ids.shape, int(task.config["vocab_size"])))
    job = TraceJob(
        engine=str(engine.resolve()),
        ids=str(logits.parent / "ids"),
        hidden=hidden,
        logits=str(logits),
        steps=str(out / "steps"),
        out=str(out),
        samples=task.text.samples,
        length=task.text.length,
        executor=executor,
    )
    total = num_steps(int(task.config["num_hidden_layers"]), task.text.samples, layers=bool(hidden))
    if mapping.world_size == 1:
        count = itertools.count(1)
        trace(job, 0, None, lambda: progress(next(count), total, "engine"))
    else:
        _run_ranks(job, mapping, total, progress)
    found: dict[int, tuple[float, float]] = {}
    for path in out.glob("trace*.json"):
        found |= {int(layer): pair for layer, pair in json.loads(path.read_text()).items()}
    return made, tuple(LayerSnr(layer, *found[layer]) for layer in sorted(found))


def _run_ranks(job: TraceJob, mapping: Mapping, total: int, progress: Progress) -> None:
    out, world = Path(job.out), mapping.world_size
    steps = np.memmap(job.steps, np.int64, "w+", shape=(world,))
    (out / "job.json").write_text(json.dumps(asdict(job)))
    argv = [sys.executable, "-m", "trtbuild.verify.trace_rank", str(out / "job.json")]
    process = mpi.start_ranks(argv, world, log=out / _LAUNCHER_LOG)
    try:
        while process.poll() is None:
            progress(float(steps[:: mapping.tp_size].sum()), total, f"engine on {world} ranks")
            time.sleep(_POLL_S)
        if process.returncode:
            raise mpi.job_failure(process, out, out / _LAUNCHER_LOG, "running the engine", world)
    finally:
        mpi.stop_ranks(process)


def _against_one_rank(logits: NDArray[Any], whole: NDArray[Any]) -> OneRank:
    signal = noise = worst = 0.0
    total = square = 0.0
    for one, many in zip(whole, logits, strict=True):
        want, have = one.astype(np.float64), many.astype(np.float64)
        total, square = total + want.sum(), square + np.square(want).sum()
        signal, noise = signal + np.square(want).sum(), noise + np.square(have - want).sum()
        worst = max(worst, float(np.abs(have - want).max()))
    count = whole.size
    spread = float(np.sqrt(max(square / count - (total / count) ** 2, 0.0)))
    return OneRank(worst, worst / spread if spread else 0.0, decibels(float(signal), float(noise)))
