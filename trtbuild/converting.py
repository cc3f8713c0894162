"""How a checkpoint is made: a model is planned, quantized where a method has fields, and cut; or another is re-cut."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild.cache.stage import Cache, Run
from trtbuild.caching import checkpoint_run, reshard_run
from trtbuild.errors import PlanError
from trtbuild.manifest import tool_versions
from trtbuild.planning import plan_folder, require_engine, resolve
from trtbuild.progress import Progress, silent
from trtbuild.spec import CALIBRATION, CalibrationOptions, ConvertOptions
from trtbuild.staging import check_disk, check_not_input, check_output, staged_dir

if TYPE_CHECKING:
    from trtbuild.calibrate.run import Quantizer
    from trtbuild.checkpoint.team import Alone, Leader
    from trtbuild.layout import TensorInfo
    from trtbuild.plan import ModelPlan


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
    cache: Cache | None = None,
) -> Path:
    """Convert a model, or a TensorRT-LLM checkpoint of another layout, to a checkpoint in `out` (stages 2 and 3).

    A method with fields quantizes the whole model first, layer by layer, and cuts what comes out for the ranks.
    Everything that can be known before a weight is read is checked first: the output, the plan, the disk, and with
    `for_engine` that the cpu runtime has an engine for the model. Half models lie in subfolders (encoder, decoder).
    What an interrupted run of the same conversion has finished is verified and kept. The bytes depend neither on
    `workers` (threads, 0 = one a core) nor on the processes that share the ranks under `mpi`. What `cache` (None: kept
    nowhere) has of the same inputs is not made again.

    Raises:
        OutputError, HubError, CheckpointError, UnsupportedModel, PlanError, CalibrationError, EngineError, LockError;
        ToolError: no MPI where it was asked for. SystemExit: with `mpi`, in all processes but the first.
    """
    from trtbuild.checkpoint.origin import describe_source
    from trtbuild.checkpoint.team import joined
    from trtbuild.hub.snapshot import local_folder
    from trtbuild.importers import without_auto
    from trtbuild.lint.read import parts_of
    from trtbuild.quantizing import prepared

    cache = cache or Cache()
    with joined(mpi) as team:
        check_output(out, force=force)
        given = local_folder(model)
        if given is not None and parts_of(given):
            if options.target == "llmapi":
                raise PlanError(["--target llmapi needs the Hugging Face model, and this is a TensorRT-LLM checkpoint"])
            return reshard_checkpoint(given, out, without_auto(options), progress=progress, force=force, cache=cache)
        source = resolve(model, revision, allow_pickle=allow_pickle)
        check_not_input(out, source.path)
        run = checkpoint_run(cache, source, options, calibration, allow_pickle=allow_pickle, progress=progress)
        if not for_engine and run.quick_hit(out, force=force):
            return out
        plan, index = plan_folder(source.path, options, allow_pickle=allow_pickle)
        plan.require()
        if for_engine:
            require_engine(part.family for part in plan.parts)
        if run.hit(out, force=force):
            return out
        quantizer, made_of = prepared(plan.parts[0], source, calibration)
        made_of = {**describe_source(source, index), **made_of}
        with run.reading(), staged_dir(out, force=force, resume=True) as folder:
            _write_checkpoint(team, plan, index, source.path, made_of, quantizer, folder, out, workers, progress, run)
        run.keep(out)
    return out


def _write_checkpoint(
    team: Alone | Leader,
    plan: ModelPlan,
    index: dict[str, TensorInfo],
    source: Path,
    made_of: dict[str, Any],
    quantizer: Quantizer | None,
    folder: Path,
    out: Path,
    workers: int,
    progress: Progress,
    run: Run,
) -> None:
    """Write everything that a plan says into `folder`, which is to become `out`, or what is missing of it there.

    `source`: the model's folder, of which a Hugging Face checkpoint takes more than the weights.
    """
    from trtbuild.checkpoint.imported import import_checkpoint
    from trtbuild.checkpoint.journal import Journal
    from trtbuild.checkpoint.origin import fingerprint
    from trtbuild.checkpoint.pack import configs_of
    from trtbuild.checkpoint.team import Work
    from trtbuild.checkpoint.writer import write_documents
    from trtbuild.exporting import documents, export
    from trtbuild.quantizing import quantize

    hugging_face = plan.options.target == "llmapi"
    configs = (
        [documents(plan.parts[0], index, source)]
        if hugging_face
        else [configs_of(part.family, part.spec, part.options, part.choices) for part in plan.parts]
    )
    journal = Journal(folder)
    mark = fingerprint(plan, configs, made_of, index)
    journal.open(mark)
    held = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    beside = plan.scratch_bytes + (quantizer.spool_bytes if quantizer is not None else 0)
    check_disk(out, folder, plan.checkpoint_bytes + beside - held)
    digests: dict[str, str] = {}
    if hugging_face:
        digests = export(plan.parts[0], quantizer, index, source, folder, workers, progress, journal, mark)
    elif plan.imported is not None:
        digests, made_of["imported"] = import_checkpoint(plan, plan.imported, index, folder, mark, progress)
    elif quantizer is not None:
        digests = quantize(plan.parts[0], quantizer, index, mark, folder, workers, progress)
    else:
        for part, config in zip(plan.parts, configs, strict=True):
            digests |= team.convert(Work(part.ranks, index, folder, part.folder, workers), progress)
            write_documents(folder / part.folder, config)
    journal.remove()
    run.seal(
        folder,
        kind="checkpoint",
        source=made_of,
        options={**asdict(plan.options), "dtype": plan.dtype},
        versions=tool_versions("numpy", *(("torch",) if quantizer is not None or plan.imported else ())),
        files=digests,
    )


def reshard_checkpoint(
    given: Path,
    out: Path,
    options: ConvertOptions,
    *,
    progress: Progress = silent,
    force: bool = False,
    cache: Cache | None = None,
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
    run = reshard_run(cache or Cache(), given, options, progress)
    if run.quick_hit(out, force=force):
        return out
    require_sound(given, progress)
    if run.hit(out, force=force):
        return out
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
    with run.reading(), staged_dir(out, force=force) as folder:
        check_disk(out, folder, sum(rank.nbytes for *_, ranks in jobs for rank in ranks))
        digests: dict[str, str] = {}
        for part, old, new, ranks in jobs:
            place = folder / part
            place.mkdir(exist_ok=True)
            made = recut(ranks, old.headers, place, progress)
            config = resharded_config(old.config, old.family, old.spec, new)
            write_documents(place, {"config.json": config, **old.quant_cfg})
            digests |= {(place / name).relative_to(folder).as_posix(): digest for name, digest in made.items()}
        run.seal(
            folder,
            kind="checkpoint",
            source=describe_parent(given, jobs[0][1].options, dropped),
            options=asdict(jobs[0][2]),
            versions=tool_versions("numpy"),
            files=digests,
        )
    run.keep(out)
    return out
