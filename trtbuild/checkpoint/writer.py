"""Streaming safetensors writer: the header goes down first, since the plan knows every size, then bytes in order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.layout import Job

if TYPE_CHECKING:
    import torch

ALIGNMENT = 64
"""Data starts at a multiple of this, so that a memory map of the first tensor suits every vector load."""


class RankWriter:
    """Writes one `rankN.safetensors`; `write` takes the tensors in the order of `jobs`."""

    def __init__(self, path: Path, jobs: Sequence[Job]) -> None:
        self._jobs = list(jobs)
        self._next = 0
        self._digest = hashlib.sha256()
        self._file = path.open("wb")
        self._put(header_bytes(jobs))

    def write(self, job: Job, tensor: torch.Tensor) -> None:
        """Append one contiguous tensor; its dtype, shape and turn must be the planned ones."""
        import torch

        assert job == self._jobs[self._next], f"{job.name} out of turn"
        data = tensor.reshape(-1).view(torch.uint8).numpy()
        assert data.nbytes == job.nbytes, (job.name, data.nbytes, job.nbytes)
        self._put(data.data)
        self._next += 1

    def close(self) -> str:
        """Finish the file and return its SHA-256 in hex."""
        assert self._next == len(self._jobs), f"{len(self._jobs) - self._next} tensors were never written"
        self._file.close()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Close after a failure; the staging folder is thrown away by its owner."""
        try:
            self._file.close()
        except OSError:
            return

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)


def header_bytes(jobs: Sequence[Job]) -> bytes:
    """Length prefix and JSON header, padded with spaces to ALIGNMENT; keys in job order, so bytes are reproducible."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for job in jobs:
        table[job.name] = {"dtype": job.dtype, "shape": list(job.shape), "data_offsets": [offset, offset + job.nbytes]}
        offset += job.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
