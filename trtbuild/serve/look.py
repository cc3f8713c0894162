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

from trtbuild.errors import ServerError, ToolError
from trtbuild.manifest import read_manifest
from trtbuild.mpi import find_mpirun
from trtbuild.serve.facts import WORKER, EngineModel, Kind, Machine, Repository, hostfile_slots, numbers
from trtbuild.serve.options import Hosts

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
        if "gpt_model_type" in config.parameters:
            engines.append(_engine_model(name, config))
        elif list(path.parent.glob("*/model.yaml")):
            engines.append(EngineModel(name, "llmapi", backend=str(config.backend)))
    source = read_manifest(folder).get("source") or {}
    recorded = str(source.get("world_size", ""))
    return Repository(
        folder,
        tuple(names),
        tuple(engines),
        steps,
        int(recorded) if recorded.isdigit() else None,
        tuple(problems),
    )


def _engine_model(name: str, config: Any) -> EngineModel:
    def value(key: str) -> str:
        text = str(config.parameters[key].string_value) if key in config.parameters else ""
        return "" if text.startswith("${") else text

    engine = Path(value("gpt_model_path"))
    kind, world, problem = _engine(name, engine) if value("gpt_model_path") else ("tensorrt", 0, _unnamed(name))
    return EngineModel(
        name,
        kind,
        engine,
        world,
        numbers(value("gpu_device_ids")),
        numbers(value("participant_ids")),
        int(value("num_nodes")) if value("num_nodes").isdigit() else 1,
        value("executor_worker_path") or WORKER,
        str(config.backend),
        problem,
    )


def _unnamed(name: str) -> str:
    return f"model {name} names no engine (gpt_model_path)"


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
