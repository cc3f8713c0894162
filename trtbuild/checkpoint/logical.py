"""The logical checkpoint: a whole quantized model before it is cut, in an intermediate folder of trtbuild's own.

One safetensors file a part (a layer, or what belongs to none). Tensors have TensorRT-LLM's names with global layer
numbers; weights are unpacked (int8 or float8 [out, in]), scales float32, all other tensors in the checkpoint's dtype.
A part is written aside and noted in the journal, so a run that was interrupted goes on with the next one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping as Dict
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.checkpoint.journal import Journal
from trtbuild.checkpoint.source import read_header
from trtbuild.checkpoint.writer import write_file
from trtbuild.errors import CheckpointError
from trtbuild.layout import Job, TensorInfo
from trtbuild.manifest import sha256_file

if TYPE_CHECKING:
    import torch

MARKER = "logical.json"


class LogicalWriter:
    """Writes parts in any order: `if not writer.has(part): writer.write(part, tensors)`, and at last `close`.

    `fingerprint` says what the numbers are made of (source, method, options, calibration): parts in a folder of another
    one are deleted.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._journal = Journal(folder)
        self._journal.open(fingerprint)
        self._done: dict[str, str] = {}

    def has(self, part: str) -> bool:
        """Whether an earlier run finished the part, its SHA-256 verified."""
        last = self._journal.last(part)
        path = self._path(part)
        if last is None or not path.is_file() or path.stat().st_size != last[0] or sha256_file(path) != last[1]:
            return False
        self._done[part] = last[1]
        return True

    def write(self, part: str, tensors: Dict[str, torch.Tensor]) -> None:
        """Write a part; it is there whole or not at all.

        Raises:
            OSError: the file system refuses.
        """
        import torch

        jobs = [Job(name, _code(tensor), tuple(tensor.shape), (), "") for name, tensor in tensors.items()]
        aside = self._path(f".{part}")
        digest = write_file(
            aside,
            jobs,
            (tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data for tensor in tensors.values()),
            sync=True,
        )
        self.adopt(part, aside, digest)

    def adopt(self, part: str, path: Path, digest: str) -> None:
        """Make a whole safetensors file of this file system a part; `digest` is its SHA-256 in hex."""
        path.replace(self._path(part))
        self._journal.forget(part)
        self._journal.record(part, self._path(part).stat().st_size, digest)
        self._done[part] = digest

    def close(self) -> dict[str, str]:
        """Mark the folder as complete; returns SHA-256 in hex by part."""
        (self._folder / MARKER).write_text(json.dumps(self._done, indent=2) + "\n", encoding="utf-8")
        self._journal.remove()
        return dict(self._done)

    def _path(self, part: str) -> Path:
        return self._folder / f"{part}.safetensors"


def read_logical(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a complete logical checkpoint by name, from the headers alone.

    Raises:
        CheckpointError: it is incomplete, or its files are truncated, corrupt or say the same tensor twice.
    """
    try:
        parts = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is no complete logical checkpoint: {MARKER}: {error}", hint="Run the quantization again."
        ) from error
    found: dict[str, TensorInfo] = {}
    for part in parts:
        for info in read_header(folder / f"{part}.safetensors"):
            if info.name in found:
                raise CheckpointError(f"{info.name} is in both {found[info.name].file.name} and {info.file.name}")
            found[info.name] = info
    return found


def _code(tensor: torch.Tensor) -> str:
    """The safetensors code of a tensor's dtype."""
    import torch

    codes = {
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.int8: "I8",
        torch.uint8: "U8",
        torch.float8_e4m3fn: "F8_E4M3",
    }
    return codes[tensor.dtype]
