"""EDGE: a prepared build as plain data, for `--dry-run`: argv, environment, files."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from pathlib import Path
from typing import Any

from trtbuild.engine.tensorrt.build import Prepared, build_config_of, prepare_job
from trtbuild.engine.tensorrt.ranks import Workplace
from trtbuild.engine.tensorrt.supervise import environment_of
from trtbuild.quantization import MIXED


def describe(prepared: Prepared, checkpoint: Path, engine: Path, environment: Dict[str, str]) -> dict[str, Any]:
    """What would be started in the staging directory `engine`, and what would come of it.

    `environment` is the present one; only what a process gets beyond it is shown.
    """
    place = Workplace(engine, prepared.launch.log_dir)
    job = prepare_job(prepared, checkpoint, place, range(prepared.world_size), environment)
    made = environment_of(job, environment)
    return {
        "checkpoint": str(checkpoint),
        "world_size": prepared.world_size,
        "launcher": job.launcher,
        "mode": prepared.launch.mode,
        "processes": [
            {"number": number, "ranks": list(ranks), "log": str(place.logs / name)}
            for number, (ranks, name) in enumerate(zip(job.ranks, job.logs, strict=True))
        ],
        "argv": list(job.argv),
        "shell": job.shown(),
        "environment": {name: value for name, value in made.items() if environment.get(name) != value},
        "build_config_file": str(place.build_config),
        "build_config": build_config_of(prepared, place),
        "effective": prepared.plan.effective,
        "timing_cache": None if prepared.timing_cache is None else str(prepared.timing_cache),
        "files": _files(prepared),
        "warnings": list(prepared.warnings),
        "obstacles": list(prepared.obstacles),
    }


def _files(prepared: Prepared) -> list[str]:
    """What the engine directory will hold (engine-build 6)."""
    ranks = range(prepared.world_size)
    found = ["config.json", *(f"rank{rank}.engine" for rank in ranks)]
    if prepared.plan.effective["plugin_config"]["manage_weights"]:
        found += [f"rank{rank}_managed_weights.safetensors" for rank in ranks]
    if (prepared.pretrained.get("quantization") or {}).get("quant_algo") == MIXED:
        found.append("quant_cfg.json")
    lora = prepared.plan.options
    if lora.plugin_config.lora_plugin != "disable":
        found += [f"lora/{number}/" for number in range(len(lora.lora_config.lora_dir))]
    return found
