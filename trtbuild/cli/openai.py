"""`trtbuild openai`: OpenAI's API in front of a running Triton server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtbuild.cli import sampling
from trtbuild.cli.output import note
from trtbuild.cli.reach import connected
from trtbuild.errors import EngineError, ServerError

if TYPE_CHECKING:
    from trtbuild.openai.options import ServedModel

NAME = "openai"
PANEL = "Serve"


@connected
def command(
    reach: Any,
    url: sampling.Url = sampling.DEFAULT_URL,
    model: Annotated[
        str | None,
        typer.Option(help="Serve this model. Default: every ensemble of --repo, else ensemble.", show_default=False),
    ] = None,
    repo: Annotated[
        Path | None, typer.Option(help="The repository that is served: its tokenizers have the chat templates.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Another folder with the chat template.")] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            help="A model's name for clients, NAME or (repeatable) MODEL=NAME. Default: Triton's.", show_default=False
        ),
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

    models = _named(_models(repo, tokenizer, model), served_model_name or [])
    options = OpenAiOptions(
        url,
        models,
        tuple(key for text in api_key or () for key in text.split(",") if key),
        default_max_tokens,
        max_body,
        max_prompt,
        max_concurrency,
        guided,
        stall_timeout,
        reach,
    )
    note(f"OpenAI API: http://{host}:{port}/v1, model {', '.join(each.name for each in models)}, Triton at {url}")
    serve(options, host, port)


def _models(repo: Path | None, tokenizer: Path | None, model: str | None) -> list[ServedModel]:
    """What is served, by Triton's names."""
    from trtbuild.openai.options import ServedModel

    if repo is None:
        name = model or "ensemble"
        return [ServedModel(name, name, tokenizer)]
    from trtbuild.repo.text_models import choose, read_text_models

    found = choose(read_text_models(repo), model)
    if tokenizer is not None and len(found) > 1:
        said = f"is of one model; choose one with --model: {', '.join(each.name for each in found)}"
        raise typer.BadParameter(said, param_hint="--tokenizer")
    return [ServedModel(each.name, each.name, tokenizer or _with_template(each.name, each.tokenizer)) for each in found]


def _with_template(model: str, folder: Path) -> Path | None:
    """The folder where it has a chat template; a model without one serves plain completions."""
    from trtbuild.text.chat import load_chat_template

    try:
        load_chat_template(folder)
    except EngineError as error:
        note(f"{model} serves plain completions only: {error.message}")
        return None
    return folder


def _named(models: list[ServedModel], texts: list[str]) -> tuple[ServedModel, ...]:
    """The models by their names for clients; `texts`: NAME, where there is one model, or MODEL=NAME."""
    names = {each.model: each.model for each in models}
    for text in texts:
        model, equals, name = text.partition("=")
        if equals and model in names:
            names[model] = name
        elif len(models) == 1:
            names[models[0].model] = text
        else:
            said = f"{text!r} is not MODEL=NAME with one of {', '.join(names)}"
            raise typer.BadParameter(said, param_hint="--served-model-name")
    if not all(names.values()) or len(set(names.values())) < len(models):
        raise typer.BadParameter("every model needs a name of its own", param_hint="--served-model-name")
    return tuple(replace(each, name=names[each.model]) for each in models)
