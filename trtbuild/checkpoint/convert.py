"""Executes a plan: each fuse group is read once, cast once, cut for every rank and written. One group in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping as Dict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild.checkpoint.cut import cut
from trtbuild.checkpoint.writer import RankWriter
from trtbuild.errors import CheckpointError
from trtbuild.layout import Job, RankJobs, TensorInfo
from trtbuild.progress import Progress, silent

if TYPE_CHECKING:
    import torch


def convert(
    ranks: Sequence[RankJobs],
    index: Dict[str, TensorInfo],
    config: Dict[str, Any],
    folder: Path,
    progress: Progress = silent,
) -> dict[str, str]:
    """Write config.json and rankN.safetensors into `folder`; returns SHA-256 in hex by file name.

    `progress` counts bytes written. The same inputs give the same bytes.

    Raises:
        CheckpointError: a weight is NaN or infinite, beyond the range of the dtype, or cannot be read.
        OSError: the file system refuses (a full disk, for example).
    """
    total, done = sum(rank.nbytes for rank in ranks), 0
    groups: dict[str, list[tuple[int, Job]]] = {}
    # Stages in order, so that the groups come in the order in which every rank's file holds them.
    for position, rank in sorted(enumerate(ranks), key=lambda item: item[1].pp_rank):
        for job in rank.jobs:
            groups.setdefault(job.group, []).append((position, job))
    names = [f"rank{rank.rank}.safetensors" for rank in ranks]
    writers: list[RankWriter] = []
    try:
        for name, rank in zip(names, ranks, strict=True):
            writers.append(RankWriter(folder / name, rank.jobs))
        for group, jobs in groups.items():
            progress(done, total, group)
            code = "F32" if jobs[0][1].add else jobs[0][1].dtype
            names_read = dict.fromkeys(piece.source for _, job in jobs for piece in job.pieces if piece.source)
            tensors = {name: load(index[name], code) for name in names_read}
            for position, job in jobs:
                writers[position].write(job, finished(cut(tensors, job), job))
                done += job.nbytes
            del tensors  # before the next group is read, so that only one is held
        progress(done, total, "")
        digests = {name: writer.close() for name, writer in zip(names, writers, strict=True)}
    finally:
        for writer in writers:
            writer.abandon()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return digests


def finished(tensor: torch.Tensor, job: Job) -> torch.Tensor:
    """What is done to a cut tensor: `job.add` added in float32, then the cast to `job.dtype`."""
    return (tensor + job.add).to(torch_dtype(job.dtype)) if job.add else tensor


def torch_dtype(code: str) -> torch.dtype:
    """The torch dtype of a safetensors code."""
    import torch

    return {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[code]


def load(info: TensorInfo, code: str) -> torch.Tensor:
    """Read one tensor and cast it to the safetensors dtype `code`.

    Raises:
        CheckpointError: not finite before the cast, or beyond the range of the dtype after it.
    """
    import torch

    dtypes = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    raw = torch.empty(info.nbytes, dtype=torch.uint8)
    try:
        with info.file.open("rb", buffering=0) as handle:
            handle.seek(info.start)
            _read_all(handle, raw.numpy().data)
    except OSError as error:
        raise CheckpointError(f"{info.file} cannot be read: {error.strerror or error}") from error
    source = raw.view(dtypes[info.dtype]).reshape(info.shape)
    result = source.to(dtypes[code])
    if not _finite(result):
        if not _finite(source):
            raise CheckpointError(f"{info.name} in {info.file.name} holds NaN or infinite weights")
        amax = float(source.abs().max())
        limit = float(torch.finfo(dtypes[code]).max)
        name = str(dtypes[code]).removeprefix("torch.")
        message = f"{info.name} in {info.file.name} reaches {amax:g}, beyond {name}'s {limit:g}"
        raise CheckpointError(message, hint="Use --dtype bfloat16 or float32.")
    return result


def _finite(tensor: torch.Tensor) -> bool:
    """Whether all elements are finite, without a mask as large as the tensor: extremes carry NaN and infinity."""
    import torch

    if tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))


def _read_all(handle: Any, view: memoryview) -> None:
    while len(view):
        # Linux moves at most 2 GiB in one call.
        count = handle.readinto(view[: 1 << 30])
        if not count:
            raise OSError("it ends early")
        view = view[count:]
