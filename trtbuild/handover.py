"""What `trtbuild serve` and the processes of its server agree on: failures, signs of life, and the end."""

from __future__ import annotations

import os
from pathlib import Path

RUN_DIR_ENV = "TRTBUILD_RUN_DIR"
"""Names the directory of FAILURE_FILE and DRAIN_FILE to the models."""

LOG_DIR_ENV = "TRTBUILD_LOG_DIR"
"""Names the directory of logs to the models; those of an engine's ranks lie in a folder of its label."""

FAILURE_FILE = "failure.json"
"""{"message", "hint"} of the error that ended the engine; its appearance ends the server."""

DRAIN_FILE = "draining"
"""While it is there, no model takes a new request."""

SCRATCH = "tmp"
"""Folder beside them for temporary files of models."""

DRAINING = "the server is draining and takes no new requests"

BEAT_ENV = "TRTBUILD_BEATS"
"""Name of an abstract Unix datagram socket, which every rank sends a sign of life to: "RANK PID WORK OPEN ENGINE".

WORK grows while the rank computes; OPEN is the number of requests that rank 0 has to do; ENGINE is an `engine_label`.
"""

BEAT_EVERY_S = 0.5


def engine_label(model: str, version: str) -> str:
    """What one of several engines of a server is called, in messages and as the folder of its logs."""
    return f"{model}.{version}" if version else model


def run_directory() -> Path | None:
    """The run directory, inside of a server of `trtbuild serve`."""
    return Path(os.environ[RUN_DIR_ENV]) if os.environ.get(RUN_DIR_ENV) else None


def scratch_directory() -> Path | None:
    """Where the models of such a server keep what has to go with it, however it ends."""
    folder = run_directory()
    if folder is None:
        return None
    folder = folder / SCRATCH
    folder.mkdir(exist_ok=True)
    return folder


class Gate:
    """Whether a model takes requests: closed while the server drains."""

    def __init__(self) -> None:
        directory = run_directory()
        self._path = str(directory / DRAIN_FILE) if directory else ""

    @property
    def closed(self) -> bool:
        return bool(self._path) and os.path.exists(self._path)
