"""Hidden states between two layers, on disk: [samples, length, hidden] float32, a sample at a time.

Two files in turn: a layer reads one and writes the other, so what it started from is there until the next layer
begins. A file counts only with the SHA-256 that the journal noted when it was complete.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Spool:
    """The hidden states that enter each layer. `shape` is (length, hidden) of a sample."""

    def __init__(self, folder: Path, samples: int, shape: tuple[int, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._samples, self._shape = folder, samples, shape
        self._size = shape[0] * shape[1] * 4

    def holds(self, layer: int) -> bool:
        """Whether an earlier run left what enters `layer`, verified."""
        try:
            noted = self._note(layer).read_text()
            with self._path(layer).open("rb") as handle:
                found = hashlib.sha256()
                while piece := handle.read(1 << 22):
                    found.update(piece)
        except OSError:
            return False
        return noted == f"{layer} {found.hexdigest()}"

    def read(self, layer: int) -> Iterator[torch.Tensor]:
        """What enters `layer`, float32 [length, hidden] of each sample."""
        import numpy as np
        import torch

        with self._path(layer).open("rb") as handle:
            for _ in range(self._samples):
                numbers = np.frombuffer(bytearray(handle.read(self._size)), np.float32)
                yield torch.from_numpy(numbers).reshape(self._shape)

    def write(self, layer: int, hidden: Iterator[torch.Tensor]) -> None:
        """Write what enters `layer`, as it comes; it counts when all of it is on the disk.

        Raises:
            OSError: the file system refuses.
        """
        self._note(layer).unlink(missing_ok=True)
        found = hashlib.sha256()
        with self._path(layer).open("wb") as handle:
            for states in hidden:
                data = states.cpu().contiguous().numpy().data
                handle.write(data)
                found.update(data)
            handle.flush()
            os.fsync(handle.fileno())
        self._note(layer).write_text(f"{layer} {found.hexdigest()}")

    def _path(self, layer: int) -> Path:
        return self._folder / f"hidden{layer % 2}"

    def _note(self, layer: int) -> Path:
        return self._folder / f"hidden{layer % 2}.sha256"
