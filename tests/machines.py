"""Machines as the doctor sees them, of many kinds. Names, sizes and versions as their vendors and users print them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trtbuild.doctor.facts import (
    Container,
    Disk,
    Driver,
    Facts,
    Gpu,
    Host,
    Hub,
    Mpi,
    Slurm,
    Software,
    Triton,
)

MIB, GIB = 1 << 20, 1 << 30
CONVERT = {"torch": "2.10.0a0", "numpy": "1.26.4", "safetensors": "0.6.2", "transformers": "4.57.3"}
LLM_121 = {**CONVERT, "tensorrt-llm": "1.2.1", "tensorrt": "10.14.1.48", "mpi4py": "4.1.0", "tritonclient": "2.60.0"}
GPUS = {
    "a100": ("NVIDIA A100-SXM4-80GB", 80, 81920 * MIB),
    "h100": ("NVIDIA H100 80GB HBM3", 90, 81559 * MIB),
    "t4": ("Tesla T4", 75, 15360 * MIB),
    "l40s": ("NVIDIA L40S", 89, 46068 * MIB),
    "b200": ("NVIDIA B200", 100, 183359 * MIB),
    "gb10": ("NVIDIA GB10", 121, None),
}


def gpus(kind: str, count: int, **changes: Any) -> tuple[Gpu, ...]:
    name, sm, memory = GPUS[kind]
    return tuple(replace(Gpu(index, name, sm, memory, 0, "Default", "Disabled"), **changes) for index in range(count))


def hello(ranks: int) -> Mpi:
    return Mpi("/usr/local/mpi/bin/mpirun", "Open MPI", "5.0.7", "Open MPI 5.0.7", ranks, (ranks,) * ranks, 0.8)


def host(**changes: Any) -> Host:
    standard = Host(
        ram_bytes=1008 * GIB,
        available_bytes=990 * GIB,
        cpus=96,
        shm_bytes=2 * GIB,
        shm_free_bytes=2 * GIB,
        limits={"memlock": None, "nofile": 1048576, "stack": 67108864, "fsize": None},
        disks=(
            Disk("work", "/workspace", 900 * GIB, 2000 * GIB),
            Disk("trtbuild cache", "/workspace/cache", 900 * GIB, 2000 * GIB),
            Disk("temporary files", "/tmp", 90 * GIB, 200 * GIB),
        ),
    )
    return replace(standard, **changes)


H100_IMAGE = Facts(
    driver=Driver("/usr/bin/nvidia-smi", "590.48.01", "13.1", 0, "13.590.48.01", gpus=gpus("h100", 8)),
    container=Container(True, "Triton Server", "26.04", "2.68.0", "13.1.0.036", "10.14.1.48", "590.44.01"),
    software=Software("3.12.3", "Linux", "x86_64", LLM_121, "/usr/local/bin/trtllm-build", "cc", "13.3.0"),
    mpi=hello(8),
    host=host(),
    hub=Hub("/root/.cache/huggingface/hub", True, "HF_TOKEN"),
    triton=Triton("/opt/tritonserver/bin/tritonserver", "2.68.0", ("python", "tensorrtllm")),
)
"""Eight H100 in the right image, started as documented: nothing to mend."""

A100_BOX = replace(
    H100_IMAGE,
    driver=Driver("/usr/bin/nvidia-smi", "580.159.04", "13.0", 0, "13.580.159.04", gpus=gpus("a100", 8)),
    container=Container(),
    software=replace(H100_IMAGE.software, packages=CONVERT, trtllm_build=""),
    triton=Triton(problem="tritonserver was not found"),
    host=host(limits={"memlock": 8 * MIB, "nofile": 1024, "stack": 8 * MIB, "fsize": None}),
)
"""A bare A100 machine before anything of NVIDIA's Python stack is installed."""

OLD_DRIVER = replace(
    H100_IMAGE,
    driver=Driver("/usr/bin/nvidia-smi", "550.54.15", "12.4", 803, "12.550.54.15", gpus=gpus("a100", 2)),
    mpi=hello(2),
)
FORWARD_COMPATIBLE = replace(OLD_DRIVER, driver=replace(OLD_DRIVER.driver, cuda="13.1", cuda_init=0))

LAPTOP = Facts(
    software=Software(
        "3.11.7",
        packages={**CONVERT, "tritonclient": "2.73.0", "mpi4py": "4.1.2", "nvidia-pytriton": "0.7.0"},
        compiler="cc",
        compiler_version="12.2.0",
    ),
    mpi=hello(2),
    host=host(ram_bytes=16 * GIB, available_bytes=9 * GIB, cpus=8),
    hub=Hub("/home/me/.cache/huggingface/hub"),
    triton=Triton("/home/me/.venv/tritonserver", "", ("python",), bundled=True),
)
"""No GPU, `pip install trtbuild[cpu]`."""

SLURM = replace(
    H100_IMAGE,
    container=Container(),
    mpi=replace(
        hello(4),
        hello_sizes=(),
        hello_problem="exit code 1: PMI2_Init failed to initialize. Return code: 14",
        slurm=Slurm("4711", "4", "4", "/usr/bin/srun", ("none", "pmi2")),
    ),
    driver=replace(H100_IMAGE.driver, gpus=gpus("h100", 4)),
)

SMALL_CONTAINER = replace(
    H100_IMAGE,
    host=host(
        cgroup_bytes=8 * GIB,
        cgroup_used_bytes=1 * GIB,
        cpu_quota=0.5,
        shm_bytes=64 * MIB,
        shm_free_bytes=64 * MIB,
        limits={"memlock": 64 << 10, "nofile": 1048576, "stack": 8 * MIB, "fsize": 512 * MIB},
        disks=(Disk("work", "/", 3 * GIB, 20 * GIB), Disk("trtbuild cache", "/root/.cache", 3 * GIB, 20 * GIB, False)),
    ),
)
"""`docker run` with none of the documented flags, and limits of a small pod."""
