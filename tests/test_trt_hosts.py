"""Builds on two hosts: real mpirun with a daemon for each, started by a stand-in for ssh that passes no environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.test_engine_errors import wait_for
from tests.test_trt_build import processes_of
from tests.trt import FAKES, build, rank_files
from trtbuild.engine.options import LaunchOptions
from trtbuild.engine.tensorrt.command import RANK_MODULE
from trtbuild.errors import ToolError
from trtbuild.mpi import find_mpirun, mpirun_command

Patch = pytest.MonkeyPatch


@pytest.fixture
def hosts(tmp_path: Path, stand_in: Patch) -> Path:
    """A hostfile of two hosts with a GPU each."""
    named = subprocess.run(["unshare", "--map-root-user", "--uts", "hostname", "first"], capture_output=True)
    if named.returncode:
        pytest.skip("no host can have a name of its own here")
    stand_in.setenv("PRTE_MCA_plm_ssh_agent", str(FAKES / "hosts" / "agent"))
    path = tmp_path / "hosts"
    path.write_text("first slots=1\nsecond slots=1\n")
    return path


@pytest.mark.parametrize("mode", ["in-process", "command"])
def test_two_hosts(mode: Any, trt_checkpoint: Path, tmp_path: Path, hosts: Path) -> None:
    """A rank a host, each on GPU 0 of its own; variables get there because they are exported, not because of ssh."""
    logs = tmp_path / "logs"
    out = build(trt_checkpoint, tmp_path / "out", LaunchOptions(mode=mode, hostfile=hosts, log_dir=logs))
    assert rank_files(out) == ["rank0.engine", "rank1.engine"]
    for rank in range(2):
        said = (logs / f"rank{rank}.log").read_text()
        if mode == "in-process":
            assert f"rank {rank} of 2: started" in said
            assert "GPU 0)" in said
    wait_for(lambda: not processes_of(tmp_path))


def test_a_rank_that_fails_before_its_work_ends_all(tmp_path: Path) -> None:
    """Rank 1 is told of a third process and gives up, while rank 0 waits for it in a collective call."""
    for number, ranks in enumerate(([[0], [1]], [[0], [1], [2]])):
        job = {"ranks": ranks, "engine": str(tmp_path), "logs": str(tmp_path), "world_size": len(ranks)}
        (tmp_path / f"job{number}.json").write_text(json.dumps(job))
    program = f'exec {sys.executable} -m {RANK_MODULE} "$0/job$OMPI_COMM_WORLD_RANK.json"'
    argv = mpirun_command(find_mpirun(), 2, ["sh", "-c", program, str(tmp_path)], as_root=os.geteuid() == 0)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode
    assert "MPI started 2 process(es) in a world, not 3" in done.stderr


def test_one_host_of_two_gpus_uses_both(trt_checkpoint: Path, tmp_path: Path, hosts: Path) -> None:
    """What the test above is compared with: local ranks are counted on each host."""
    hosts.write_text("first slots=2\n")
    logs = tmp_path / "logs"
    build(trt_checkpoint, tmp_path / "out", LaunchOptions(hostfile=hosts, log_dir=logs))
    assert ["GPU 0)" in (logs / f"rank{rank}.log").read_text() for rank in range(2)] == [True, False]


def test_a_rank_that_fails_on_another_host_ends_all(
    trt_checkpoint: Path, tmp_path: Path, hosts: Path, stand_in: Patch
) -> None:
    stand_in.setenv("TRTBUILD_FAKE_SECONDS", "60")
    stand_in.setenv("TRTBUILD_FAKE_FAULT", "traceback-early:1")
    start = time.monotonic()
    with pytest.raises(ToolError, match=r"rank 1: .*rank1\.safetensors"):
        build(trt_checkpoint, tmp_path / "out", LaunchOptions(hostfile=hosts))
    assert time.monotonic() - start < 30
    wait_for(lambda: not processes_of(tmp_path))


def test_a_host_that_cannot_be_reached(trt_checkpoint: Path, tmp_path: Path, hosts: Path) -> None:
    hosts.write_text("first slots=1\ndown slots=1\n")
    with pytest.raises(
        ToolError, match="mpirun could not start its daemon on another host, or lost it: down"
    ) as caught:
        build(trt_checkpoint, tmp_path / "out", LaunchOptions(hostfile=hosts))
    assert "ssh HOST true" in caught.value.hint
    assert not (tmp_path / "out").exists()
    wait_for(lambda: not processes_of(tmp_path))


def test_a_host_that_dies(trt_checkpoint: Path, tmp_path: Path, hosts: Path, stand_in: Patch) -> None:
    """All its processes are gone at once, and mpirun 5.0.11 ends with exit code 0: the host is named all the same."""
    name = f"second{os.getpid()}"  # nobody else's processes are killed
    hosts.write_text(f"first slots=1\n{name} slots=1\n")
    stand_in.setenv("TRTBUILD_FAKE_SECONDS", "60")
    logs = tmp_path / "logs"

    def power_cut() -> None:
        log = logs / "rank1.log"
        wait_for(lambda: log.exists() and "GraphReduction" in log.read_text())
        for pid in processes_on(name):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=power_cut)
    killer.start()
    with pytest.raises(ToolError) as caught:
        build(trt_checkpoint, tmp_path / "out", LaunchOptions(hostfile=hosts, log_dir=logs))
    killer.join()
    assert caught.value.message.startswith(
        "engine build: mpirun could not start its daemon on another host, or lost it: "
    )
    assert name in caught.value.message.splitlines()[0]
    wait_for(lambda: not processes_of(tmp_path))


def processes_on(host: str) -> list[int]:
    """Processes that were started through the stand-in for ssh on a host."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and f"FAKE_HOST={host}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found
