"""Is the server ready, dead, or neither yet."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

from trtbuild.errors import ServerError, ToolError
from trtbuild.handover import FAILURE_FILE


def check_ports_free(host: str, ports: dict[str, int]) -> None:
    """Refuse ports that something else listens on, before anything is started.

    Raises:
        ServerError: naming every taken port.
    """
    taken = []
    for kind, port in ports.items():
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                probe.listen(1)
            except OSError as error:
                taken.append(f"{kind} port {port} on {host}: {error.strerror}")
    if len(set(ports.values())) < len(ports):
        taken.append(f"the ports must differ: {ports}")
    if taken:
        raise ServerError(
            "cannot listen: " + "; ".join(taken), hint="Choose others with --http-port, --grpc-port, --metrics-port."
        )


def is_ready(host: str, port: int, *, timeout_s: float = 1.0) -> bool:
    """True when the server and all of its models answer that they are ready."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def read_failure(run_dir: Path) -> str | None:
    """Why the engine behind the server died, when its model has said so."""
    try:
        document = json.loads((run_dir / FAILURE_FILE).read_text())
    except (OSError, ValueError):
        return None
    return str(document.get("message", "the engine failed"))


def wait_ready(ready: Callable[[], bool], died: Callable[[], ToolError | None], timeout_s: float) -> None:
    """Return when ready.

    Raises:
        ToolError: dead, or not ready in time.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        failure = died()
        if failure is not None:
            raise failure
        if time.monotonic() > deadline:
            raise ToolError(f"tritonserver was not ready within {timeout_s:g} s", hint="Give it more with --timeout.")
        time.sleep(0.05)
