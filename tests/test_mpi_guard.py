"""A launcher that does not end when it should is ended, though the one who started it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_engine_errors import wait_for
from trtbuild import mpi

STUCK = ("/bin/sh", "-c", "trap '' TERM; sleep 600 & while :; do wait; sleep 600; done")
STARTER = """
import sys
from pathlib import Path
from trtbuild import mpi
session = mpi.start_session(sys.argv[2:], dict(**__import__("os").environ), log=Path(sys.argv[1]), launcher=True)
print(session.pid, session.guard.pid, flush=True)
sys.stdin.read()
"""


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_stuck_launcher_ends_with_its_starter(tmp_path: Path, end: signal.Signals) -> None:
    words = [sys.executable, "-c", STARTER, str(tmp_path / "log"), *STUCK]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        session, guard = map(int, starter.stdout.readline().split())
        wait_for(lambda: len(mpi.session_members(session)) == 2)
        starter.send_signal(end)
        starter.wait()
    wait_for(lambda: not mpi.session_members(session))
    wait_for(lambda: not alive(guard))


def test_the_guard_of_a_job_that_ended_is_gone(tmp_path: Path) -> None:
    session = mpi.start_session(["true"], dict(os.environ), log=tmp_path / "log", launcher=True)
    guard = session.guard
    assert guard is not None
    session.wait()
    mpi.stop_ranks(session)
    assert guard.returncode == 0
    assert mpi.start_session(["true"], dict(os.environ), log=tmp_path / "log", launcher=False).guard is None
