"""`trtbuild client ...`: questions to a running server, and loading of models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtbuild.cli.options import JsonOpt
from trtbuild.cli.output import line, note, print_json
from trtbuild.cli.sampling import DEFAULT_URL, Url
from trtbuild.errors import ServerError

if TYPE_CHECKING:
    from trtbuild.client import Client

app = typer.Typer()
ModelArg = Annotated[str, typer.Argument(metavar="[MODEL]", help="Name of a model.", show_default=False)]
NamedArg = Annotated[str, typer.Argument(metavar="MODEL", help="Name of a model.")]


@app.callback()
def connection(
    context: typer.Context,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for an answer.")] = 2.0,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", metavar="NAME:VALUE", help="Sent with each question, repeatable.", show_default=False),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", help="Root certificates (PEM): the server speaks TLS.", show_default=False)
    ] = None,
) -> None:
    """Ask a running server: live, ready, metadata, config, statistics; load and unload models."""
    from trtbuild.client import Reach, Tls

    pairs = [text.partition(":") for text in header or ()]
    if bad := [name for name, colon, _ in pairs if not colon or not name]:
        raise typer.BadParameter(f"{bad[0]!r} is not NAME:VALUE", param_hint="--header")
    headers = {name.strip(): value.strip() for name, _, value in pairs}
    context.obj = Reach(Tls(ca) if ca else None, headers, timeout)


def _ask(context: typer.Context, url: str, question: Callable[[Client], Any]) -> Any:
    from trtbuild.client import Client

    with Client(url.split(","), reach=context.obj) as client:
        return question(client)


@app.command()
def live(
    context: typer.Context,
    url: Url = DEFAULT_URL,
    as_json: JsonOpt = False,
) -> None:
    """Exit code 0 where the server lives."""
    _yes_or_no("live", _ask(context, url, lambda client: client.live()), as_json)


@app.command()
def ready(
    context: typer.Context,
    model: ModelArg = "",
    url: Url = DEFAULT_URL,
    as_json: JsonOpt = False,
) -> None:
    """Exit code 0 where the server, or MODEL, takes requests."""
    answer = _ask(context, url, lambda client: client.model_ready(model) if model else client.ready())
    _yes_or_no("ready", answer, as_json)


@app.command()
def metadata(
    context: typer.Context,
    model: ModelArg = "",
    url: Url = DEFAULT_URL,
) -> None:
    """Metadata of the server, or of MODEL: its tensors. JSON."""
    print_json(_ask(context, url, lambda client: client.metadata(model)))


@app.command()
def config(
    context: typer.Context,
    model: NamedArg,
    url: Url = DEFAULT_URL,
) -> None:
    """The configuration with which MODEL was loaded. JSON."""
    print_json(_ask(context, url, lambda client: client.config(model)))


@app.command()
def statistics(
    context: typer.Context,
    model: ModelArg = "",
    url: Url = DEFAULT_URL,
) -> None:
    """Counts and times of requests, of MODEL or of all models. JSON."""
    print_json(_ask(context, url, lambda client: client.statistics(model)))


@app.command()
def index(
    context: typer.Context,
    url: Url = DEFAULT_URL,
    as_json: JsonOpt = False,
) -> None:
    """The models of the repository, and their states."""
    models = _ask(context, url, lambda client: client.index())
    if as_json:
        print_json({"schema": 1, "models": models})
        return
    for model in models:
        line(f"{model['name']} {model['version']} {model['state']} {model['reason']}".rstrip())


@app.command()
def load(
    context: typer.Context,
    model: NamedArg,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="JSON file with another configuration.", show_default=False)
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Load or reload MODEL; the server needs explicit model control."""
    other = _json(config_file) if config_file else None
    _ask(context, url, lambda client: client.load(model, other))
    note(f"loaded {model}")


@app.command()
def unload(
    context: typer.Context,
    model: NamedArg,
    url: Url = DEFAULT_URL,
) -> None:
    """Unload MODEL; the server needs explicit model control."""
    _ask(context, url, lambda client: client.unload(model))
    note(f"unloaded {model}")


def _json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"cannot read {path}: {error}", param_hint="--config") from error
    if not isinstance(loaded, dict):
        raise typer.BadParameter(f"{path} is not a JSON object", param_hint="--config")
    return loaded


def _yes_or_no(what: str, answer: bool, as_json: bool) -> None:
    if as_json:
        print_json({"schema": 1, what: answer})
    else:
        line("yes" if answer else "no")
    if not answer:
        raise typer.Exit(ServerError.exit_code)
