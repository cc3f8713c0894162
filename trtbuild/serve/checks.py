"""Every reason why a launch cannot work, before anything starts. PURE. Rules of TensorRT-LLM: triton-repo 11.3.

`conflicts` are those of the options and the repository; `lacks` are those of this machine, which a dry run only tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as Names
from difflib import get_close_matches

from trtbuild.serve.facts import EngineModel, Machine, Repository
from trtbuild.serve.options import Hosts, ServeOptions

_LEAST_WATCH_S = 1.0


def conflicts(repository: Repository, options: ServeOptions, hosts: Hosts) -> list[str]:
    """What contradicts itself: one sentence each."""
    engines = repository.chosen(options.load)
    problems = [*repository.problems, *_numbers(options), *_names(repository, options)]
    problems += [engine.problem for engine in engines if engine.problem]
    problems += _recorded(repository)
    if not problems and not engines:
        problems.append(f"none of the models {', '.join(repository.loaded(options.load))} runs an engine")
    problems += _modes(engines, options, hosts)
    return problems


def lacks(repository: Repository, options: ServeOptions, hosts: Hosts, machine: Machine) -> list[str]:
    """What this machine has not, or not enough of."""
    engines = repository.chosen(options.load)
    kinds = {engine.kind for engine in engines}
    if kinds != {"tensorrt"}:
        return list(_llmapi_lacks(hosts, machine, kinds))
    world = processes(engines, options)
    problems = []
    launcher = "srun" if hosts.slurm else "mpirun"
    if launcher not in machine.programs:
        problems.append(f"{launcher} was not found")
    if spawning(options):
        needed = sorted({engine.worker for engine in engines} - machine.programs)
        problems += [f"the program of spawned ranks is missing: {worker} (executor_worker_path)" for worker in needed]
    if hosts.hostfile is not None:
        problems += _hostfile(hosts, machine, world)
    elif hosts.slurm:
        problems += _slurm(machine, world)
    else:
        problems += _gpus(engines, options, machine)
    return problems


def spawning(options: ServeOptions) -> bool:
    return options.mode == "orchestrator" and options.spawn


def processes(engines: tuple[EngineModel, ...], options: ServeOptions) -> int:
    """How many tritonservers a launch starts (triton-repo 11.3)."""
    if {engine.kind for engine in engines} != {"tensorrt"} or spawning(options):
        return 1
    ranks = sum(_ranks(engine) for engine in engines)
    return ranks + 1 if options.mode == "orchestrator" else ranks


def _ranks(engine: EngineModel) -> int:
    """Of all instances of a model."""
    return engine.world_size * max(1, len(engine.participant_ids))


def _numbers(options: ServeOptions) -> Iterator[str]:
    try:
        _ = options.restarts
    except ValueError as error:
        yield str(error)
    if options.watch_s < _LEAST_WATCH_S:
        yield f"watch_s is {options.watch_s:g}; a busy machine may need {_LEAST_WATCH_S:g} s to give a sign of life"
    for name in ("stall_s", "drain_s", "exit_timeout_s"):
        if getattr(options, name) < 0:
            yield f"{name} is {getattr(options, name):g}, which is no time"
    if len(set(options.ports.values())) < len(options.ports):
        yield f"the ports must differ: {options.ports}"


def _names(repository: Repository, options: ServeOptions) -> Iterator[str]:
    if options.load and options.model_control != "explicit":
        yield "load names models, which needs model control explicit"
    for name in options.load:
        if name not in repository.models and repository.models:
            close = get_close_matches(name, repository.models, 1)
            meant = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(repository.models)}"
            yield f"the repository has no model {name}{meant}"


def _recorded(repository: Repository) -> Iterator[str]:
    recorded, engines = repository.recorded_world, repository.engines
    if recorded is not None and len(engines) == 1 and engines[0].world_size not in (0, recorded):
        yield (
            f"the repository was made for {recorded} rank(s), but its engine {engines[0].engine} has "
            f"{engines[0].world_size}: make the repository anew"
        )


def _modes(engines: tuple[EngineModel, ...], options: ServeOptions, hosts: Hosts) -> Iterator[str]:
    kinds = {engine.kind for engine in engines}
    if hosts.hostfile is not None and hosts.slurm:
        yield "a hostfile is for mpirun; Slurm takes the hosts of its allocation"
    if options.mode == "leader" and not options.spawn:
        yield "only an orchestrator spawns ranks or not; leader mode never does"
    if len(kinds) > 1 and "tensorrt" in kinds:  # its ranks are tritonservers of their own
        yield f"one server cannot run engines of {' and '.join(sorted(kinds))}: load some of them with --load"
    elif "cpu" in kinds:
        yield from _cpu_only(options, hosts)
    elif kinds == {"llmapi"}:
        if options.mode == "orchestrator" or hosts.hostfile is not None:
            yield "llmapi models start their ranks themselves, on other hosts only under Slurm"
    elif kinds == {"tensorrt"}:
        yield from _orchestrator(engines, options, hosts) if options.mode == "orchestrator" else _leader(engines)
        for engine in engines:
            yield from _devices(engine)


def _cpu_only(options: ServeOptions, hosts: Hosts) -> Iterator[str]:
    if options.mode == "orchestrator" or hosts.several:
        yield (
            "a cpu engine has one tritonserver, which starts the ranks on this host: "
            "mode orchestrator, a hostfile and Slurm are for target tensorrt"
        )


def _leader(engines: tuple[EngineModel, ...]) -> Iterator[str]:
    if len(engines) > 1:
        names = ", ".join(engine.name for engine in engines)
        yield f"leader mode runs one engine, not {names}: take mode orchestrator, or load one of them"
    for engine in engines:
        given = [number for part in engine.participant_ids for number in part]
        if given and len(given) != engine.world_size:
            yield f"{engine.name}: participant_ids has {len(given)} ranks, the engine {engine.world_size}"


def _orchestrator(engines: tuple[EngineModel, ...], options: ServeOptions, hosts: Hosts) -> Iterator[str]:
    if options.spawn and hosts.several:
        yield "an orchestrator spawns ranks on its own host only: take --no-spawn, or leader mode"
    for engine in engines:
        given = [number for part in engine.participant_ids for number in part]
        if options.spawn and given:
            yield f"{engine.name}: participant_ids must not be set where the orchestrator spawns ranks"
        if options.spawn:
            continue
        if engine.backend == "python":
            yield f"{engine.name}: only the C++ backend can do without spawning"
        if not given:
            first = ",".join(map(str, range(1, engine.world_size + 1)))
            yield f"{engine.name}: without spawning participant_ids must say which ranks are its own ({first})"
        elif 0 in given:
            yield f"{engine.name}: participant_ids has rank 0, which is the orchestrator's"
        elif any(len(part) != engine.world_size for part in engine.participant_ids):
            yield f"{engine.name}: participant_ids must name {engine.world_size} ranks for each instance"
    ranks = sorted(n for engine in engines for part in engine.participant_ids for n in part)
    whole = all(engine.participant_ids for engine in engines) and 0 not in ranks
    if not options.spawn and whole and ranks != list(range(1, len(ranks) + 1)):
        yield f"participant_ids of all models must be 1 to {len(ranks)}, each once, not {ranks}"


def _devices(engine: EngineModel) -> Iterator[str]:
    for part in engine.gpu_device_ids:
        if engine.world_size and len(part) * engine.num_nodes != engine.world_size:
            yield (
                f"{engine.name}: gpu_device_ids has {len(part)} GPUs on each of {engine.num_nodes} host(s), "
                f"the engine {engine.world_size} rank(s)"
            )


def _hostfile(hosts: Hosts, machine: Machine, world: int) -> Iterator[str]:
    slots = sum(machine.slots.values())
    if not slots:
        yield f"the hostfile {hosts.hostfile} cannot be read, or names no host"
    elif slots < world:
        yield f"{world} ranks, but the hostfile {hosts.hostfile} has {slots} slot(s)"


def _slurm(machine: Machine, world: int) -> Iterator[str]:
    if "SLURM_JOB_ID" not in machine.slurm:
        yield "no Slurm allocation (SLURM_JOB_ID is not set): start this inside of sbatch or salloc"
    tasks = machine.slurm.get("SLURM_NTASKS", "")
    if tasks.isdigit() and int(tasks) < world:
        yield f"{world} ranks, but the Slurm allocation has {tasks} task(s)"


def _gpus(engines: tuple[EngineModel, ...], options: ServeOptions, machine: Machine) -> Iterator[str]:
    needed = max((engine.world_size for engine in engines), default=0)
    if options.mode == "orchestrator":  # engines may share GPUs where their parameters say so
        needed = max((len(part) for engine in engines for part in engine.gpu_device_ids), default=needed)
    highest = max((number for engine in engines for part in engine.gpu_device_ids for number in part), default=-1)
    if machine.gpus is None:
        yield "no GPU: nvidia-smi does not answer"
    elif machine.gpus < needed:
        yield f"{needed} ranks, but this host has {machine.gpus} GPU(s)"
    elif machine.gpus <= highest:
        yield f"gpu_device_ids names GPU {highest}, but this host has {machine.gpus}"


def _llmapi_lacks(hosts: Hosts, machine: Machine, kinds: Names[str]) -> Iterator[str]:
    if kinds == {"llmapi"} and hosts.slurm:
        if "srun" not in machine.programs:
            yield "srun was not found"
        yield from _slurm(machine, 1)
