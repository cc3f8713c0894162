"""What a launch depends on: the models of a repository, their engines, and this machine. PURE values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Kind = Literal["cpu", "tensorrt", "llmapi"]
WORKER = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"
"""Program of the ranks that an orchestrator spawns, where executor_worker_path names no other."""


@dataclass(frozen=True)
class EngineModel:
    """A model that runs an engine: `engine`, `kind` and `world_size` are of the newest version that is served.

    `world_size`: tp * pp * cp of the engine's config.json; 0 where it cannot be read. `problem` says what is wrong with
    the engines of all versions that are served (one after the other). The lists are
    those of the parameters of the same names, one for each instance (";" between them).
    """

    name: str
    kind: Kind
    engine: Path | None = None
    world_size: int = 1
    gpu_device_ids: tuple[tuple[int, ...], ...] = ()
    participant_ids: tuple[tuple[int, ...], ...] = ()
    num_nodes: int = 1
    worker: str = WORKER
    backend: str = "tensorrtllm"
    problem: str = ""


@dataclass(frozen=True)
class Repository:
    """`steps`: ensemble -> the models that it calls. `recorded_world`: of the manifest, None without one."""

    folder: Path
    models: tuple[str, ...]
    engines: tuple[EngineModel, ...]
    steps: dict[str, tuple[str, ...]] = field(default_factory=dict)
    recorded_world: int | None = None
    problems: tuple[str, ...] = ()

    def loaded(self, load: tuple[str, ...]) -> set[str]:
        """The models that run when `load` are asked for: with the steps of ensembles; all without a choice of any."""
        left, found = [name for name in load if name in self.models] or list(self.models), set[str]()
        while left:
            name = left.pop()
            if name not in found:
                found.add(name)
                left += self.steps.get(name, ())
        return found

    def chosen(self, load: tuple[str, ...]) -> tuple[EngineModel, ...]:
        """The engines among them."""
        names = self.loaded(load)
        return tuple(engine for engine in self.engines if engine.name in names)


@dataclass(frozen=True)
class Machine:
    """This machine. `gpus` None: nvidia-smi is not there. `slots`: host -> slots of the hostfile, in its order.

    `programs`: of mpirun, srun and the executor workers, those that are there. `slurm`: the SLURM_* variables.
    """

    gpus: int | None = None
    slots: dict[str, int] = field(default_factory=dict)
    programs: frozenset[str] = frozenset()
    slurm: dict[str, str] = field(default_factory=dict)
    names: frozenset[str] = frozenset({"localhost", "127.0.0.1"})
    """What this host is called."""

    @property
    def slurm_hosts(self) -> str:
        return self.slurm.get("SLURM_JOB_NODELIST", "")


def numbers(text: str) -> tuple[tuple[int, ...], ...]:
    """ "0,1;2,3" -> ((0, 1), (2, 3)); empty where it is none."""
    try:
        return tuple(tuple(int(word) for word in part.split(",")) for part in text.split(";")) if text.strip() else ()
    except ValueError:
        return ()


def hostfile_slots(text: str) -> dict[str, int]:
    """Host -> slots of an Open MPI hostfile ("host slots=4 max_slots=8", # begins a comment); lines of a host add up.

    Without slots= a line counts for one.
    """
    slots: dict[str, int] = {}
    for line in text.splitlines():
        words = line.split("#", 1)[0].replace(" =", "=").replace("= ", "=").split()
        if words:
            given = [int(word[6:]) for word in words[1:] if word.startswith("slots=") and word[6:].isdigit()]
            slots[words[0]] = slots.get(words[0], 0) + (given[0] if given else 1)
    return slots


def first_host(node_list: str) -> str:
    """The first host of a Slurm node list: "node[03-05,9],x" -> "node03"."""
    head, bracket, rest = node_list.partition("[")
    if not bracket or "," in head:
        return node_list.split(",")[0]
    inside, _, after = rest.partition("]")
    number = inside.split(",")[0].split("-")[0]
    return head + number + after.split(",")[0]
