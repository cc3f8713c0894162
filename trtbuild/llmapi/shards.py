"""Writes the files of a Hugging Face checkpoint from a logical one, tensor by tensor; nothing is held in memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trtbuild.checkpoint.logical import read_logical
from trtbuild.checkpoint.source import INDEX
from trtbuild.checkpoint.writer import write_documents, write_file
from trtbuild.errors import CheckpointError, some
from trtbuild.layout import RankJobs, TensorInfo
from trtbuild.llmapi.layout import file_names
from trtbuild.progress import Progress, silent

COPIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)
"""Files of a model folder that go with it as they are."""


def write_shards(logical: Path, shards: Sequence[RankJobs], out: Path, progress: Progress = silent) -> dict[str, str]:
    """Copy a logical checkpoint's tensors into the files of a plan; SHA-256 in hex by file name.

    Raises:
        CheckpointError: the logical checkpoint has not exactly the plan's tensors.
        OSError: a file cannot be read or written.
    """
    held = read_logical(logical)
    jobs = {job.name: job for shard in shards for job in shard.jobs}
    odd = [name for name in {**jobs, **held}
           if name not in jobs or name not in held
           or (held[name].dtype, held[name].shape) != (jobs[name].dtype, jobs[name].shape)]  # fmt: skip
    if odd:
        raise CheckpointError(f"{logical} and the plan differ: {some(sorted(odd))}", hint="Run the quantization again.")
    total, digests, done = sum(shard.nbytes for shard in shards), dict[str, str](), 0

    def tensors(shard: RankJobs) -> Iterator[memoryview]:
        nonlocal done
        for job in shard.jobs:
            progress(done, total, job.name)
            yield _bytes(held[job.name])
            done += job.nbytes

    for name, shard in zip(file_names(len(shards)), shards, strict=True):
        digests[name] = write_file(out / name, shard.jobs, tensors(shard))
    progress(total, total, "")
    write_index(shards, out)
    return digests


def write_index(shards: Sequence[RankJobs], out: Path) -> None:
    """model.safetensors.index.json, where a model has several files."""
    if len(shards) == 1:
        return
    names = file_names(len(shards))
    table = {job.name: name for name, shard in zip(names, shards, strict=True) for job in shard.jobs}
    size = sum(shard.nbytes for shard in shards)
    write_documents(out, {INDEX: {"metadata": {"total_size": size}, "weight_map": table}})


def copy_files(source: Path, out: Path) -> None:
    """The tokenizer and what else belongs to a model but its weights and config."""
    for path in sorted({path for pattern in COPIED for path in source.glob(pattern) if path.is_file()}):
        shutil.copyfile(path, out / path.name)


def _bytes(info: TensorInfo) -> memoryview:
    import numpy as np

    if not info.nbytes:
        return memoryview(b"")
    found: Any = np.memmap(info.file, np.uint8, "r", info.start, (info.nbytes,))
    return memoryview(found)
