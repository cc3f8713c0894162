"""The processes of one server, found by a mark in their environment, however they were started."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path


def marked_processes(name: str, value: str) -> list[int]:
    """Processes with `name=value` in their environment, but for this one."""
    wanted = f"{name}={value}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0") and not _is_zombie(entry):
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


def end_marked(name: str, value: str, *, grace_s: float) -> list[int]:
    """SIGTERM, then after `grace_s` SIGKILL to all that are left; returns those that had to be killed."""
    _signal_all(marked_processes(name, value), signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while (left := marked_processes(name, value)) and time.monotonic() < deadline:
        time.sleep(0.02)
    killed = left
    for _attempt in range(200):  # a process may start another one while it is being killed
        if not left:
            break
        _signal_all(left, signal.SIGKILL)
        time.sleep(0.02)
        left = marked_processes(name, value)
    return killed


def remove_shared_memory(prefix: str) -> None:
    """Regions that a killed server leaves in /dev/shm."""
    for region in Path("/dev/shm").glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def _signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _is_zombie(entry: Path) -> bool:
    return entry.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "Z"


def guard() -> None:
    """Program: waits until its parent closes the pipe on stdin, even by SIGKILL, and then ends what is left.

    Run as `python -m trtbuild.serve.processes NAME VALUE SHM_PREFIX FOLDER`. The folder is removed unless the parent
    wrote a word into the pipe: it then goes on, and needs it.
    """
    name, value, prefix, folder = sys.argv[1:5]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent_lives = bool(sys.stdin.buffer.read())
    end_marked(name, value, grace_s=0.0)
    remove_shared_memory(prefix)
    if not parent_lives:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    guard()
