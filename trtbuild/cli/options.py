"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from trtbuild.layout import DTYPES
from trtbuild.quantize.methods import METHODS
from trtbuild.spec import AUTO, KV_CACHES, SEARCHES, SMS, TARGETS, ConvertOptions, LayerMethod


def _choice(what: str, value: str, allowed: list[str]) -> str:
    if value not in allowed:
        raise typer.BadParameter(f"unknown {what} {value!r}; supported: {', '.join(allowed)}")
    return value


def _dtype(value: str) -> str:
    return _choice("dtype", value, ["auto", *DTYPES])


def _quant(value: str) -> str:
    return _choice("quantization", value, [AUTO, *METHODS])


def _sm(value: int | None) -> int | None:
    if value is not None:
        _choice("SM", str(value), [str(sm) for sm in SMS])
    return value


def _kv_cache(value: str) -> str:
    return _choice("KV cache", value, list(KV_CACHES))


def _search(value: str) -> str:
    return _choice("search", value, list(SEARCHES))


def _target(value: str) -> str:
    return _choice("target", value, list(TARGETS))


ModelArg = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Model folder, or hub id ORG/NAME or ORG/NAME@REVISION.", show_default=False),
]
LockableModelArg = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="Model folder, or hub id ORG/NAME or ORG/NAME@REVISION; not needed where --locked names one of the hub.",
        show_default=False,
    ),
]
LockedOpt = Annotated[
    Path | None,
    typer.Option(
        "--locked",
        metavar="LOCK",
        help="Make again what a trtbuild.lock.json, or the artefact with it, names: with its options, and only if "
        "sources, versions and the bytes that come out are the same.",
        show_default=False,
    ),
]
NoCacheOpt = Annotated[
    bool, typer.Option("--no-cache", help="Make it anew, and do not keep it in the cache (TRTBUILD_NO_CACHE=1).")
]
OutputOpt = Annotated[
    Path, typer.Option("-o", "--output", metavar="DIR", help="Directory to make.", show_default=False)
]
TpOpt = Annotated[int, typer.Option("--tp", min=1, metavar="N", help="Tensor-parallel ranks.")]
PpOpt = Annotated[int, typer.Option("--pp", min=1, metavar="N", help="Pipeline stages.")]
DtypeOpt = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="NAME",
        callback=_dtype,
        autocompletion=lambda: ["auto", *DTYPES],
        help=f"{', '.join(DTYPES)}, or auto: the model's own, float32 becoming float16.",
    ),
]
QuantOpt = Annotated[
    str,
    typer.Option(
        "--quant",
        metavar="NAME",
        callback=_quant,
        autocompletion=lambda: [AUTO, *METHODS],
        help=f"Quantization: {', '.join(METHODS)}; auto: what a quantized model has already, else none.",
    ),
]
GroupSizeOpt = Annotated[
    int, typer.Option("--group-size", min=1, metavar="N", help="Inputs that share a scale (int4_awq, w4a8_awq).")
]
QuantLayerOpt = Annotated[
    list[str],
    typer.Option(
        "--quant-layer",
        metavar="PATTERN=NAME",
        help="Another method for some linears, repeatable; the last pattern that matches counts. NAME may end in "
        "':64' or ':128', its group size. Example: '*.mlp.proj=fp8', 'transformer.layers.0.*=none'.",
        show_default=False,
    ),
]
KvCacheOpt = Annotated[
    str,
    typer.Option(
        "--kv-cache",
        metavar="NAME",
        callback=_kv_cache,
        autocompletion=lambda: list(KV_CACHES),
        help=f"Quantization of the KV cache: {', '.join(KV_CACHES)}.",
    ),
]
CalibOpt = Annotated[
    Path | None,
    typer.Option(
        "--calib",
        metavar="PATH",
        help="Text to calibrate on: a .txt or .jsonl file, or a folder of them.",
        show_default="bundled English",
    ),
]
CalibSamplesOpt = Annotated[
    int | None,
    typer.Option(
        "--calib-samples", min=1, metavar="N", help="Calibration samples.", show_default="32 for AWQ, else 128"
    ),
]
CalibLengthOpt = Annotated[
    int | None,
    typer.Option("--calib-length", min=1, metavar="N", help="Tokens of each of them.", show_default="512"),
]
CalibSeedOpt = Annotated[int, typer.Option("--calib-seed", metavar="N", help="Which samples the text gives.")]
CalibSearchOpt = Annotated[
    str,
    typer.Option(
        "--calib-search",
        metavar="NAME",
        callback=_search,
        autocompletion=lambda: list(SEARCHES),
        help="fine: searches more scales than ModelOpt; modelopt: its numbers; compensate: GPTQ's rounding, slow.",
    ),
]
CalibChatOpt = Annotated[bool, typer.Option("--calib-chat", help="Put the text through the model's chat template.")]
TargetOpt = Annotated[
    str,
    typer.Option(
        "--target",
        metavar="NAME",
        callback=_target,
        autocompletion=lambda: list(TARGETS),
        help=f"What runs the engine: {', '.join(TARGETS)}.",
    ),
]
ParallelEmbeddingOpt = Annotated[
    bool, typer.Option("--use-parallel-embedding", help="Share the embedding table among the tensor-parallel ranks.")
]
EmbeddingDimOpt = Annotated[
    int,
    typer.Option(
        "--embedding-sharding-dim", min=0, max=1, help="Share it by vocabulary rows (0) or hidden columns (1)."
    ),
]
EmbeddingSharingOpt = Annotated[
    bool,
    typer.Option(
        "--use-embedding-sharing",
        help="Say in config.json that lm_head is the embedding table (tied models; lm_head is written all the same).",
    ),
]
MoeTpOpt = Annotated[
    int | None,
    typer.Option("--moe-tp", min=1, metavar="N", help="Ranks that cut each expert; times moe-ep it is tp."),
]
MoeEpOpt = Annotated[
    int | None,
    typer.Option("--moe-ep", min=1, metavar="N", help="Ranks that share the experts; times moe-tp it is tp."),
]
LmHeadOpt = Annotated[
    bool,
    typer.Option("--quantize-lm-head", help="Quantize lm_head too, as --quant or --quant-layer lm_head=METHOD says."),
]
SmOpt = Annotated[
    int | None,
    typer.Option(
        "--sm",
        metavar="N",
        callback=_sm,
        help=f"GPU that it is for: {', '.join(map(str, SMS))}. GPTQ weights are laid out for it (unnamed: as for all "
        "but 90), and what it cannot run is refused.",
        show_default=False,
    ),
]
RevisionOpt = Annotated[
    str | None,
    typer.Option("--revision", metavar="REV", help="Branch, tag or commit of a hub model.", show_default=False),
]
AllowPickleOpt = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Read PyTorch's .bin files where there are no safetensors; only for models that you trust.",
    ),
]
WorkersOpt = Annotated[
    int, typer.Option("--workers", min=0, metavar="N", help="Threads that convert; 0: one a core. Same bytes.")
]
MpiOpt = Annotated[
    bool,
    typer.Option("--mpi", help="Share the ranks among the processes of mpirun: mpirun -n N trtbuild checkpoint ..."),
]
ForceOpt = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Machine-readable JSON on stdout.")]


def convert_options(
    tp: int,
    pp: int,
    dtype: str,
    quant: str,
    target: str,
    parallel_embedding: bool = False,
    embedding_dim: int = 0,
    embedding_sharing: bool = False,
    moe_tp: int | None = None,
    moe_ep: int | None = None,
    group_size: int = ConvertOptions.group_size,
    kv_cache: str = ConvertOptions.kv_cache,
    sm: int | None = None,
    quant_layer: Sequence[str] = (),
    lm_head: bool = ConvertOptions.quantize_lm_head,
) -> ConvertOptions:
    """The options of one conversion, from a command's parameters."""
    embedding = (parallel_embedding, embedding_dim, embedding_sharing)
    layers = layer_methods(quant_layer)
    experts = (moe_tp, moe_ep)
    return ConvertOptions(tp, pp, dtype, quant, target, *embedding, *experts, group_size, kv_cache, sm, layers, lm_head)


def layer_methods(values: Sequence[str]) -> tuple[LayerMethod, ...]:
    """PATTERN=NAME or PATTERN=NAME:GROUP -> LayerMethod, in their order.

    Raises:
        typer.BadParameter: a value of another form, or a method that does not exist.
    """
    found = []
    for value in values:
        pattern, _, method = value.rpartition("=")
        name, colon, group = method.partition(":")
        if not pattern.strip() or (colon and not group.isdecimal()):
            raise typer.BadParameter(f"--quant-layer {value!r} is not PATTERN=NAME or PATTERN=NAME:GROUP")
        name = _choice("quantization", name.strip(), list(METHODS))
        found.append(LayerMethod(pattern.strip(), name, int(group) if colon else None))
    return tuple(found)
