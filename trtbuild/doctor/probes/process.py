"""Running a small program with a time limit."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Said:
    """`code` None: it did not start, or was ended by the limit; `text` is stdout and then stderr."""

    code: int | None
    out: str
    err: str

    @property
    def text(self) -> str:
        return "\n".join(part.strip() for part in (self.out, self.err) if part.strip())


def run(argv: Sequence[str], limit_s: float, *, env: Mapping[str, str] | None = None) -> Said:
    """Run `argv` in a session of its own; all of it is killed at the limit, ranks of mpirun too."""
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=env,
            start_new_session=True,
        )
    except OSError as error:
        return Said(None, "", f"{argv[0]}: {error.strerror}")
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return Said(None, "", f"no answer within {limit_s:g} s: {' '.join(argv[:3])}")
    finally:  # at the limit, and at Ctrl-C: nothing may be left
        if process.poll() is None:
            _kill_session(process.pid)
            process.communicate()
    return Said(process.returncode, out, err)


def _kill_session(session: int) -> None:
    from trtbuild.mpi import session_members

    for pid in {session, *session_members(session)}:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
