"""EDGE: memory of a server: its processes on this host out of /proc, its GPUs out of nvidia-smi or Triton's metrics."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LISTEN, _OPEN = "0A", "01"
_LAUNCHERS = ("mpirun", "orterun", "prterun", "prted", "mpiexec")
_RUN_MARK = b"TRTBUILD_RUN_DIR="
_INTERPRETER = re.compile(r"(python|pypy)[\d.]*|(ba|da)?sh")
_GPU_GAUGE = re.compile(r"^nv_gpu_memory_used_bytes\{[^}]*\} ([0-9.e+]+)$", re.M)
_METRICS_S = 2.0


@dataclass(frozen=True)
class Process:
    """`pss`: proportional set size, pages that processes share counted once; None where it may not be read. Bytes.

    `command`: without its arguments, as keys may be among them, and a summary is passed on.
    """

    pid: int
    command: str
    rss: int
    pss: int | None


def server_pids(port: int) -> list[int]:
    """Processes of the server that listens on a port of this host, and of what it talks to here.

    Its listener, its children, the launcher of its ranks and all of that one's; then the same of every local port that
    these hold connections to, so that a gateway is counted with the server behind it.
    """
    sockets = _sockets()
    found: set[int] = set()
    todo, seen = [port], set[int]()
    inodes = _inodes()
    served = {local for state, local, _, _ in sockets if state == _LISTEN}
    while todo:
        wanted = todo.pop()
        seen.add(wanted)
        listening = {inode for state, local, _, inode in sockets if state == _LISTEN and local == wanted}
        new = _family(pid for pid, held in inodes.items() if held & listening) - found
        found |= new
        held = {inode for pid in new for inode in inodes.get(pid, ())}
        own = {local for state, local, _, inode in sockets if state == _LISTEN and inode in held}
        behind = {far for state, near, far, inode in sockets if state == _OPEN and inode in held and near not in own}
        todo += sorted((behind & served) - seen - set(todo))
    return sorted(found)


def processes(pids: Iterable[int]) -> list[Process]:
    """Memory of these processes now; those that are gone are left out."""
    found = []
    for pid in pids:
        if (resident := rss(pid)) is not None:
            found.append(Process(pid, _command(pid), resident, _pss(pid)))
    return found


def rss(pid: int) -> int | None:
    """Resident bytes of a process; cheap enough to be read while something is measured."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return None


def gpu_bytes(pids: Iterable[int]) -> int | None:
    """GPU memory that these processes hold, by nvidia-smi; None without a GPU, or where it does not say."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = ["--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run([program, *query], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    wanted, total, known = set(pids), 0, False
    for line in done.stdout.splitlines():
        pid, _, mebibytes = (cell.strip() for cell in line.partition(","))
        if pid.isdigit() and int(pid) in wanted and mebibytes.isdigit():
            total, known = total + int(mebibytes) * 2**20, True
    return total if known else None


def gpu_bytes_of_metrics(url: str) -> int | None:
    """The same of all GPUs of a Triton server, by its metrics page; None where it has no such metric."""
    try:
        with urllib.request.urlopen(url, timeout=_METRICS_S) as page:
            values = _GPU_GAUGE.findall(page.read().decode("utf-8", "replace"))
    except (OSError, ValueError, urllib.error.URLError):
        return None
    return round(sum(map(float, values))) if values else None


def is_here(host: str) -> bool:
    """Is it an address of this host?"""
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    for address in addresses:
        try:
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
                probe.bind((address, 0))
        except OSError:
            continue
        return True
    return False


def _sockets() -> list[tuple[str, int, int, str]]:
    """(state, local port, remote port, inode) of TCP sockets; the remote port of one to another host is 0."""
    found = []
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            cells = line.split()
            near, far = (cell.rpartition(":") for cell in cells[1:3])
            local = cells[3] == _LISTEN or far[0] == near[0]
            found.append((cells[3], int(near[2], 16), int(far[2], 16) if local else 0, cells[9]))
    return found


def _inodes() -> dict[int, set[str]]:
    """Sockets that each process holds open."""
    found: dict[int, set[str]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):  # another user's, or gone
            links = [_target(link) for link in (entry / "fd").iterdir()]
            found[int(entry.name)] = {link[8:-1] for link in links if link.startswith("socket:[")}
    return found


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # closed since it was listed
        return ""


def _family(listeners: Iterable[int]) -> set[int]:
    """Listeners, their launchers, all children, and processes of the same run of `trtbuild serve`."""
    parents = _parents()
    found: set[int] = set()
    for pid in listeners:
        top = pid
        while (above := parents.get(top, 0)) and _command(above).split("/")[-1].split(" ")[0] in _LAUNCHERS:
            top = above
        found.add(top)
        if mark := _mark(pid):
            found |= {other for other in parents if _mark(other) == mark}
    while more := {pid for pid, above in parents.items() if above in found} - found:
        found |= more
    return found


def _parents() -> dict[int, int]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
    return found


def _mark(pid: int) -> bytes:
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return b""
    return next((word for word in words if word.startswith(_RUN_MARK)), b"")


def _command(pid: int) -> str:
    """The program, and of an interpreter also the module or script that it runs."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return ""
    program = words[0].split(" ")[0]  # some write a title over the whole line
    if not _INTERPRETER.fullmatch(program.rpartition("/")[2]):
        return program
    for number, word in enumerate(words[1:], 1):
        if word == "-m":
            return " ".join([program, *words[number : number + 2]])
        if not word.startswith("-") or word == "-c":
            return f"{program} {word}".rstrip()
    return program


def _pss(pid: int) -> int | None:
    try:
        found = re.search(r"^Pss:\s+(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
