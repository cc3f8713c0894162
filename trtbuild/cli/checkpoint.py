"""`trtbuild checkpoint`: a TensorRT-LLM checkpoint, one file per rank."""

from __future__ import annotations

from pathlib import Path

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
    MpiOpt,
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
    WorkersOpt,
    convert_options,
)
from trtbuild.cli.output import note, progress_bar
from trtbuild.manifest import read_manifest
from trtbuild.spec import AUTO, CALIBRATION, CalibrationOptions, ConvertOptions

NAME = "checkpoint"
PANEL = "Build"


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
    parallel_embedding: ParallelEmbeddingOpt = False,
    embedding_dim: EmbeddingDimOpt = 0,
    embedding_sharing: EmbeddingSharingOpt = False,
    moe_tp: MoeTpOpt = None,
    moe_ep: MoeEpOpt = None,
    sm: SmOpt = None,
    revision: RevisionOpt = None,
    workers: WorkersOpt = 0,
    mpi: MpiOpt = False,
    allow_pickle: AllowPickleOpt = False,
    force: ForceOpt = False,
    locked: LockedOpt = None,
    no_cache: NoCacheOpt = False,
) -> None:
    """Convert a model, or re-shard a checkpoint, to a TensorRT-LLM checkpoint: config.json and rankN.safetensors.

    With --target llmapi it is a Hugging Face checkpoint in ModelOpt's layout, for trtllm-serve and vLLM.

    A run that was killed or interrupted is resumed by the same command: what it had finished is verified and kept.
    """
    embedding = (parallel_embedding, embedding_dim, embedding_sharing)
    options = convert_options(
        tp, pp, dtype, quant, target, *embedding, moe_tp, moe_ep, group_size, kv_cache, sm, quant_layer, lm_head
    )
    calibration = CalibrationOptions(calib, calib_samples, calib_length, calib_seed, calib_chat, calib_search)
    asked = settled(Asked(model, revision, options, calibration, allow_pickle), NAME, locked, no_cache)
    _make(asked, output, workers, mpi, force)


def _make(asked: Asked, output: Path, workers: int, mpi: bool, force: bool) -> None:
    from trtbuild import pipeline

    try:
        with progress_bar("checkpoint") as progress:
            made = pipeline.make_checkpoint(
                asked.source,
                output,
                asked.options,
                progress=progress,
                force=force,
                workers=workers,
                mpi=mpi,
                **asked.shared,
            )
    except KeyboardInterrupt:
        note("what was finished is kept beside the output; the same command goes on from there")
        raise
    for text in asked.cache.notes:
        note(text)
    _say(made, asked.options)


def _say(made: Path, options: ConvertOptions) -> None:
    for text in (read_manifest(made).get("source") or {}).get("imported", {}).get("notes", []):
        note(text)
    if options.target == "llmapi":
        note(f"Hugging Face checkpoint in {made}")
        note(f"next: trtllm-serve {made}, or vllm serve {made}, on a GPU host")
        return
    ranks = "1 rank" if options.world_size == 1 else f"{options.world_size} ranks"
    note(f"checkpoint of {ranks} in {made}")
