"""Program: ends what is left of a session whose starter is gone, however it went.

    python -m trtbuild.mpi_guard SESSION

The starter holds the other end of stdin; when that closes, the session has a few seconds to end by itself. The kernel
has sent mpirun SIGTERM then, which mostly ends all: but a thread of Open MPI 5's launcher can wait for a lock that it
holds itself (PMIx_server_deregister_client, seen on a crowded host), and nobody else would kill it.
"""

from __future__ import annotations

import signal
import sys
import time

from trtbuild.mpi import kill_session, session_members

_GRACE_S = 5.0
_POLL_S = 0.1


def main() -> None:
    session = int(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    deadline = time.monotonic() + _GRACE_S
    while session_members(session) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    kill_session(session)


if __name__ == "__main__":
    main()
