"""The dry run of a TensorRT build, for people and as JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild.cli.output import line, note, size

if TYPE_CHECKING:
    from trtbuild.building_tensorrt import EnginePlan

SCHEMA = 1
_SHOWN = ("max_batch_size", "max_seq_len", "max_num_tokens", "opt_num_tokens", "max_beam_width", "kv_cache_type")


def document(plan: EnginePlan, output: Path) -> dict[str, Any]:
    """Everything that would run and be written; `schema` changes when a key is removed or changes its meaning."""
    from trtbuild.cache.stage import DOCUMENTS
    from trtbuild.engine.tensorrt.describe import describe
    from trtbuild.engine.tensorrt.ranks import CHECKPOINT, FOLDER

    out = Path(os.path.abspath(output))
    staging = out.with_name(f".{out.name}.partial")  # as staging.py names it
    checkpoint = plan.given or staging / FOLDER / CHECKPOINT
    builds = {part: describe(p, checkpoint / part, staging / part, os.environ) for part, p in plan.parts.items()}
    files = [(Path(part) / name).as_posix() for part, build in builds.items() for name in build["files"]]
    host = plan.host
    return {
        "schema": SCHEMA,
        "output": str(out),
        "staging": str(staging),
        "converts": None if plan.given is not None else plan.source.model,
        "checkpoint": str(checkpoint),
        "checkpoint_bytes": plan.rank_bytes,
        "host": {
            "gpus": None if host.gpus is None else [{"name": gpu.name, "sm": gpu.sm} for gpu in host.gpus],
            "sm": host.sm,
            "tensorrt_llm": host.tensorrt_llm,
            "tensorrt": host.tensorrt,
        },
        "builds": [{"part": part, **build} for part, build in builds.items()],
        "files": [*files, *DOCUMENTS],
        "warnings": plan.warnings,
        "obstacles": plan.obstacles,
    }


def show(plan: EnginePlan, output: Path) -> None:
    """The same in words; warnings and obstacles go to stderr."""
    whole = document(plan, output)
    if whole["converts"] is not None:
        line(f"converts {whole['converts']} -> {whole['checkpoint']} ({size(whole['checkpoint_bytes'])})")
    for build in whole["builds"]:
        name = f"{build['part']}: " if build["part"] else ""
        ranks = ", ".join(f"process {p['number']}: rank {' '.join(map(str, p['ranks']))}" for p in build["processes"])
        line(f"{name}{build['world_size']} rank(s) of {build['checkpoint']}, {ranks}")
        line(f"runs   {build['shell']}")
        for variable, value in build["environment"].items():
            line(f"  with {variable}={value}")
        line(f"reads  {build['build_config_file']}")
        line("  " + ", ".join(f"{key} {_word(build['build_config'][key])}" for key in _SHOWN))
        changed = _changed(build)
        line("then   " + (", ".join(changed) if changed else "TensorRT-LLM changes nothing of it"))
        line(f"timing cache {build['timing_cache'] or 'none: the cache is off'}")
        line(f"logs   {', '.join(process['log'] for process in build['processes'])}")
    line(f"writes {whole['output']}: {', '.join(whole['files'])}")
    for text in plan.warnings:
        note(f"warning: {text}")
    for text in plan.obstacles:
        note(f"not on this host: {text}")


def _changed(build: dict[str, Any]) -> list[str]:
    """Fields that will be saved with another value than is asked for."""
    asked, effective = build["build_config"], build["effective"]
    plugins, saved = asked["plugin_config"], effective["plugin_config"]
    pairs = [
        (name, asked[name], effective.get(name)) for name in asked if name in effective and name != "plugin_config"
    ]
    pairs += [(name, plugins[name], saved[name]) for name in plugins]
    return [f"{name} {_word(before)} -> {_word(after)}" for name, before, after in pairs if before != after]


def _word(value: Any) -> str:
    return "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
