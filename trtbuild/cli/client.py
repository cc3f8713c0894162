"""`trtbuild client ...`: questions to a running server, and loading of models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtbuild.cli.options import JsonOpt
from trtbuild.cli.output import data, note, print_json
from trtbuild.cli.sampling import DEFAULT_URL, Url
from trtbuild.errors import ServerError

if TYPE_CHECKING:
    from trtbuild.client import Client

app = typer.Typer(help="Ask a running server: live, ready, metadata, config, statistics; load and unload models.")
ModelArg = Annotated[str, typer.Argument(metavar="[MODEL]", help="Name of a model.", show_default=False)]
NamedArg = Annotated[str, typer.Argument(metavar="MODEL", help="Name of a model.")]
TimeoutOpt = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for an answer.")]
HeaderOpt = Annotated[list[str] | None, typer.Option("--header", metavar="NAME:VALUE", show_default=False)]
TlsOpt = Annotated[
    Path | None, typer.Option("--ca", help="Root certificates (PEM): the server speaks TLS.", show_default=False)
]


def _ask(url: str, timeout: float, header: list[str] | None, ca: Path | None, question: Callable[[Client], Any]) -> Any:
    from trtbuild.client import Client, Reach, Tls

    pairs = [text.partition(":") for text in header or ()]
    if bad := [name for name, colon, _ in pairs if not colon or not name]:
        raise typer.BadParameter(f"{bad[0]!r} is not NAME:VALUE", param_hint="--header")
    headers = {name.strip(): value.strip() for name, _, value in pairs}
    reach = Reach(Tls(ca) if ca else None, headers, timeout)
    with Client(url.split(","), reach=reach) as client:
        return question(client)


@app.command()
def live(
    url: Url = DEFAULT_URL,
    timeout: TimeoutOpt = 2.0,
    header: HeaderOpt = None,
    ca: TlsOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Exit code 0 where the server lives."""
    _yes_or_no("live", _ask(url, timeout, header, ca, lambda client: client.live()), as_json)


@app.command()
def ready(
    model: ModelArg = "",
    url: Url = DEFAULT_URL,
    timeout: TimeoutOpt = 2.0,
    header: HeaderOpt = None,
    ca: TlsOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Exit code 0 where the server, or MODEL, takes requests."""
    answer = _ask(url, timeout, header, ca, lambda client: client.model_ready(model) if model else client.ready())
    _yes_or_no("ready", answer, as_json)


@app.command()
def metadata(
    model: ModelArg = "",
    url: Url = DEFAULT_URL,
    timeout: TimeoutOpt = 2.0,
    header: HeaderOpt = None,
    ca: TlsOpt = None,
) -> None:
    """Metadata of the server, or of MODEL: its tensors. JSON."""
    print_json(_ask(url, timeout, header, ca, lambda client: client.metadata(model)))


@app.command()
def config(
    model: NamedArg, url: Url = DEFAULT_URL, timeout: TimeoutOpt = 2.0, header: HeaderOpt = None, ca: TlsOpt = None
) -> None:
    """The configuration with which MODEL was loaded. JSON."""
    print_json(_ask(url, timeout, header, ca, lambda client: client.config(model)))


@app.command()
def statistics(
    model: ModelArg = "",
    url: Url = DEFAULT_URL,
    timeout: TimeoutOpt = 2.0,
    header: HeaderOpt = None,
    ca: TlsOpt = None,
) -> None:
    """Counts and times of requests, of MODEL or of all models. JSON."""
    print_json(_ask(url, timeout, header, ca, lambda client: client.statistics(model)))


@app.command()
def index(
    url: Url = DEFAULT_URL,
    timeout: TimeoutOpt = 2.0,
    header: HeaderOpt = None,
    ca: TlsOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """The models of the repository, and their states."""
    models = _ask(url, timeout, header, ca, lambda client: client.index())
    if as_json:
        print_json({"schema": 1, "models": models})
        return
    for model in models:
        data.print(f"{model['name']} {model['version']} {model['state']} {model['reason']}".rstrip(), markup=False)


@app.command()
def load(
    model: NamedArg,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="JSON file with another configuration.", show_default=False)
    ] = None,
    url: Url = DEFAULT_URL,
    timeout: TimeoutOpt = 2.0,
    header: HeaderOpt = None,
    ca: TlsOpt = None,
) -> None:
    """Load or reload MODEL; the server needs explicit model control."""
    other = _json(config_file) if config_file else None
    _ask(url, timeout, header, ca, lambda client: client.load(model, other))
    note(f"loaded {model}")


@app.command()
def unload(
    model: NamedArg, url: Url = DEFAULT_URL, timeout: TimeoutOpt = 2.0, header: HeaderOpt = None, ca: TlsOpt = None
) -> None:
    """Unload MODEL; the server needs explicit model control."""
    _ask(url, timeout, header, ca, lambda client: client.unload(model))
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
        data.print("yes" if answer else "no")
    if not answer:
        raise typer.Exit(ServerError.exit_code)
