"""Everything that a tensorrt build starts, as argument vectors. PURE.

One MPI process a GPU (engine-build 5): process m of M builds the ranks r with r % M == m, on the GPU of its number on
the host. CUDA_VISIBLE_DEVICES is left alone, as each process chooses among all GPUs by itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping as Dict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trtbuild.engine.options import BuildOptions, LaunchOptions
from trtbuild.errors import PlanError
from trtbuild.mpi import mpirun_command

RANK_MODULE = "trtbuild.engine.tensorrt.rank"
EXPORTED = (
    *("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONUNBUFFERED", "CUDA_VISIBLE_DEVICES", "HF_HOME"),
    *("NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "TLLM_LOG_LEVEL", "BUILDER_FORCE_NUM_PROFILES"),
)
"""Variables that other hosts of a hostfile get, where they are set."""
_NUMBER = "${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-${PMI_RANK:-${SLURM_PROCID:-0}}}}"
_LOGGED = """\
n={number} c=$1 s=$2; shift 2
if [ "$s" != 0 ]; then while kill -0 $$; do
    set -- $(sed 's/.*) //' /proc/$$/stat); echo $((${{12}} + ${{13}} + ${{14}} + ${{15}})) >"$c/$n"; sleep "$s"
done; fi >/dev/null 2>&1 &
exec "$@" >>"$0/{prefix}$n.log" 2>&1"""
"""Shell: $0 the folder of logs, $1 that of CPU ticks, $2 seconds between two of them, then the program.

Each process has a log of its own on whatever host it runs, and beside it somebody who writes down its ticks (utime,
stime and those of its children, proc(5)); the process cannot do that itself while TensorRT keeps Python waiting.
Whatever of that somebody held the launcher's output would keep the launcher waiting for its last sleep.
"""
_TICKS_EVERY_S = 5.0
PROCESS, RANK = "process", "rank"


@dataclass(frozen=True)
class Job:
    """What is started. `logs`: names of its log files, one a process; `ranks`: the ranks that each one builds."""

    argv: tuple[str, ...]
    launcher: str
    ranks: tuple[tuple[int, ...], ...]
    logs: tuple[str, ...]
    in_process: bool

    @property
    def processes(self) -> int:
        return len(self.ranks)

    def shown(self) -> str:
        """The command line for people: the script that writes the logs is left out."""
        return " ".join("..." if "\n" in word else shlex.quote(word) for word in self.argv)


def launcher_of(launch: LaunchOptions, environment: Dict[str, str], *, srun: bool, processes: int) -> str:
    """mpirun, srun or none: the one that was asked for, else srun inside a Slurm allocation, else mpirun where needed.

    `srun`: whether the program is there. A process of its own in an allocation fails in MPI_Init (PMI2_Init, engine
    build 5), so there even one goes through a launcher.
    """
    if launch.launcher != "auto":
        return launch.launcher
    if launch.hostfile is not None:
        return "mpirun"
    if "SLURM_JOB_ID" in environment:
        return "srun" if srun else "mpirun"
    return "mpirun" if processes > 1 else "none"


def processes_of(launch: LaunchOptions, missing: int, gpus: int | None) -> int:
    """How many processes build `missing` ranks; `gpus`: of this host, None where other hosts have them or unknown.

    Raises:
        PlanError: options that contradict each other.
    """
    problems = []
    if launch.launcher == "none" and (launch.processes or 1) > 1:
        problems.append(f"launcher none starts one process, not {launch.processes}; leave one of the two out")
    if launch.launcher == "none" and launch.hostfile is not None:
        problems.append("a hostfile needs launcher mpirun, not none")
    if launch.launcher == "srun" and launch.hostfile is not None:
        problems.append("srun takes its hosts from the allocation; a hostfile is for launcher mpirun")
    if gpus and launch.hostfile is None and (launch.processes or 1) > gpus:
        problems.append(f"{launch.processes} processes for {gpus} GPU(s): each process needs one of its own")
    if problems:
        raise PlanError(problems)
    if launch.launcher == "none":
        return 1
    wanted = launch.processes or (missing if launch.hostfile is not None or not gpus else min(missing, gpus))
    return max(1, min(wanted, missing))


def shares(missing: Sequence[int], processes: int) -> tuple[tuple[int, ...], ...]:
    """The ranks of each process: as upstream, but of those that are missing."""
    return tuple(tuple(missing[number::processes]) for number in range(processes))


def rank_program(python: str, job_file: Path) -> list[str]:
    """Our own ranks, which call tensorrt_llm."""
    return [python, "-m", RANK_MODULE, str(job_file)]


def trtllm_program(
    trtllm_build: str, checkpoint: Path, build_config: Path, out: Path, options: BuildOptions
) -> list[str]:
    """trtllm-build with what `--build_config` does not carry (engine-build 2.1 and 2.8).

    Of the plugins only one needs an option: that gemm_plugin was disabled by name is not in the file.
    """
    argv = [trtllm_build, "--checkpoint_dir", str(checkpoint), "--build_config", str(build_config)]
    argv += ["--output_dir", str(out), "--log_level", options.log_level]
    if options.logits_dtype is not None:
        argv += ["--logits_dtype", options.logits_dtype]
    if options.plugin_config.gemm_plugin == "disable":
        argv += ["--gemm_plugin", "disable"]
    if options.plugin_config.lora_plugin != "disable":
        lora = options.lora_config
        argv += ["--lora_plugin", options.plugin_config.lora_plugin, "--lora_ckpt_source", lora.lora_ckpt_source]
        argv += ["--max_lora_rank", str(lora.max_lora_rank)]
        argv += ["--lora_dir", *map(str, lora.lora_dir)] if lora.lora_dir else []
        argv += ["--lora_target_modules", *lora.lora_target_modules] if lora.lora_target_modules else []
    argv += ["--strip_plan"] if options.use_strip_plan else []
    argv += ["--fast_build"] if options.fast_build else []
    return argv


def make_job(
    program: Sequence[str],
    ranks: tuple[tuple[int, ...], ...],
    launcher: str,
    launch: LaunchOptions,
    log_dir: Path,
    ticks: Path,
    *,
    mpirun: str,
    srun: str,
    as_root: bool,
    exported: Sequence[str] = (),
) -> Job:
    """`program` under its launcher; every process has a log in `log_dir`, and a file with its CPU ticks in `ticks`."""
    processes, in_process = len(ranks), launch.mode == "in-process"
    each_one = not in_process and all(len(own) == 1 for own in ranks)
    prefix = RANK if each_one else PROCESS
    script = _LOGGED.format(number=_NUMBER if launcher != "none" else "0", prefix=prefix)
    every = f"{min(_TICKS_EVERY_S, launch.hang_s / 4):g}"
    logged = ["/bin/sh", "-c", script, str(log_dir), str(ticks), every, *program]
    if launcher == "mpirun":
        argv = mpirun_command(
            mpirun, processes, logged, as_root=as_root, hostfile=launch.hostfile, export=tuple(exported)
        )
    elif launcher == "srun":
        argv = [srun, "--mpi=pmix", "--overlap", "--kill-on-bad-exit=1", f"--ntasks={processes}", *logged]
    else:
        argv = logged
    names = tuple(f"{prefix}{number}.log" for number in range(processes))
    return Job(tuple(argv), launcher, ranks, names, in_process)
