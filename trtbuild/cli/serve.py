"""`trtbuild serve`: a repository behind the real tritonserver, until Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtbuild.cli.output import note

NAME = "serve"
PANEL = "Serve"


def command(
    repository: Annotated[Path, typer.Argument(help="Repository of `trtbuild repo`.")],
    http_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the HTTP API.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the gRPC API.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the Prometheus metrics.")] = 8002,
    host: Annotated[str, typer.Option(help="Address to listen on; Triton asks nobody for a password.")] = "127.0.0.1",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds until the server must be ready.")] = 120,
    exit_timeout: Annotated[int, typer.Option(min=0, help="Seconds that open requests get at the end.")] = 10,
    log_dir: Annotated[
        Path | None, typer.Option(help="Keep the logs of the server and of every rank here.", show_default=False)
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Say that it is ready as one JSON line.")] = False,
) -> None:
    """Serve a REPOSITORY with tritonserver until Ctrl-C; ends with an error when the server or a rank dies."""
    from trtbuild.serve.command import ServeOptions
    from trtbuild.serve.launch import Server

    options = ServeOptions(host, http_port, grpc_port, metrics_port, timeout, exit_timeout)
    with Server(repository, options, log_dir=log_dir) as server:
        note(f"starting tritonserver; logs in {server.log_dir}")
        server.wait_ready()
        _announce(options, json_output)
        server.supervise()


def _announce(options: object, json_output: bool) -> None:
    import json
    import sys

    from trtbuild.serve.command import ServeOptions

    assert isinstance(options, ServeOptions)
    addresses = {kind: f"{options.host}:{port}" for kind, port in options.ports.items()}
    if json_output:
        sys.stdout.write(json.dumps({"ready": True, **addresses}) + "\n")
    else:
        sys.stdout.write(f"ready: grpc {addresses['grpc']}, http {addresses['http']}, metrics {addresses['metrics']}\n")
    sys.stdout.flush()
