"""From a repository and options to what is started: every problem at once, then values."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from trtbuild.errors import PlanError, ToolError
from trtbuild.handover import SCRATCH
from trtbuild.mpi import find_mpirun
from trtbuild.serve.checks import conflicts, lacks, spawning
from trtbuild.serve.command import (
    Launch,
    TritonInstall,
    connect_host,
    exported_names,
    make_launch,
    server_environment,
)
from trtbuild.serve.facts import Machine, Repository
from trtbuild.serve.health import check_ports_free
from trtbuild.serve.install import find_triton
from trtbuild.serve.logs import open_logs
from trtbuild.serve.look import look_at_machine, read_repository
from trtbuild.serve.options import Hosts, ServeOptions

_IN_CONTAINER = Path("/opt/tritonserver/bin/tritonserver")
_HINT = "`trtbuild serve --help`; trtbuild/serve/README.md explains the modes."


@dataclass(frozen=True)
class Prepared:
    """A launch that nothing speaks against. `run_dir`: what the server's processes and this one tell each other."""

    launch: Launch
    options: ServeOptions
    connect: str
    """The host of rank 0, seen from here."""
    log_dir: Path
    run_dir: Path
    scratch: Path
    environment: dict[str, str]

    @property
    def mark(self) -> str:
        """A word that no other server has."""
        return self.scratch.name

    @property
    def rubbish(self) -> Path:
        """What nobody needs after the end, where the logs are kept."""
        return self.scratch if self.log_dir != self.scratch else self.scratch / SCRATCH

    def forget(self, *, keep_logs: bool) -> None:
        """Remove what nobody needs after the end; logs in a folder that the user named are kept anyway."""
        shutil.rmtree(self.rubbish if keep_logs else self.scratch, ignore_errors=True)


def prepare(
    repository: Path, options: ServeOptions, hosts: Hosts | None = None, *, log_dir: Path | None = None
) -> Prepared:
    """Check everything, then make the directories of a server.

    Raises:
        PlanError: what contradicts itself or is missing, all of it. ServerError: ports are taken. OutputError: no logs.
    """
    hosts = hosts or Hosts()
    facts, machine = _look(repository, options, hosts)
    problems = [*conflicts(facts, options, hosts), *lacks(facts, options, hosts, machine)]
    if hosts.several and log_dir is None:
        problems.append("several hosts need a folder for logs that all of them share (--log-dir)")
    if problems:
        raise PlanError(problems, hint=_HINT)
    connect = connect_host(options, hosts, machine)
    if not hosts.several:
        check_ports_free(options.host, options.ports)
    scratch = Path(tempfile.mkdtemp(prefix="trtbuild-serve-"))
    logs, mark = (log_dir or scratch).resolve(), scratch.name
    with ExitStack() as unfinished:
        unfinished.callback(shutil.rmtree, scratch, ignore_errors=True)
        open_logs(logs)
        install = find_triton(scratch)
        launch = _launch(install, facts, options, hosts, machine, logs, f"{mark}_")
        run_dir = logs if hosts.several else scratch
        environment = server_environment(
            os.environ,
            install,
            launch,
            mark=mark,
            run_dir=run_dir,
            log_dir=logs,
            python_bin=Path(sys.prefix) / "bin",
            import_dirs=(Path(__file__).resolve().parents[2],),
        )
        unfinished.pop_all()
    return Prepared(launch, options, connect, logs, run_dir, scratch, environment)


def dry_run(repository: Path, options: ServeOptions, hosts: Hosts, log_dir: Path | None) -> tuple[Launch, list[str]]:
    """What would be started, and what this machine lacks for it.

    Raises:
        PlanError: what contradicts itself, all of it.
    """
    facts, machine = _look(repository, options, hosts)
    if problems := conflicts(facts, options, hosts):
        raise PlanError(problems, hint=_HINT)
    missing = lacks(facts, options, hosts, machine)
    with tempfile.TemporaryDirectory(prefix="trtbuild-serve-") as scratch:
        try:
            install = find_triton(Path(scratch))
        except ToolError as error:
            missing.append(error.message)
            install = TritonInstall(_IN_CONTAINER)
    return _launch(install, facts, options, hosts, machine, log_dir or Path("LOGS"), "prefix"), missing


def _look(repository: Path, options: ServeOptions, hosts: Hosts) -> tuple[Repository, Machine]:
    facts = read_repository(repository)
    workers = [engine.worker for engine in facts.chosen(options.load)] if spawning(options) else []
    return facts, look_at_machine(hosts, workers)


def _launch(
    install: TritonInstall,
    facts: Repository,
    options: ServeOptions,
    hosts: Hosts,
    machine: Machine,
    log_dir: Path,
    shm_prefix: str,
) -> Launch:
    return make_launch(
        install,
        facts,
        options,
        hosts,
        machine,
        log_dir=log_dir,
        shm_prefix=shm_prefix,
        as_root=os.geteuid() == 0,
        mpirun=find_mpirun() if "mpirun" in machine.programs else "mpirun",
        exported=exported_names(os.environ, options),
    )
