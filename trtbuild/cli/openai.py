"""`trtbuild openai`: OpenAI's API in front of a running Triton server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtbuild.cli import sampling
from trtbuild.cli.output import note
from trtbuild.errors import ServerError

NAME = "openai"
PANEL = "Serve"


def command(
    url: sampling.Url = sampling.DEFAULT_URL,
    model: sampling.Model = "ensemble",
    repo: Annotated[
        Path | None, typer.Option(help="The repository that is served: its tokenizer has the chat template.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Another folder with the chat template.")] = None,
    served_model_name: Annotated[
        str | None, typer.Option(help="The model's name for clients. Default: that of --model.", show_default=False)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 9000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="Let in only who brings one of these keys (repeatable).", envvar="TRTBUILD_API_KEYS"),
    ] = None,
    default_max_tokens: Annotated[int, typer.Option(min=1, help="Where a request does not say.")] = 256,
    max_concurrency: Annotated[int, typer.Option(min=1, help="Completions at once; more get 429.")] = 256,
    max_body: Annotated[int, typer.Option(min=1000, help="Bytes of a body; larger ones get 413.")] = 2_000_000,
    max_prompt: Annotated[int, typer.Option(min=1, help="Characters of a prompt; longer ones get 413.")] = 1_000_000,
    guided: Annotated[
        bool, typer.Option("--guided", help="The server has guided decoding: allow JSON formats.")
    ] = False,
    stall_timeout: sampling.StallTimeout = 60.0,
) -> None:
    """OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models, /health (one real token), /metrics."""
    try:
        from trtbuild.openai.run import serve
    except ImportError as error:
        raise ServerError(f"{error.name} is not installed", hint="pip install 'trtbuild[openai]'") from error
    from trtbuild.openai.options import OpenAiOptions

    folder = tokenizer or (repo / "preprocessing" / "tokenizer" if repo is not None else None)
    options = OpenAiOptions(
        url,
        model,
        served_model_name or model,
        folder,
        tuple(key for text in api_key or () for key in text.split(",") if key),
        default_max_tokens,
        max_body,
        max_prompt,
        max_concurrency,
        guided,
        stall_timeout,
    )
    note(f"OpenAI API: http://{host}:{port}/v1, model {options.served_name}, Triton at {url}")
    serve(options, host, port)
