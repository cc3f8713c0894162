"""What probes find: plain values, no judgement. Bytes are bytes, None means unknown (or, of limits, unlimited)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Gpu:
    """A row of nvidia-smi. `sm` is the compute capability without its dot (80, 90, 120)."""

    index: int
    name: str
    sm: int | None = None
    memory_bytes: int | None = None
    used_bytes: int | None = None
    compute_mode: str = ""
    mig: str = ""


@dataclass(frozen=True)
class Driver:
    """`version` of the kernel driver; `cuda` is the newest CUDA that the loaded libcuda serves ("13.1").

    `cuda_init` is the code of cuInit in a process of its own (0: works), None where there is no libcuda.
    """

    nvidia_smi: str = ""
    version: str = ""
    cuda: str = ""
    cuda_init: int | None = None
    nvml: str = ""
    problem: str = ""
    visible: str | None = None
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True)
class Container:
    """Environment variables and files of NVIDIA's images; empty where there is none."""

    inside: bool = False
    product: str = ""
    tag: str = ""
    triton: str = ""
    cuda: str = ""
    tensorrt: str = ""
    driver: str = ""


@dataclass(frozen=True)
class Software:
    """Installed packages by their distribution's name (never imported), and programs."""

    python: str = ""
    system: str = "Linux"
    machine: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    trtllm_build: str = ""
    compiler: str = ""
    compiler_version: str = ""


@dataclass(frozen=True)
class Slurm:
    job: str = ""
    tasks: str = ""
    gpus: str = ""
    srun: str = ""
    mpi_types: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mpi:
    """`hello_sizes`: the world size that each started process saw, through mpi4py where it is installed.

    `library` is what mpi4py is linked to ("Open MPI 5.0.11"), `slots_problem` what mpirun says of as many processes
    without --oversubscribe.
    """

    mpirun: str = ""
    kind: str = ""
    version: str = ""
    library: str = ""
    hello_ranks: int = 0
    hello_sizes: tuple[int, ...] = ()
    hello_seconds: float = 0.0
    hello_problem: str = ""
    slots_problem: str = ""
    slurm: Slurm = field(default_factory=Slurm)


@dataclass(frozen=True)
class Disk:
    purpose: str
    path: str
    free_bytes: int
    total_bytes: int
    writable: bool = True


@dataclass(frozen=True)
class Host:
    """`limits`: soft ulimits by name, bytes or counts, None is unlimited. `cgroup_bytes` None: no limit."""

    ram_bytes: int = 0
    available_bytes: int = 0
    cgroup_bytes: int | None = None
    cgroup_used_bytes: int | None = None
    cpus: int = 1
    cpu_quota: float | None = None
    shm_bytes: int | None = None
    shm_free_bytes: int | None = None
    limits: Mapping[str, int | None] = field(default_factory=dict)
    disks: tuple[Disk, ...] = ()


@dataclass(frozen=True)
class Hub:
    """`token` is where a token comes from ("HF_TOKEN", a file's path), never the token."""

    cache: str = ""
    cache_writable: bool = True
    token: str = ""
    token_readable_by_others: bool = False
    token_empty: str = ""
    offline: str = ""


@dataclass(frozen=True)
class Triton:
    """`bundled`: of the nvidia-pytriton wheel, which has the python backend alone."""

    binary: str = ""
    version: str = ""
    backends: tuple[str, ...] = ()
    bundled: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Artefact:
    """A checkpoint, engine or repository directory. `rank_bytes[r]` is the size of rank r's file.

    `layer_algos`: the quant_algos of its modules where `quant_algo` is MIXED_PRECISION.
    """

    path: str = ""
    kind: str = ""
    target: str = ""
    world_size: int = 0
    tensorrt_llm: str = ""
    tensorrt: str = ""
    sm: int | None = None
    quant_algo: str = ""
    kv_cache_algo: str = ""
    layer_algos: tuple[str, ...] = ()
    engine: str = ""
    rank_bytes: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    driver: Driver = field(default_factory=Driver)
    container: Container = field(default_factory=Container)
    software: Software = field(default_factory=Software)
    mpi: Mpi = field(default_factory=Mpi)
    host: Host = field(default_factory=Host)
    hub: Hub = field(default_factory=Hub)
    triton: Triton = field(default_factory=Triton)
    artefact: Artefact | None = None


def dump(facts: Facts) -> dict[str, Any]:
    """As JSON values; `load` reads it back."""
    return asdict(facts)


def load(document: Any) -> Facts:
    """Facts from their JSON. Keys that this version does not know are left out, missing ones keep their defaults.

    Raises:
        ValueError, TypeError: it is not the JSON of facts.
    """
    loaded = _read(Facts, document, "facts")
    assert isinstance(loaded, Facts)
    return loaded


def _read(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`: a dataclass, tuple[x, ...], Mapping, x | None, or a plain value."""
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is not an object")
        hints = get_type_hints(kind)
        known = {f.name for f in fields(kind)} & value.keys()
        return kind(**{name: _read(hints[name], value[name], f"{where}.{name}") for name in sorted(known)})
    choices = get_args(kind)
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} is not a list")
        return tuple(_read(choices[0], item, where) for item in value)
    if get_origin(kind) is Mapping:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is not an object")
        return {str(key): _read(choices[1], item, where) for key, item in value.items()}
    if type(None) in choices:
        return None if value is None else _read(next(c for c in choices if c is not type(None)), value, where)
    if kind is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, kind):
        raise ValueError(f"{where} is {value!r}, not {kind.__name__}")
    return value
