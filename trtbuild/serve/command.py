"""Command lines and environments of tritonserver. Pure: what is found on this machine comes in as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trtbuild.handover import RUN_DIR_ENV

SERVER_ENV = "TRTBUILD_SERVER"
"""Marks every process of one server, ranks included, with a value that no other server has."""


@dataclass(frozen=True)
class ServeOptions:
    """What the user chooses of a server."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    timeout_s: float = 120.0
    exit_timeout_s: int = 10

    @property
    def ports(self) -> dict[str, int]:
        return {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}


@dataclass(frozen=True)
class TritonInstall:
    """A tritonserver on this machine. `backends` is None where the server knows its own."""

    binary: Path
    backends: Path | None = None
    library_dirs: tuple[Path, ...] = ()


def server_argv(install: TritonInstall, repository: Path, options: ServeOptions, shm_prefix: str) -> list[str]:
    """tritonserver for the cpu target: one process, its ranks are children of the `tensorrt_llm` model."""
    backends = [f"--backend-directory={install.backends}"] if install.backends else []
    return [
        str(install.binary),
        f"--model-repository={repository}",
        *backends,
        f"--http-address={options.host}",
        f"--http-port={options.http_port}",
        f"--grpc-address={options.host}",
        f"--grpc-port={options.grpc_port}",
        f"--metrics-address={options.host}",
        f"--metrics-port={options.metrics_port}",
        f"--exit-timeout-secs={options.exit_timeout_s}",
        "--disable-auto-complete-config",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--backend-config=python,stub-timeout-seconds={max(30, int(options.timeout_s))}",
    ]


def mpirun_argv(
    triton: str, repository: Path, world_size: int, options: ServeOptions, *, as_root: bool, model: str = "tensorrt_llm"
) -> list[str]:
    """TensorRT target, leader mode: one tritonserver a rank under one mpirun, as upstream's launcher writes it.

    Ranks above 0 load only the engine's model; they share the ports because they never open them. The trailing ":"
    is upstream's.
    """
    argv = ["mpirun", *(["--allow-run-as-root"] if as_root else [])]
    ports = [
        f"--grpc-port={options.grpc_port}",
        f"--http-port={options.http_port}",
        f"--metrics-port={options.metrics_port}",
    ]
    for rank in range(world_size):
        worker = ["--model-control-mode=explicit", f"--load-model={model}"] if rank else []
        hosts = [] if rank else [f"--{kind}-address={options.host}" for kind in ("http", "grpc", "metrics")]
        argv += [
            "-n",
            "1",
            triton,
            f"--model-repository={repository}",
            f"--exit-timeout-secs={options.exit_timeout_s}",
            *hosts,
            *worker,
            *ports,
            "--disable-auto-complete-config",
            f"--backend-config=python,shm-region-prefix-name=prefix{rank}_",
            ":",
        ]
    return argv


def server_environment(
    base: Mapping[str, str],
    install: TritonInstall,
    mark: str,
    log_dir: Path,
    python_bin: Path,
    import_dirs: tuple[Path, ...],
) -> dict[str, str]:
    """The Python stub finds its interpreter's packages by PATH and trtbuild by PYTHONPATH."""
    return {
        **base,
        "PATH": _joined((python_bin,), base.get("PATH", "")),
        "PYTHONPATH": _joined(import_dirs, base.get("PYTHONPATH", "")),
        "LD_LIBRARY_PATH": _joined(install.library_dirs, base.get("LD_LIBRARY_PATH", "")),
        RUN_DIR_ENV: str(log_dir),
        SERVER_ENV: mark,
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _joined(first: tuple[Path, ...], rest: str) -> str:
    return ":".join([*map(str, first), *([rest] if rest else [])])


def telling_lines(log: str, most: int = 12) -> list[str]:
    """The last lines of a server log that say something: no tables, no INFO lines while there are others."""
    lines = [line.rstrip()[:400] for line in log.splitlines()]
    plain = [line for line in lines if line.strip() and line.lstrip()[0] not in "|+"]
    telling = [line for line in plain if not _is_info(line) and not _is_noise(line)]
    return (telling or plain)[-most:]


def _is_info(line: str) -> bool:
    return len(line) > 5 and line[0] == "I" and line[1:5].isdigit()


def _is_noise(line: str) -> bool:
    """What every start on a machine without a GPU says."""
    return any(text in line for text in ("NVML", "DCGM", "CUDA driver", "CudaDriverHelper", "pinned"))
