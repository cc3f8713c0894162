"""`trtbuild repo`: an engine becomes a Triton model repository, or a part of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trtbuild.cli.output import note

NAME = "repo"
PANEL = "Build"
_MORE = "Several models in one repository"
_SERVING = "Serving"


def command(
    engine: Annotated[Path, typer.Argument(help="Engine directory (of `trtbuild engine`, or of trtllm-build).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the repository goes.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", help="The Hugging Face model folder; its tokenizer files are copied."),
    ] = None,
    name: Annotated[
        str, typer.Option(help="Goes before the models' names: `llama` gives llama_ensemble.", rich_help_panel=_MORE)
    ] = "",
    add: Annotated[
        bool, typer.Option("--add", help="Add to the repository that is there.", rich_help_panel=_MORE)
    ] = False,
    model_version: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="With --add: the engine is this version of tensorrt_llm; the other models stay (cpu target).",
            show_default=False,
            rich_help_panel=_MORE,
        ),
    ] = None,
    version_policy: Annotated[
        str, typer.Option(help="Versions that the server loads: latest, latest:N, all, or 1,3.", rich_help_panel=_MORE)
    ] = "latest",
    bls: Annotated[
        bool, typer.Option(help="With tensorrt_llm_bls, the ensemble in one Python model.", rich_help_panel=_SERVING)
    ] = True,
    accumulate_tokens: Annotated[
        bool,
        typer.Option(help="tensorrt_llm_bls streams the text so far, not what is new.", rich_help_panel=_SERVING),
    ] = False,
    bls_instances: Annotated[
        int | None,
        typer.Option(help="Processes of tensorrt_llm_bls. Default: 1.", show_default=False, rich_help_panel=_SERVING),
    ] = None,
    preprocessing_instances: Annotated[
        int | None,
        typer.Option(
            help="Tokenizing processes. Default: 1 on the CPU, else 4.", show_default=False, rich_help_panel=_SERVING
        ),
    ] = None,
    decoupled: Annotated[
        bool, typer.Option(help="Answers can be streamed; without it a request has one.", rich_help_panel=_SERVING)
    ] = True,
    max_batch_size: Annotated[
        int | None,
        typer.Option(
            help="Largest batch of one request. Default: the engine's max_batch_size; 1 when not decoupled.",
            show_default=False,
            rich_help_panel=_SERVING,
        ),
    ] = None,
    max_queue_delay_microseconds: Annotated[
        int, typer.Option(min=0, help="How long requests wait for others.", rich_help_panel=_SERVING)
    ] = 0,
    max_queue_size: Annotated[
        int, typer.Option(min=0, help="Requests that may wait; 0: any number.", rich_help_panel=_SERVING)
    ] = 0,
    batch_scheduler_policy: Annotated[
        str | None,
        typer.Option(
            help="guaranteed_no_evict (the backend's default) or max_utilization.",
            show_default=False,
            rich_help_panel=_SERVING,
        ),
    ] = None,
    exclude_input_in_output: Annotated[
        bool,
        typer.Option(
            help="Answers in one piece come without the prompt, unless the request says.", rich_help_panel=_SERVING
        ),
    ] = False,
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
    add_special_tokens: Annotated[
        bool, typer.Option(help="Let the tokenizer add BOS and the like to every prompt.")
    ] = True,
    skip_special_tokens: Annotated[bool, typer.Option(help="Leave special tokens out of the text.")] = True,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", metavar="KEY=VALUE", help="Any other parameter of the tensorrt_llm model."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an output that exists.")] = False,
) -> None:
    """Write the Triton repository of an ENGINE: preprocessing, tensorrt_llm, postprocessing, ensemble, BLS."""
    from trtbuild.repo.options import RepositoryOptions

    options = RepositoryOptions(
        name=name,
        triton_max_batch_size=max_batch_size,
        preprocessing_instances=preprocessing_instances,
        bls=bls,
        bls_instances=bls_instances,
        accumulate_tokens=accumulate_tokens,
        version_policy=version_policy,
        add_special_tokens=add_special_tokens,
        skip_special_tokens=skip_special_tokens,
        exclude_input_in_output=exclude_input_in_output,
        decoupled=decoupled,
        max_queue_delay_microseconds=max_queue_delay_microseconds,
        max_queue_size=max_queue_size,
        max_tokens_in_paged_kv_cache=max_tokens_in_kv,
        kv_cache_free_gpu_mem_fraction=kv_mem_fraction,
        batch_scheduler_policy=batch_scheduler_policy,
        parameters=_pairs(parameter or []),
    )
    if add and force:
        raise typer.BadParameter("--add never writes over anything; leave --force out", param_hint="--add")
    if model_version is not None and not add:
        raise typer.BadParameter("goes with --add", param_hint="--model-version")
    facts = _write(engine, output, tokenizer, options, model_version if add else None, add=add, force=force)
    what = f"version {model_version} in" if model_version else "more models in" if add else "repository"
    note(f"{what} {output} for the {facts.target} engine {engine} ({facts.world_size} rank(s))")
    note(f"next: trtbuild serve {output}")


def _write(
    engine: Path,
    output: Path,
    tokenizer: Path | None,
    options: Any,
    version: int | None,
    *,
    add: bool,
    force: bool,
) -> Any:
    from trtbuild.repo.add import add_models, add_version
    from trtbuild.repo.write import write_repository

    if version is not None:
        if tokenizer is not None:
            raise typer.BadParameter("a new version keeps the tokenizer that is there", param_hint="--tokenizer")
        return add_version(engine, output, version, options)
    if tokenizer is None:
        raise typer.BadParameter("is missing: the Hugging Face model folder", param_hint="--tokenizer")
    if add:
        return add_models(engine, output, tokenizer, options)
    return write_repository(engine, output, tokenizer, options, force=force)


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--parameter")
        pairs[key] = value
    return pairs
