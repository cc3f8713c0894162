"""`trtbuild engine`: from a model, or a checkpoint, to an engine."""

from __future__ import annotations

from pathlib import Path

import typer

from trtbuild.cli.engine_options import (
    DryRunOpt,
    EngineJsonOpt,
    HangOpt,
    HostfileOpt,
    LauncherOpt,
    LogDirOpt,
    MaxBatchSizeOpt,
    MaxNumTokensOpt,
    MaxSeqLenOpt,
    ModeOpt,
    ProcessesOpt,
    SetOpt,
    TimeoutOpt,
    TimingCacheOpt,
    launch_options,
)
from trtbuild.cli.locked import Asked, settled
from trtbuild.cli.options import (
    AllowPickleOpt,
    CalibChatOpt,
    CalibLengthOpt,
    CalibOpt,
    CalibSamplesOpt,
    CalibSearchOpt,
    CalibSeedOpt,
    DtypeOpt,
    EmbeddingDimOpt,
    EmbeddingSharingOpt,
    ForceOpt,
    GroupSizeOpt,
    KvCacheOpt,
    LmHeadOpt,
    LockableModelArg,
    LockedOpt,
    MoeEpOpt,
    MoeTpOpt,
    NoCacheOpt,
    OutputOpt,
    ParallelEmbeddingOpt,
    PpOpt,
    QuantLayerOpt,
    QuantOpt,
    RevisionOpt,
    SmOpt,
    TargetOpt,
    TpOpt,
    convert_options,
)
from trtbuild.cli.output import note, print_json, progress_bar
from trtbuild.engine.options import BuildOptions, LaunchOptions
from trtbuild.engine.tensorrt.settings import with_settings
from trtbuild.spec import AUTO, CALIBRATION, CalibrationOptions, ConvertOptions

NAME = "engine"
PANEL = "Build"
_USUAL = LaunchOptions()


def command(
    output: OutputOpt,
    model: LockableModelArg = None,
    tp: TpOpt = 1,
    pp: PpOpt = 1,
    dtype: DtypeOpt = "auto",
    quant: QuantOpt = AUTO,
    quant_layer: QuantLayerOpt = [],  # noqa: B006
    group_size: GroupSizeOpt = ConvertOptions.group_size,
    kv_cache: KvCacheOpt = ConvertOptions.kv_cache,
    lm_head: LmHeadOpt = False,
    calib: CalibOpt = CALIBRATION.text,
    calib_samples: CalibSamplesOpt = CALIBRATION.samples,
    calib_length: CalibLengthOpt = CALIBRATION.length,
    calib_seed: CalibSeedOpt = CALIBRATION.seed,
    calib_search: CalibSearchOpt = CALIBRATION.search,
    calib_chat: CalibChatOpt = CALIBRATION.chat,
    target: TargetOpt = "cpu",
    max_batch_size: MaxBatchSizeOpt = None,
    max_seq_len: MaxSeqLenOpt = None,
    max_num_tokens: MaxNumTokensOpt = None,
    parallel_embedding: ParallelEmbeddingOpt = False,
    embedding_dim: EmbeddingDimOpt = 0,
    embedding_sharing: EmbeddingSharingOpt = False,
    moe_tp: MoeTpOpt = None,
    moe_ep: MoeEpOpt = None,
    sm: SmOpt = None,
    revision: RevisionOpt = None,
    allow_pickle: AllowPickleOpt = False,
    force: ForceOpt = False,
    settings: SetOpt = [],  # noqa: B006
    mode: ModeOpt = _USUAL.mode,
    launcher: LauncherOpt = _USUAL.launcher,
    processes: ProcessesOpt = None,
    hostfile: HostfileOpt = None,
    timeout: TimeoutOpt = _USUAL.timeout_s,
    hang: HangOpt = _USUAL.hang_s,
    timing_cache: TimingCacheOpt = None,
    log_dir: LogDirOpt = None,
    dry_run: DryRunOpt = False,
    as_json: EngineJsonOpt = False,
    locked: LockedOpt = None,
    no_cache: NoCacheOpt = False,
) -> None:
    """Build an engine: one process a rank, under mpirun or srun.

    MODEL may also be a TensorRT-LLM checkpoint; its own layout, dtype and quantization then hold.
    """
    embedding = (parallel_embedding, embedding_dim, embedding_sharing)
    options = convert_options(
        tp, pp, dtype, quant, target, *embedding, moe_tp, moe_ep, group_size, kv_cache, sm, quant_layer, lm_head
    )
    limits = with_settings(BuildOptions(max_batch_size, max_seq_len, max_num_tokens), settings)
    launch = launch_options(mode, launcher, processes, hostfile, timeout, hang, timing_cache, log_dir)
    calibration = CalibrationOptions(calib, calib_samples, calib_length, calib_seed, calib_chat, calib_search)
    asked = settled(Asked(model, revision, options, calibration, allow_pickle, limits), NAME, locked, no_cache)
    if dry_run or as_json:
        _show(asked, output, launch, dry_run, as_json)
    else:
        _make(asked, output, launch, force)


def _make(asked: Asked, output: Path, launch: LaunchOptions, force: bool) -> None:
    from trtbuild import pipeline

    if asked.options.target == "cpu" and launch != _USUAL:
        raise typer.BadParameter("options of the TensorRT build need --target tensorrt")
    with progress_bar("engine") as progress:
        made = pipeline.make_engine(
            asked.source,
            output,
            asked.options,
            asked.limits,
            progress=progress,
            force=force,
            launch=launch,
            warn=lambda text: note(f"warning: {text}"),
            **asked.shared,
        )
    for text in asked.cache.notes:
        note(text)
    note(f"engine of {len(list(made.rglob('rank*.engine')))} rank(s) in {made}")


def _show(asked: Asked, output: Path, launch: LaunchOptions, dry_run: bool, as_json: bool) -> None:
    """The dry run: what would run and be written."""
    from trtbuild import pipeline
    from trtbuild.cli.engine_plan import document, show

    if not dry_run or asked.options.target != "tensorrt":
        raise typer.BadParameter("--dry-run is for --target tensorrt, and --json for --dry-run")
    plan = pipeline.plan_engine(asked.source, asked.options, asked.limits, launch, **asked.shared)
    if as_json:
        print_json(document(plan, output))
    else:
        show(plan, output)
