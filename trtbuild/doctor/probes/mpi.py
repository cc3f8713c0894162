"""mpirun: which, and whether it really starts processes that find each other through mpi4py."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time

from trtbuild.doctor.facts import Mpi, Slurm
from trtbuild.doctor.probes.process import run
from trtbuild.errors import ToolError
from trtbuild.mpi import find_mpirun, mpirun_command, rank_environment

_LIMIT_S = 30.0
# Every process prints its world's size and the library of mpi4py; without mpi4py mpirun's own variable counts.
_HELLO = """
import os
try:
    from mpi4py import MPI
    size, library = MPI.COMM_WORLD.Get_size(), MPI.Get_library_version()
    MPI.COMM_WORLD.Barrier()
except ImportError:
    size, library = int(os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ.get("PMI_SIZE") or 1), ""
except RuntimeError as error:  # mpi4py finds no MPI library
    size, library = 0, str(error)
os.write(1, f"hello\\t{size}\\t{' '.join(library.split())}\\n".encode())
"""
_KINDS = (
    ("Open MPI", re.compile(r"\(Open MPI\) (\d[\w.]*)|Open MPI v(\d[\w.]*)")),
    ("Intel MPI", re.compile(r"Intel\(R\) MPI Library.*?(\d{4}[\d.]*|\d+\.[\d.]+)", re.S)),
    ("MVAPICH", re.compile(r"MVAPICH2?.*?(\d+\.[\w.]+)", re.S)),
    ("MPICH", re.compile(r"(?:MPICH|HYDRA).*?Version:?\s*(\d[\w.]*)", re.S)),
)


def identify(text: str) -> tuple[str, str]:
    """Kind and version of an MPI, from `mpirun --version` or MPI_Get_library_version."""
    for kind, pattern in _KINDS:
        if found := pattern.search(text):
            return kind, next(group for group in found.groups() if group).rstrip(".")
    return "", ""


def probe_mpi(ranks: int) -> Mpi:
    """Start `ranks` processes (two at least) as trtbuild does, and once more without --oversubscribe."""
    slurm = probe_slurm()
    try:
        mpirun = find_mpirun()
    except ToolError:
        return Mpi(slurm=slurm)
    kind, version = identify(run([mpirun, "--version"], _LIMIT_S).text)
    ranks = max(2, ranks)
    start = time.monotonic()
    command = mpirun_command(mpirun, ranks, [sys.executable, "-c", _HELLO], as_root=os.geteuid() == 0)
    said = run(command, _LIMIT_S, env=rank_environment(ranks))
    hello = re.findall(r"^hello\t(\d+)\t(.*)$", said.out, re.M)
    library = next((text for _, text in hello if text), "")
    problem = "" if said.code == 0 and hello else _last_words(said.text, said.code)
    bare = [part for part in command if part not in ("--oversubscribe", "--bind-to", "none")]
    slots = run([*bare[: bare.index(sys.executable)], "true"], _LIMIT_S) if not problem else None
    return Mpi(
        mpirun=mpirun,
        kind=kind,
        version=version,
        library=" ".join(identify(library)).strip() or library[:80],
        hello_ranks=ranks,
        hello_sizes=tuple(int(size) for size, _ in hello),
        hello_seconds=round(time.monotonic() - start, 2),
        hello_problem=problem,
        slots_problem=_last_words(slots.text, slots.code) if slots and slots.code else "",
        slurm=slurm,
    )


def probe_slurm() -> Slurm:
    """The allocation that this process is in, and the MPI types of srun (pmix is the one that is wanted)."""
    srun = shutil.which("srun") or ""
    types = run([srun, "--mpi=list"], 10.0).text if srun else ""
    return Slurm(
        job=os.environ.get("SLURM_JOB_ID", ""),
        tasks=os.environ.get("SLURM_NTASKS", ""),
        gpus=os.environ.get("SLURM_GPUS_ON_NODE", ""),
        srun=srun,
        mpi_types=tuple(sorted(set(re.findall(r"\b(pmix\w*|pmi2|pmi|none|cray_shasta)\b", types)))),
    )


def _last_words(text: str, code: int | None) -> str:
    """The telling sentence of what mpirun prints: its boxes start with it."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not set(line.strip()) <= {"-"}]
    how = "" if code is None else f"exit code {code}: "
    return how + " ".join(lines[:3])[:300]
