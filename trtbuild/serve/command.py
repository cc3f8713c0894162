"""Command lines of tritonserver in every mode, and their environment. PURE.

Order and spelling are those of upstream's launcher (triton-repo 11.2 and 11.3): one mpirun with an application context
for each rank, a ":" after each. Ranks above 0 load nothing but the engines' models; they get the same ports because
they never open them.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping as Dict
from dataclasses import dataclass, field
from pathlib import Path

from trtbuild.handover import BEAT_ENV, LOG_DIR_ENV, RUN_DIR_ENV
from trtbuild.serve.checks import processes, spawning
from trtbuild.serve.facts import Machine, Repository, first_host
from trtbuild.serve.options import Hosts, ServeOptions

SERVER_ENV = "TRTBUILD_SERVER"
"""Marks every process of one server, ranks included, with a value that no other server has."""
SERVER_LOG = "tritonserver.log"
LAUNCHER_LOG = "launcher.log"
_EXPORTED = ("HF_HOME", "CUDA_VISIBLE_DEVICES", "NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "TLLM_LOG_LEVEL")
"""Variables that other hosts of a hostfile get where they are set, besides those that a server is given."""

_NUMBER = "n=${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-${SLURM_PROCID:-0}}}"
_WATCHED = """\
d=$1; shift
while kill -0 $$; do
    i=$((i + 1)); read -r s </proc/$$/stat; echo "$i $s" >"$d/rank$n.state"; sleep 1
done >/dev/null 2>&1 &
exec "$@" >>"$d/rank$n.log" 2>&1"""
"""Shell: $1 the folder of logs, then the program.

Each rank has a log of its own on whatever host it runs, and beside it somebody who writes down every second what the
kernel says of its process (proc(5)): neither TensorRT-LLM nor Triton tells that a rank lives.
"""


@dataclass(frozen=True)
class TritonInstall:
    """A tritonserver on this machine. `backends` is None where the server knows its own."""

    binary: Path
    backends: Path | None = None
    library_dirs: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Launch:
    """What is started. `servers`: number of tritonservers, each of which is a rank under mpirun or srun.

    `plain`: the same without the logs of ranks, as a person would type it. `logs`: names of the log files, first that
    of what is started. `exit_s`: what tritonserver waits for open requests when it is to end.
    """

    argv: tuple[str, ...]
    plain: tuple[str, ...]
    servers: int
    mode: str
    exit_s: int
    environment: Dict[str, str] = field(default_factory=dict)
    logs: tuple[str, ...] = (SERVER_LOG,)

    @property
    def launched(self) -> bool:
        """Whether a launcher starts the tritonservers."""
        return len(self.logs) > 1

    def shown(self) -> str:
        """A line for people: variables, then the command."""
        variables = [f"{key}={shlex.quote(value)}" for key, value in self.environment.items()]
        return " ".join([*variables, *map(shlex.quote, self.plain)])


def make_launch(
    install: TritonInstall,
    repository: Repository,
    options: ServeOptions,
    hosts: Hosts,
    machine: Machine,
    *,
    log_dir: Path,
    shm_prefix: str = "prefix",
    as_root: bool = False,
    mpirun: str = "mpirun",
    exported: tuple[str, ...] = (),
) -> Launch:
    """The command line of a launch that `checks` found nothing wrong with; `exported`: variables for other hosts."""
    engines = repository.chosen(options.load)
    world = processes(engines, options)
    kinds = {engine.kind for engine in engines}
    # A model of upstream's for the LLM class counts nothing that a drain could go by, so Triton itself must wait.
    exit_s = max(options.exit_timeout_s, math.ceil(options.drain_s)) if "llmapi" in kinds else options.exit_timeout_s
    names = tuple(engine.name for engine in engines)
    job = _Job(install, repository.folder.resolve(), options, names, shm_prefix, exit_s)
    if kinds != {"tensorrt"}:
        wrapper = ["srun", "--mpi=pmix", "trtllm-llmapi-launch"] if hosts.slurm else []
        own = (*wrapper, *job.rank(0), *([job.stub_timeout()] if "cpu" in kinds else []))
        return Launch(own, own, 1, "cpu" if "cpu" in kinds else "llmapi", exit_s)
    pools = _pools(machine.gpus or 0) if spawning(options) else []
    environment = _orchestrator_environment(options)
    if hosts.slurm:
        argv, plain = _srun(job, world, log_dir)
    else:
        # A hostfile holds for all contexts, and Open MPI 5 takes a second one for another file; -x holds for one.
        where = ["--oversubscribe"] if hosts.hostfile is None else ["--hostfile", str(hosts.hostfile)]
        each = [word for name in exported for word in ("-x", name)] if hosts.hostfile is not None else []
        head = [mpirun, *(["--allow-run-as-root"] if as_root else []), *where]
        argv, plain = [*head], [*head]
        for rank in range(world):
            program = job.rank(rank, pools)
            argv += [*each, "-n", "1", "/bin/sh", "-c", f"{_NUMBER}\n{_WATCHED}", "rank", str(log_dir), *program, ":"]
            plain += [*each, "-n", "1", *program, ":"]
    logs = (LAUNCHER_LOG, *(f"rank{rank}.log" for rank in range(world)))
    return Launch(tuple(argv), tuple(plain), world, options.mode, exit_s, environment, logs)


@dataclass(frozen=True)
class _Job:
    """What the ranks of one launch share."""

    install: TritonInstall
    repository: Path
    options: ServeOptions
    engines: tuple[str, ...]
    shm_prefix: str
    exit_s: int

    def rank(self, rank: int, pools: list[str] | None = None) -> list[str]:
        """tritonserver as one rank."""
        own = self.leader() if rank == 0 else self.worker()
        return [*self.common(), *own, *(pools or []), *self.last(str(rank))]

    def common(self) -> list[str]:
        o = self.options
        backends = [f"--backend-directory={self.install.backends}"] if self.install.backends else []
        return [
            str(self.install.binary),
            f"--model-repository={self.repository}",
            *backends,
            f"--exit-timeout-secs={self.exit_s}",
            f"--grpc-port={o.grpc_port}",
            f"--http-port={o.http_port}",
            f"--metrics-port={o.metrics_port}",
        ]

    def leader(self) -> list[str]:
        """Rank 0, which clients talk to."""
        control = ["--model-control-mode=explicit"] if self.options.model_control == "explicit" else []
        loads = [f"--load-model={name}" for name in self.options.load or ("*",)] if control else []
        return [*(f"--{kind}-address={self.options.host}" for kind in ("http", "grpc", "metrics")), *control, *loads]

    def worker(self) -> list[str]:
        return ["--model-control-mode=explicit", *(f"--load-model={name}" for name in self.engines)]

    def last(self, rank: str) -> list[str]:
        prefix = f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}{rank}_"
        return ["--disable-auto-complete-config", prefix]

    def stub_timeout(self) -> str:
        return f"--backend-config=python,stub-timeout-seconds={max(30, int(self.options.ready_timeout_s))}"


def _srun(job: _Job, world: int, log_dir: Path) -> tuple[list[str], list[str]]:
    """One srun, whose tasks find out which rank they are."""
    head = ["srun", "--mpi=pmix", "--overlap", "--kill-on-bad-exit=1", f"--ntasks={world}", "/bin/sh", "-c"]
    choice = f"""\
if [ "$n" = 0 ]; then set -- "$@" {shlex.join(job.leader())}; else set -- "$@" {shlex.join(job.worker())}; fi
set -- "$@" --disable-auto-complete-config "{job.last("${n}")[-1]}\""""
    plain = f'n=$SLURM_PROCID\n{choice}\nexec "$@"'
    logged = f"{_NUMBER}\n{choice}\n{_WATCHED}"
    return [*head, logged, "rank", str(log_dir), *job.common()], [*head, plain, "rank", *job.common()]


def _pools(gpus: int) -> list[str]:
    """What an orchestrator that spawns gives back, as the GPUs are its ranks'."""
    none = [f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in range(gpus)]
    return ["--pinned-memory-pool-byte-size=0", "--enable-peer-access=false", *none]


def _orchestrator_environment(options: ServeOptions) -> dict[str, str]:
    if options.mode != "orchestrator":
        return {}
    return {"TRTLLM_ORCHESTRATOR": "1", "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES": str(int(options.spawn))}


def exported_names(base: Dict[str, str], options: ServeOptions) -> tuple[str, ...]:
    """What mpirun must take to the hosts of a hostfile, as it takes nothing by itself."""
    given = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "PYTHONUNBUFFERED", RUN_DIR_ENV, LOG_DIR_ENV, SERVER_ENV)
    return (*given, *_orchestrator_environment(options), *(name for name in _EXPORTED if name in base))


def connect_host(options: ServeOptions, hosts: Hosts, machine: Machine) -> str:
    """Where rank 0 can be asked from here: the address it listens on, or its host where that is any address."""
    if options.host not in ("0.0.0.0", "::"):
        return options.host
    first = first_host(machine.slurm_hosts) if hosts.slurm else next(iter(machine.slots), "")
    return "127.0.0.1" if not first or first in machine.names else first


def server_environment(
    base: Dict[str, str],
    install: TritonInstall,
    launch: Launch,
    *,
    mark: str,
    run_dir: Path,
    log_dir: Path,
    python_bin: Path,
    import_dirs: tuple[Path, ...],
) -> dict[str, str]:
    """The Python stub finds its interpreter's packages by PATH and trtbuild by PYTHONPATH.

    A rank is not bound to a core, as mpirun would do with two of them (the two names are Open MPI 5's and 4's).
    """
    return {
        "PRTE_MCA_hwloc_default_binding_policy": "none",
        "OMPI_MCA_hwloc_base_binding_policy": "none",
        **base,
        "PATH": _joined((python_bin,), base.get("PATH", "")),
        "PYTHONPATH": _joined(import_dirs, base.get("PYTHONPATH", "")),
        "LD_LIBRARY_PATH": _joined(install.library_dirs, base.get("LD_LIBRARY_PATH", "")),
        RUN_DIR_ENV: str(run_dir),
        LOG_DIR_ENV: str(log_dir),
        BEAT_ENV: mark,
        SERVER_ENV: mark,
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **launch.environment,
    }


def _joined(first: tuple[Path, ...], rest: str) -> str:
    return ":".join([*map(str, first), *([rest] if rest else [])])
