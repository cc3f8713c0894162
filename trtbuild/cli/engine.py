"""`trtbuild engine`: from a model, or a checkpoint, to an engine."""

from __future__ import annotations

from typing import Annotated

import typer

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
    ModelArg,
    MoeEpOpt,
    MoeTpOpt,
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
from trtbuild.cli.output import note, progress_bar
from trtbuild.engine.options import BuildOptions
from trtbuild.spec import AUTO, CALIBRATION, CalibrationOptions, ConvertOptions

NAME = "engine"
PANEL = "Build"


def command(
    model: ModelArg,
    output: OutputOpt,
    tp: TpOpt = 1,
    pp: PpOpt = 1,
    dtype: DtypeOpt = "auto",
    quant: QuantOpt = AUTO,
    quant_layer: QuantLayerOpt = [],  # noqa: B006
    group_size: GroupSizeOpt = ConvertOptions.group_size,
    kv_cache: KvCacheOpt = ConvertOptions.kv_cache,
    calib: CalibOpt = CALIBRATION.text,
    calib_samples: CalibSamplesOpt = CALIBRATION.samples,
    calib_length: CalibLengthOpt = CALIBRATION.length,
    calib_seed: CalibSeedOpt = CALIBRATION.seed,
    calib_search: CalibSearchOpt = CALIBRATION.search,
    calib_chat: CalibChatOpt = CALIBRATION.chat,
    target: TargetOpt = "cpu",
    max_batch_size: Annotated[
        int, typer.Option(min=1, help="Requests in flight at once.")
    ] = BuildOptions.max_batch_size,
    max_seq_len: Annotated[
        int | None, typer.Option(min=2, help="Longest prompt and output together.", show_default="of the model")
    ] = None,
    max_num_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of one step; longer prompts are cut into chunks.")
    ] = BuildOptions.max_num_tokens,
    parallel_embedding: ParallelEmbeddingOpt = False,
    embedding_dim: EmbeddingDimOpt = 0,
    embedding_sharing: EmbeddingSharingOpt = False,
    moe_tp: MoeTpOpt = None,
    moe_ep: MoeEpOpt = None,
    sm: SmOpt = 80,
    revision: RevisionOpt = None,
    allow_pickle: AllowPickleOpt = False,
    force: ForceOpt = False,
) -> None:
    """Build an engine: one process a rank, under mpirun.

    MODEL may also be a TensorRT-LLM checkpoint; its own layout, dtype and quantization then hold.
    """
    from trtbuild import pipeline

    embedding = (parallel_embedding, embedding_dim, embedding_sharing)
    options = convert_options(
        tp, pp, dtype, quant, target, *embedding, moe_tp, moe_ep, group_size, kv_cache, sm, quant_layer
    )
    limits = BuildOptions(max_batch_size, max_seq_len, max_num_tokens)
    with progress_bar("engine") as progress:
        made = pipeline.make_engine(
            model,
            output,
            options,
            limits,
            calibration=CalibrationOptions(calib, calib_samples, calib_length, calib_seed, calib_chat, calib_search),
            revision=revision,
            progress=progress,
            force=force,
            allow_pickle=allow_pickle,
        )
    note(f"engine of {len(list(made.glob('rank*.engine')))} rank(s) in {made}")
