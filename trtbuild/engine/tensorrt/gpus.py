"""EDGE: the GPUs that a process on this host would see, and the versions of what builds."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping as Dict
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

_QUERY = ("--query-gpu=index,uuid,name,compute_cap,memory.total", "--format=csv,noheader,nounits")
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Gpu:
    """One GPU: `sm` as 90 for compute capability 9.0; `memory_bytes` None where nvidia-smi does not say it."""

    index: int
    uuid: str
    name: str
    sm: int
    memory_bytes: int | None = None


def visible_gpus(environment: Dict[str, str]) -> list[Gpu] | None:
    """What nvidia-smi lists, less what CUDA_VISIBLE_DEVICES hides; None where nothing can be said.

    A process of CUDA counts the GPUs of CUDA_VISIBLE_DEVICES from 0; nvidia-smi does not know that variable.
    """
    program = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if program is None:
        return None
    try:
        done = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    return shown(parse_gpus(done.stdout), environment.get("CUDA_VISIBLE_DEVICES"))


def parse_gpus(text: str) -> list[Gpu]:
    """The lines of nvidia-smi; one that is no GPU is left out."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) >= 4 and cells[0].isdecimal() and cells[3].replace(".", "").isdecimal():
            mib = cells[4] if len(cells) > 4 else ""
            memory = int(mib) << 20 if mib.isdecimal() else None  # [N/A] where the host's memory is the GPU's
            found.append(Gpu(int(cells[0]), cells[1], cells[2], int(cells[3].replace(".", "")), memory))
    return found


def shown(gpus: list[Gpu], visible: str | None) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order; the first name that is none ends the list, as in CUDA."""
    if visible is None:
        return gpus
    found: list[Gpu] = []
    for name in visible.split(","):
        name = name.strip()
        matching = [gpu for gpu in gpus if str(gpu.index) == name or (name and gpu.uuid.startswith(name))]
        if len(matching) != 1:
            break
        found.append(matching[0])
    return found


def tool_version(package: str) -> str | None:
    """The installed version of a distribution, None without it; nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
