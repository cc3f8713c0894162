"""Memory, processors, /dev/shm, ulimits, disks. Facts: engine-build section 9.1, triton-repo section 11.3."""

from __future__ import annotations

from collections.abc import Iterator

from trtbuild.doctor.facts import Facts, Host
from trtbuild.doctor.finding import Finding, Level, Wish
from trtbuild.doctor.topics.words import GIB, gib

_SHM_FLAG = "docker run --shm-size=2g ..., in Kubernetes an emptyDir with medium: Memory at /dev/shm"
_SHM_BYTES = 1 * GIB  # the documented minimum; Triton's own pages use 2g
_STACK_BYTES = 67108864
_FILES = 1024
_RAM = {"cpu": 2 * GIB, "tensorrt": 16 * GIB, "llmapi": 4 * GIB}
_FREE_MEMORY = {
    "cpu": "End other programs, or take a host with more memory; `trtbuild plan MODEL` says what a conversion needs",
    "tensorrt": "trtbuild engine ... --processes 1 (one rank after the other), or a host with more memory; "
    "`trtbuild plan MODEL --gpu NAME` says what a build needs",
    "llmapi": "End other programs, or take a host with more memory; `trtbuild plan MODEL` says what a conversion needs",
}
_OTHER_DISK = {
    "work": "Run trtbuild in a folder on a larger disk that can be written, or name one there with -o DIR",
    "trtbuild cache": "export TRTBUILD_CACHE=DIR on a larger disk that can be written",
    "temporary files": "export TMPDIR=DIR that can be written",
}
"""By what the disk is for (`Disk.purpose`)."""
_DISK = {"cpu": 2 * GIB, "tensorrt": 50 * GIB, "llmapi": 10 * GIB}


def judge(facts: Facts, wish: Wish) -> Iterator[Finding]:
    host = facts.host
    yield from _memory(host, wish)
    yield from _processors(host, wish)
    yield from _shm(host, wish)
    yield from _limits(host, wish)
    yield from _disks(host, wish)


def usable_bytes(host: Host) -> int:
    """Host memory that this process can get: what is available, or what its cgroup leaves."""
    if host.cgroup_bytes is None:
        return host.available_bytes
    return min(host.available_bytes, host.cgroup_bytes - (host.cgroup_used_bytes or 0))


def _memory(host: Host, wish: Wish) -> Iterator[Finding]:
    usable = usable_bytes(host)
    limit = f", cgroup limit {gib(host.cgroup_bytes)}" if host.cgroup_bytes is not None else ""
    found = f"{gib(usable)} usable of {gib(host.ram_bytes)}{limit}"
    if usable >= _RAM[wish.target]:
        yield Finding("ok", "host.memory", found)
        return
    limited = host.cgroup_bytes is not None and host.cgroup_bytes < host.ram_bytes
    yield Finding(
        "warn",
        "host.memory",
        found,
        "A build needs a rank's weights and TensorRT's copy of them in host memory, for each rank that runs at once; "
        "the kernel kills it without a traceback."
        if wish.on_gpu
        else "Weights are mapped, but conversion and calibration need room.",
        "docker run --memory=64g ..., or a larger resources.limits.memory" if limited else _FREE_MEMORY[wish.target],
    )


def _processors(host: Host, wish: Wish) -> Iterator[Finding]:
    usable = min(host.cpus, host.cpu_quota or host.cpus)
    text = f"{host.cpus} processors" + (f", quota {host.cpu_quota:g}" if host.cpu_quota else "")
    if usable < 1 or (wish.target == "cpu" and usable < wish.gpus):
        yield Finding(
            "warn",
            "host.cpu",
            text,
            f"{wish.gpus} rank(s) share them and wait for each other.",
            "docker run --cpus=...",
        )
    else:
        yield Finding("ok", "host.cpu", text)


def _shm(host: Host, wish: Wish) -> Iterator[Finding]:
    if host.shm_bytes is None:
        yield Finding(
            "fail" if wish.target == "cpu" or wish.gpus > 1 else "warn", "host.shm", "no /dev/shm", "", _SHM_FLAG
        )
        return
    found = f"/dev/shm {gib(host.shm_bytes)}, {gib(host.shm_free_bytes or 0)} free"
    many: Level = "fail" if wish.gpus > 1 else "warn"
    if wish.on_gpu and host.shm_bytes < _SHM_BYTES:
        yield Finding(
            many,
            "host.shm",
            found,
            "NCCL and the python backend pass data through it; docker's default of 64 MiB ends in NCCL errors and bus "
            "errors.",
            _SHM_FLAG,
        )
    elif (host.shm_free_bytes or 0) < 32 * (1 << 20):
        yield Finding(
            "fail" if wish.target == "cpu" else "warn",
            "host.shm",
            found,
            "tritonserver's python backend and MPI keep their queues there.",
            "ls -l /dev/shm (remove what is left over), or " + _SHM_FLAG,
        )
    else:
        yield Finding("ok", "host.shm", found)


def _limits(host: Host, wish: Wish) -> Iterator[Finding]:
    memlock, files = host.limits.get("memlock"), host.limits.get("nofile")
    stack, fsize = host.limits.get("stack"), host.limits.get("fsize")
    if wish.on_gpu and memlock is not None:
        yield Finding(
            "warn",
            "host.memlock",
            f"memlock {gib(memlock)}",
            "NCCL and InfiniBand pin memory at run time.",
            "docker run --ulimit memlock=-1 ..., elsewhere ulimit -l unlimited",
        )
    if wish.on_gpu and stack is not None and stack < _STACK_BYTES:
        yield Finding(
            "warn",
            "host.stack",
            f"stack {gib(stack)}",
            "NVIDIA's images are documented with 64 MiB.",
            f"docker run --ulimit stack={_STACK_BYTES} ..., elsewhere ulimit -s {_STACK_BYTES // 1024}",
        )
    if files is not None and files < _FILES:
        yield Finding(
            "warn",
            "host.nofile",
            f"{files} open files",
            "A server opens sockets and files for each rank.",
            "ulimit -n 65536",
        )
    if fsize is not None:
        yield Finding(
            "fail" if fsize < GIB else "warn",
            "host.fsize",
            f"files may have {gib(fsize)}",
            "A rank's file is as large as its weights; the write ends with SIGXFSZ.",
            "ulimit -f unlimited",
        )
    if not any(limit is not None for limit in (memlock, stack, fsize)) and host.limits:
        yield Finding("ok", "host.limits", "memlock, stack and file size unlimited")


def _disks(host: Host, wish: Wish) -> Iterator[Finding]:
    for disk in host.disks:
        found = f"{disk.purpose} {disk.path}: {gib(disk.free_bytes)} free"
        if not disk.writable:
            yield Finding(
                "fail" if disk.purpose == "temporary files" else "warn",
                "host.disk",
                f"{found}, but not writable",
                "Nothing can be written there.",
                _OTHER_DISK.get(disk.purpose, _OTHER_DISK["work"]),
            )
        elif disk.purpose != "temporary files" and disk.free_bytes < _DISK[wish.target]:
            yield Finding(
                "warn",
                "host.disk",
                found,
                "Checkpoint and engine are each about as large as the weights; `trtbuild plan MODEL` has the figures.",
                _OTHER_DISK.get(disk.purpose, _OTHER_DISK["work"]),
            )
        else:
            yield Finding("ok", "host.disk", found)
