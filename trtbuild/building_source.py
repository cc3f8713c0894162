"""What a TensorRT engine is built of: a ready checkpoint or a model's plan, and whether the GPUs could serve it."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild.errors import PlanError
from trtbuild.planning import make_plan
from trtbuild.progress import Progress
from trtbuild.spec import CalibrationOptions, ConvertOptions

if TYPE_CHECKING:
    from trtbuild.engine.tensorrt.build import Host, Prepared

_LESS = (
    "Lower max_seq_len, max_batch_size or max_num_tokens, quantize, or take more GPUs (--tp, --pp): "
    "`trtbuild plan MODEL --gpu NAME --fit` proposes what fits."
)


@dataclass(frozen=True)
class Source:
    """What an engine is made of, whatever its target: a model's name, or the folder of a ready checkpoint."""

    model: str
    options: ConvertOptions
    calibration: CalibrationOptions
    revision: str | None = None
    allow_pickle: bool = False


@dataclass(frozen=True)
class Contents:
    """What there is to build of, by part: config.json, and bytes of each rank's weights in the engine, at least.

    `nbytes`: of all rank files.
    """

    configs: dict[str, Any]
    weights: dict[str, list[int]]
    nbytes: int


def given_contents(
    folder: Path, parts: list[str], options: ConvertOptions, read_data: bool, progress: Progress
) -> Contents:
    """Of a ready checkpoint, after the linter."""
    from trtbuild.engine.cpu import read_checkpoint_config, require_same_options
    from trtbuild.importers import without_auto
    from trtbuild.lint.plain import require_sound
    from trtbuild.sizing.room import file_weights

    require_sound(folder, progress, read_data=read_data, target="tensorrt")
    configs = {part: read_checkpoint_config(folder / part) for part in parts}
    for config in configs.values():
        require_same_options(config, without_auto(options))
    sizes = {
        part: [(folder / part / f"rank{r}.safetensors").stat().st_size for r in range(config["mapping"]["world_size"])]
        for part, config in configs.items()
    }
    weights = {part: file_weights(config, sizes[part]) for part, config in configs.items()}
    return Contents(configs, weights, sum(map(sum, sizes.values())))


def planned_contents(source: Source) -> Contents:
    """Of a model that is still to be converted; no weight is read or downloaded."""
    from trtbuild.checkpoint.pack import configs_of
    from trtbuild.quantization import LAYERS
    from trtbuild.sizing.memory import engine_bytes

    plan = make_plan(source.model, source.options, source.revision, allow_pickle=source.allow_pickle)
    plan.require()
    configs = {}
    for part in plan.parts:
        files = configs_of(part.family, part.spec, part.options, part.choices)
        table = files.get("quant_cfg.json", {}).get(LAYERS)
        configs[part.folder] = {**files["config.json"], **({LAYERS: table} if table else {})}
    weights = {
        part.folder: [engine_bytes(rank, part.choices, part.dtype) for rank in part.ranks] for part in plan.parts
    }
    return Contents(configs, weights, plan.checkpoint_bytes)


def room(found: Contents, made: Dict[str, Prepared], host: Host) -> tuple[str, ...]:
    """What is to be said of the memory of the GPUs here, for a decoder-only model.

    Raises:
        PlanError: not even one sequence of full length could be served: hours of building would be for nothing.
    """
    from trtbuild.families import family_of_checkpoint
    from trtbuild.sizing.room import engine_room

    part, config = next(iter(found.configs.items()))
    family = family_of_checkpoint(config["architecture"])
    known = {gpu.memory_bytes: gpu.name for gpu in host.gpus or () if gpu.memory_bytes is not None}
    if len(found.configs) > 1 or family is None or not family.engine or not known:
        return ()
    least = min(known)
    problems, warnings = engine_room(config, found.weights[part], made[part].plan.effective, known[least], least)
    if problems:
        raise PlanError(problems, hint=_LESS)
    return tuple(warnings)
