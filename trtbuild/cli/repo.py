"""`trtbuild repo`: an engine becomes a Triton model repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtbuild.cli.options import ForceOpt
from trtbuild.cli.output import note

NAME = "repo"
PANEL = "Build"
EngineArg = Annotated[
    Path,
    typer.Argument(help="Engine (of `trtbuild engine`, or of trtllm-build); for llmapi a Hugging Face folder."),
]
OutputOpt = Annotated[Path, typer.Option("--output", "-o", help="Where the repository goes.")]
TokenizerOpt = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer", help="The Hugging Face model folder; its tokenizer files are copied.", show_default=False
    ),
]
TargetOpt = Annotated[
    str | None,
    typer.Option(help="llmapi: no engine, TensorRT-LLM's PyTorch backend. Default: the engine's.", show_default=False),
]
TpOpt = Annotated[int, typer.Option("--tp", min=1, help="tensor_parallel_size (llmapi only).")]
PpOpt = Annotated[int, typer.Option("--pp", min=1, help="pipeline_parallel_size (llmapi only).")]
LlmOpt = Annotated[
    list[str] | None,
    typer.Option("--llm", metavar="NAME=YAML", help="An argument of TensorRT-LLM's LLM class (llmapi only)."),
]
BatchOpt = Annotated[
    int | None,
    typer.Option(help="Largest batch of one request. Default: the engine's max_batch_size.", show_default=False),
]
KvTokensOpt = Annotated[
    int | None,
    typer.Option(
        "--max-tokens-in-kv", help="Tokens that the KV cache holds. Default: by free memory.", show_default=False
    ),
]
KvFractionOpt = Annotated[
    float | None,
    typer.Option(help="Share of free GPU memory for the KV cache (TensorRT only; 0.9 there).", show_default=False),
]
InstancesOpt = Annotated[
    int | None, typer.Option(help="Tokenizing processes. Default: 1 on the CPU, else 4.", show_default=False)
]
AddSpecialOpt = Annotated[bool, typer.Option(help="Let the tokenizer add BOS and the like to every prompt.")]
SkipSpecialOpt = Annotated[bool, typer.Option(help="Leave special tokens out of the text.")]
DecoupledOpt = Annotated[
    bool,
    typer.Option(help="Stream answers. Without it: one answer a request, also over unary calls (HTTP /infer)."),
]
BlsOpt = Annotated[
    bool, typer.Option("--bls", help="Also the model tensorrt_llm_bls: text to text, stop words in the text.")
]
AccumulateOpt = Annotated[
    bool,
    typer.Option("--accumulate-tokens", help="Streams of tensorrt_llm_bls or llmapi: all text so far, not pieces."),
]
ParameterOpt = Annotated[
    list[str] | None,
    typer.Option("--parameter", metavar="KEY=VALUE", help="Any other parameter of the tensorrt_llm model."),
]


def command(
    engine: EngineArg,
    output: OutputOpt,
    tokenizer: TokenizerOpt = None,
    target: TargetOpt = None,
    tp: TpOpt = 1,
    pp: PpOpt = 1,
    llm: LlmOpt = None,
    max_batch_size: BatchOpt = None,
    max_tokens_in_kv: KvTokensOpt = None,
    kv_mem_fraction: KvFractionOpt = None,
    preprocessing_instances: InstancesOpt = None,
    add_special_tokens: AddSpecialOpt = True,
    skip_special_tokens: SkipSpecialOpt = True,
    decoupled: DecoupledOpt = True,
    bls: BlsOpt = False,
    accumulate_tokens: AccumulateOpt = False,
    parameter: ParameterOpt = None,
    force: ForceOpt = False,
) -> None:
    """Write the Triton repository of an ENGINE: preprocessing, tensorrt_llm, postprocessing, ensemble."""
    from trtbuild.repo.options import RepositoryOptions
    from trtbuild.repo.write import write_repository

    if target == "llmapi":
        _write_llmapi(engine, output, (tp, pp), decoupled, accumulate_tokens, llm or [], force=force)
        return
    if target is not None:
        raise typer.BadParameter(
            f"{target!r}: the engine has its target; only llmapi is said here", param_hint="--target"
        )
    if tokenizer is None:
        raise typer.BadParameter("an engine's repository needs the tokenizer of its model", param_hint="--tokenizer")
    options = RepositoryOptions(
        triton_max_batch_size=max_batch_size,
        preprocessing_instances=preprocessing_instances,
        add_special_tokens=add_special_tokens,
        skip_special_tokens=skip_special_tokens,
        decoupled=decoupled,
        bls=bls,
        accumulate_tokens=accumulate_tokens,
        max_tokens_in_paged_kv_cache=max_tokens_in_kv,
        kv_cache_free_gpu_mem_fraction=kv_mem_fraction,
        parameters=_pairs(parameter or []),
    )
    facts = write_repository(engine, output, tokenizer, options, force=force)
    note(f"repository {output} for the {facts.target} engine {engine} ({facts.world_size} rank(s))")
    note(f"next: trtbuild serve {output}")


def _write_llmapi(
    model: Path, output: Path, sizes: tuple[int, int], decoupled: bool, accumulate: bool, llm: list[str], *, force: bool
) -> None:
    from trtbuild.repo.llmapi import LlmApiOptions, llm_arguments, write_llmapi_repository

    arguments = llm_arguments(_pairs(llm, "--llm"))
    write_llmapi_repository(model, output, LlmApiOptions(*sizes, decoupled, accumulate, arguments), force=force)
    note(f"repository {output} for {model} on TensorRT-LLM's PyTorch backend")


def _pairs(texts: list[str], option: str = "--parameter") -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint=option)
        pairs[key] = value
    return pairs
