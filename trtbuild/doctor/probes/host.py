"""Memory, cgroup, processors, /dev/shm, ulimits, disks."""

from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path

from trtbuild.doctor.facts import Disk, Host

SHM = Path("/dev/shm")
_CGROUP = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60  # cgroup v1 says 2**63 rounded down to a page
_LIMITS = {
    "memlock": resource.RLIMIT_MEMLOCK,
    "nofile": resource.RLIMIT_NOFILE,
    "stack": resource.RLIMIT_STACK,
    "fsize": resource.RLIMIT_FSIZE,
}


def probe_host() -> Host:
    """This machine, as this process may use it."""
    memory = _meminfo()
    limit, used = cgroup_memory(Path("/proc/self/cgroup"), _CGROUP)
    shm = _space(SHM)
    return Host(
        ram_bytes=memory.get("MemTotal", 0),
        available_bytes=memory.get("MemAvailable", 0),
        cgroup_bytes=limit,
        cgroup_used_bytes=used if limit is not None else None,
        cpus=len(os.sched_getaffinity(0)),
        cpu_quota=cgroup_cpus(Path("/proc/self/cgroup"), _CGROUP),
        shm_bytes=shm[1] if shm else None,
        shm_free_bytes=shm[0] if shm else None,
        limits={name: _soft(which) for name, which in _LIMITS.items()},
        disks=tuple(_disks()),
    )


def cache_dir() -> Path:
    """Where trtbuild keeps what it can make again: $TRTBUILD_CACHE, else trtbuild in the user's cache folder."""
    if chosen := os.environ.get("TRTBUILD_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtbuild"


def cgroup_memory(membership: Path, root: Path) -> tuple[int | None, int | None]:
    """The smallest memory limit of this process's group and its parents, and what that group uses; cgroup v2 or v1."""
    best: tuple[int | None, int | None] = (None, None)
    for folder in _groups(membership, root, "memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit = _number(folder / limit_name)
            if limit is not None and limit < _NO_LIMIT and (best[0] is None or limit < best[0]):
                best = limit, _number(folder / used_name)
    return best


def cgroup_cpus(membership: Path, root: Path) -> float | None:
    """The smallest number of processors that a quota of the group or its parents leaves; None without one."""
    quotas = []
    for folder in _groups(membership, root, "cpu"):
        text = _text(folder / "cpu.max").split()
        quota = text[0] if text else _text(folder / "cpu.cfs_quota_us")
        period = text[1] if len(text) > 1 else _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _groups(membership: Path, root: Path, controller: str) -> list[Path]:
    """Folders of this process's cgroup and its parents. In a container the root itself is the own group."""
    folders = [root, root / controller]
    for line in _text(membership).splitlines():
        number, names, path = [*line.split(":", 2), "", ""][:3]
        if number != "0" and controller not in names.split(","):
            continue
        base = root if number == "0" else root / controller
        parts = Path(path.lstrip("/")).parts
        folders += [base.joinpath(*parts[: end + 1]) for end in range(len(parts))]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _disks() -> list[Disk]:
    places = {
        "work": Path.cwd(),
        "trtbuild cache": cache_dir(),
        "temporary files": Path(tempfile.gettempdir()),
    }
    found = []
    for purpose, path in places.items():
        there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        space = _space(there)
        if space:
            found.append(Disk(purpose, str(path), space[0], space[1], os.access(there, os.W_OK)))
    return found


def _space(path: Path) -> tuple[int, int] | None:
    """Bytes free for this user, and in all."""
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


def _meminfo() -> dict[str, int]:
    rows = (line.split() for line in _text(Path("/proc/meminfo")).splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) > 1 and row[1].isdigit()}


def _soft(which: int) -> int | None:
    soft = resource.getrlimit(which)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None
