"""`trtbuild repo`: an engine becomes a Triton model repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtbuild.cli.output import note

NAME = "repo"
PANEL = "Build"


def command(
    engine: Annotated[Path, typer.Argument(help="Engine directory (of `trtbuild engine`, or of trtllm-build).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the repository goes.")],
    tokenizer: Annotated[
        Path, typer.Option("--tokenizer", help="The Hugging Face model folder; its tokenizer files are copied.")
    ],
    max_batch_size: Annotated[
        int | None,
        typer.Option(help="Largest batch of one request. Default: the engine's max_batch_size.", show_default=False),
    ] = None,
    max_tokens_in_kv: Annotated[
        int | None,
        typer.Option(
            "--max-tokens-in-kv", help="Tokens that the KV cache holds. Default: by free memory.", show_default=False
        ),
    ] = None,
    kv_mem_fraction: Annotated[
        float | None,
        typer.Option(help="Share of free GPU memory for the KV cache (TensorRT only; 0.9 there).", show_default=False),
    ] = None,
    preprocessing_instances: Annotated[
        int | None, typer.Option(help="Tokenizing processes. Default: 1 on the CPU, else 4.", show_default=False)
    ] = None,
    add_special_tokens: Annotated[
        bool, typer.Option(help="Let the tokenizer add BOS and the like to every prompt.")
    ] = True,
    skip_special_tokens: Annotated[bool, typer.Option(help="Leave special tokens out of the text.")] = True,
    decoupled: Annotated[
        bool,
        typer.Option(help="Stream answers. Without it: one answer a request, also over unary calls (HTTP /infer)."),
    ] = True,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", metavar="KEY=VALUE", help="Any other parameter of the tensorrt_llm model."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an output that exists.")] = False,
) -> None:
    """Write the Triton repository of an ENGINE: preprocessing, tensorrt_llm, postprocessing, ensemble."""
    from trtbuild.repo.options import RepositoryOptions
    from trtbuild.repo.write import write_repository

    options = RepositoryOptions(
        triton_max_batch_size=max_batch_size,
        preprocessing_instances=preprocessing_instances,
        add_special_tokens=add_special_tokens,
        skip_special_tokens=skip_special_tokens,
        decoupled=decoupled,
        max_tokens_in_paged_kv_cache=max_tokens_in_kv,
        kv_cache_free_gpu_mem_fraction=kv_mem_fraction,
        parameters=_pairs(parameter or []),
    )
    facts = write_repository(engine, output, tokenizer, options, force=force)
    note(f"repository {output} for the {facts.target} engine {engine} ({facts.world_size} rank(s))")
    note(f"next: trtbuild serve {output}")


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--parameter")
        pairs[key] = value
    return pairs
