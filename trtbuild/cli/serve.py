"""`trtbuild serve`: a repository behind the real tritonserver, until SIGTERM or Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trtbuild.cli.output import note

if TYPE_CHECKING:
    from trtbuild.serve.options import Hosts, ServeOptions
    from trtbuild.serve.supervise import Event

NAME = "serve"
PANEL = "Serve"
_RANKS, _WATCH = "Ranks (target tensorrt)", "Watching"


Port = Annotated[int, typer.Option(min=1, max=65535, help="Port of this API.")]
Host = Annotated[str, typer.Option(help="Address to listen on; Triton asks nobody for a password.")]
Control = Annotated[Literal["none", "explicit"], typer.Option(help="explicit: clients may load and unload models.")]
Load = Annotated[
    list[str] | None, typer.Option(help="Load only MODEL (explicit control; repeatable).", show_default=False)
]
Mode = Annotated[Literal["leader", "orchestrator"], typer.Option(help="How they start.", rich_help_panel=_RANKS)]
Spawn = Annotated[bool, typer.Option(help="The orchestrator starts its ranks.", rich_help_panel=_RANKS)]
Hostfile = Annotated[
    Path | None, typer.Option(help="Hosts and slots for mpirun.", rich_help_panel=_RANKS, show_default=False)
]
Slurm = Annotated[bool, typer.Option("--slurm", help="srun in this allocation.", rich_help_panel=_RANKS)]
ReadyTimeout = Annotated[
    float, typer.Option(min=1, help="Seconds until one real token must be there.", rich_help_panel=_WATCH)
]
Watch = Annotated[float, typer.Option(min=1, help="Seconds without a sign of life: it hangs.", rich_help_panel=_WATCH)]
Stall = Annotated[
    float, typer.Option(min=0, help="Seconds without a step while requests are open; 0: any.", rich_help_panel=_WATCH)
]
Drain = Annotated[
    float, typer.Option(min=0, help="Seconds that open requests get after SIGTERM.", rich_help_panel=_WATCH)
]
ExitTimeout = Annotated[int, typer.Option(min=0, help="Seconds that tritonserver then gets.", rich_help_panel=_WATCH)]
Restart = Annotated[
    str, typer.Option(help="never, on-failure or on-failure:N.", metavar="POLICY", rich_help_panel=_WATCH)
]
LogDir = Annotated[
    Path | None, typer.Option(help="Keep the logs of the server and of every rank here.", show_default=False)
]


def command(
    repository: Annotated[Path, typer.Argument(help="Repository of `trtbuild repo`, or of anyone.")],
    http_port: Port = 8000,
    grpc_port: Port = 8001,
    metrics_port: Port = 8002,
    host: Host = "127.0.0.1",
    model_control: Control = "none",
    load: Load = None,
    mode: Mode = "leader",
    spawn: Spawn = True,
    hostfile: Hostfile = None,
    slurm: Slurm = False,
    ready_timeout: ReadyTimeout = 600,
    watch_s: Watch = 5,
    stall_s: Stall = 120,
    drain_s: Drain = 30,
    exit_timeout: ExitTimeout = 5,
    restart: Restart = "never",
    log_dir: LogDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the command line and end.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON line for everything that happens.")] = False,
) -> None:
    """Serve a REPOSITORY with tritonserver; ends with an error when the server or a rank dies or hangs.

    SIGTERM lets open requests end and returns 0; a second one, or Ctrl-C, ends at once.
    """
    from trtbuild.serve.options import Hosts, ServeOptions

    ports = (http_port, grpc_port, metrics_port)
    times = (ready_timeout, watch_s, stall_s, drain_s)
    models = tuple(load or ())
    options = ServeOptions(host, *ports, mode, spawn, model_control, models, *times, exit_timeout, restart)
    hosts = Hosts(hostfile, slurm)
    if dry_run:
        _show(repository, options, hosts, log_dir, json_output)
        return
    from trtbuild.serve.prepare import prepare
    from trtbuild.serve.supervise import run_server

    run_server(prepare(repository, options, hosts, log_dir=log_dir), _tell_json if json_output else _tell)


def _tell(event: Event) -> None:
    """That it is ready is data; the rest is for people."""
    if event.name == "ready":
        typer.echo(event.text)
    else:
        note(event.text)


def _tell_json(event: Event) -> None:
    import json
    import sys

    sys.stdout.write(json.dumps({"event": event.name, **event.values}) + "\n")
    sys.stdout.flush()


def _show(repository: Path, options: ServeOptions, hosts: Hosts, log_dir: Path | None, json_output: bool) -> None:
    from trtbuild.cli.output import print_json
    from trtbuild.serve.prepare import dry_run

    launch, missing = dry_run(repository, options, hosts, log_dir)
    if json_output:
        print_json(
            {
                "mode": launch.mode,
                "servers": launch.servers,
                "environment": dict(launch.environment),
                "command": list(launch.plain),
                "argv": list(launch.argv),
                "logs": list(launch.logs),
                "missing": missing,
            }
        )
        return
    typer.echo(launch.shown())
    for sentence in missing:
        note(f"missing here: {sentence}")
