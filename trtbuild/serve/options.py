"""What the user chooses of a server. PURE."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_RESTART = re.compile(r"never|on-failure(?::([1-9]\d*))?")
_RESTARTS = 5


@dataclass(frozen=True)
class ServeOptions:
    """What the user chooses of a server.

    `mode`, `spawn`: how TensorRT-LLM's ranks are started (README.md). `load`: models of explicit model control; none
    loads all. `watch_s`: a rank or server without a sign of life for so long hangs; `stall_s`: so does an engine with
    open requests and no step, 0 never. `drain_s`: what open requests get at the end, `exit_timeout_s` what
    tritonserver itself gets then. `restart`: never, on-failure or on-failure:N.
    """

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    mode: Literal["leader", "orchestrator"] = "leader"
    spawn: bool = True
    model_control: Literal["none", "explicit"] = "none"
    load: tuple[str, ...] = ()
    ready_timeout_s: float = 600.0
    watch_s: float = 5.0
    stall_s: float = 120.0
    drain_s: float = 30.0
    exit_timeout_s: int = 5
    restart: str = "never"

    @property
    def ports(self) -> dict[str, int]:
        return {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}

    @property
    def restarts(self) -> int:
        """How often a server that failed is started again.

        Raises:
            ValueError: `restart` is no policy.
        """
        found = _RESTART.fullmatch(self.restart)
        if found is None:
            raise ValueError(f"restart is never, on-failure or on-failure:N, not {self.restart!r}")
        return 0 if self.restart == "never" else int(found[1] or _RESTARTS)


@dataclass(frozen=True)
class Hosts:
    """Where the ranks run: on this host, on those of a hostfile, or in a Slurm allocation."""

    hostfile: Path | None = None
    slurm: bool = False

    @property
    def several(self) -> bool:
        return self.hostfile is not None or self.slurm
