"""EDGE: reads a repository, its engines and this machine into the values of facts.py."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trtbuild.errors import ServerError, ToolError, some
from trtbuild.manifest import read_manifest
from trtbuild.mpi import find_mpirun
from trtbuild.serve.facts import WORKER, EngineModel, Kind, Machine, Repository, hostfile_slots, numbers
from trtbuild.serve.options import Hosts
from trtbuild.versions import MODEL_FILE, own_engines, runs_engine, served_engines

_SMI_TIMEOUT_S = 20.0


def read_repository(folder: Path) -> Repository:
    """The models of a repository, whoever made it; what is wrong with it becomes its `problems`.

    Raises:
        ServerError: tritonclient, which has Triton's own form of a configuration, is not installed.
    """
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise ServerError("`trtbuild serve` needs tritonclient", hint="pip install 'trtbuild[client]'") from error
    paths = sorted(folder.glob("*/config.pbtxt"))
    problems = [] if paths else [f"{folder} is not a repository: it holds no MODEL/config.pbtxt"]
    names, engines, steps = [], [], {}
    for path in paths:
        name = path.parent.name
        names.append(name)
        try:
            config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
        except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
            problems.append(f"{path} cannot be read: {str(error).splitlines()[0]}")
            continue
        steps[name] = tuple(str(step.model_name) for step in config.ensemble_scheduling.step)
        if runs_engine(name, config):
            engines.append(_engine_model(path.parent, config))
        elif list(path.parent.glob(f"*/{MODEL_FILE}")):
            engines.append(EngineModel(name, "llmapi", backend=str(config.backend)))
    return Repository(folder, tuple(names), tuple(engines), steps, _recorded_world(folder), tuple(problems))


def _recorded_world(folder: Path) -> int | None:
    """Ranks by the manifest, where the repository has one engine that they are of."""
    source = read_manifest(folder).get("source") or {}
    recorded = str(source.get("world_size", ""))
    versions = [chain for chain in (source.get("chains") or {}).values() if chain.get("versions")]
    return int(recorded) if recorded.isdigit() and not versions else None


def _engine_model(folder: Path, config: Any) -> EngineModel:
    """What is said of the newest version that is served; `problem` is of all that are."""
    name = folder.name

    def value(key: str) -> str:
        text = str(config.parameters[key].string_value) if key in config.parameters else ""
        return "" if text.startswith("${") else text

    own, unread = own_engines(folder)
    served = served_engines(config, own)
    problems = [problem for version, problem in unread.items() if version in served]
    looked_at = {path: _engine(name, Path(path)) for path in served.values() if path}
    newest = served[max(served)] if served else ""
    kind, world, _problem = looked_at.get(newest, ("tensorrt", 0, ""))
    if not served:
        problems.append(
            f"no version of model {name} is served: there are {some(own) or 'none'}, see its version_policy"
        )
    elif "" in served.values():
        problems.append(f"model {name} names no engine (gpt_model_path)")
    problems += [problem for _kind, _world, problem in looked_at.values() if problem]
    if len(kinds := {kind for kind, _world, problem in looked_at.values() if not problem}) > 1:
        problems.append(f"versions of model {name} are of several targets: {some(sorted(kinds))}")
    return EngineModel(
        name,
        kind,
        Path(newest),
        world,
        numbers(value("gpu_device_ids")),
        numbers(value("participant_ids")),
        int(value("num_nodes")) if value("num_nodes").isdigit() else 1,
        value("executor_worker_path") or WORKER,
        str(config.backend),
        "; ".join(problems),
    )


def _engine(name: str, folder: Path) -> tuple[Kind, int, str]:
    """Kind, world size and what is wrong with an engine."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        mapping = config["pretrained_config"]["mapping"]
        world = 1
        for size in ("tp_size", "pp_size", "cp_size"):
            world *= int(mapping.get(size) or 1)
    except OSError:
        return (
            "tensorrt",
            0,
            f"the engine of model {name} is gone: {folder}; build it again, or make the repository anew",
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return "tensorrt", 0, f"the engine of model {name} cannot be used: {path}: {error!r}"
    kind: Kind = "cpu" if (config.get("trtbuild") or {}).get("target") == "cpu" else "tensorrt"
    missing = [f"rank{rank}.engine" for rank in range(world) if not (folder / f"rank{rank}.engine").is_file()]
    problem = f"the engine of model {name}, {folder}, has {world} rank(s) and lacks {', '.join(missing)}"
    return kind, world, problem if missing else ""


def look_at_machine(hosts: Hosts, workers: Iterable[str]) -> Machine:
    """What a launch may need of this machine; `workers`: programs of ranks that an orchestrator would spawn."""
    programs = {worker for worker in workers if os.access(worker, os.X_OK)}
    programs |= {"srun"} if shutil.which("srun") else set()
    try:
        find_mpirun()
        programs.add("mpirun")
    except ToolError:
        pass
    slots: dict[str, int] = {}
    if hosts.hostfile is not None:
        try:
            slots = hostfile_slots(hosts.hostfile.read_text())
        except (OSError, UnicodeDecodeError):
            slots = {}
    slurm = {key: value for key, value in os.environ.items() if key.startswith("SLURM_")}
    names = frozenset({"localhost", "127.0.0.1", socket.gethostname(), socket.gethostname().split(".")[0]})
    return Machine(_gpus(), slots, frozenset(programs), slurm, names)


def _gpus() -> int | None:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return None
    try:
        query = [smi, "--query-gpu=index", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=_SMI_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return sum(line[:1].isdigit() for line in done.stdout.splitlines()) if done.returncode == 0 else None
