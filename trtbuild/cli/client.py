"""`trtbuild client ...`: what the client library asks of a running server, from a shell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtbuild.cli import client_answers
from trtbuild.cli.filled import filled
from trtbuild.cli.options import JsonOpt
from trtbuild.cli.output import line, note, print_json
from trtbuild.cli.reach import OPTIONS, connected
from trtbuild.cli.sampling import DEFAULT_URL, Url
from trtbuild.errors import ServerError

if TYPE_CHECKING:
    from trtbuild.client import Client

app = typer.Typer()
ModelArg = Annotated[str, typer.Argument(metavar="[MODEL]", help="Name of a model.", show_default=False)]
NamedArg = Annotated[str, typer.Argument(metavar="MODEL", help="Name of a model.")]


@app.callback()
@filled("given", OPTIONS, dict)
def connection(context: typer.Context, given: Any) -> None:
    """Ask a running server: live, ready, metadata, config, statistics; prompts; load and unload models.

    Options of the connection may stand before or after the command.
    """
    context.default_map = dict.fromkeys(_COMMANDS, given)


def _ask(url: str, reach: Any, question: Callable[[Client], Any]) -> Any:
    from trtbuild.client import Client

    with Client(url.split(","), reach=reach) as client:
        return question(client)


@app.command()
@connected
def live(reach: Any, url: Url = DEFAULT_URL, as_json: JsonOpt = False) -> None:
    """Exit code 0 where the server lives."""
    _yes_or_no("live", lambda: _ask(url, reach, lambda client: client.live()), as_json)


@app.command()
@connected
def ready(reach: Any, model: ModelArg = "", url: Url = DEFAULT_URL, as_json: JsonOpt = False) -> None:
    """Exit code 0 where the server, or MODEL, takes requests."""

    def question(client: Client) -> bool:
        return client.model_ready(model) if model else client.ready()

    _yes_or_no("ready", lambda: _ask(url, reach, question), as_json)


@app.command()
@connected
def metadata(reach: Any, model: ModelArg = "", url: Url = DEFAULT_URL, as_json: JsonOpt = False) -> None:
    """Metadata of the server, or of MODEL: its tensors. JSON; with --json under `metadata`, beside `schema`."""
    _tell("metadata", _ask(url, reach, lambda client: client.metadata(model)), as_json)


@app.command()
@connected
def config(reach: Any, model: NamedArg, url: Url = DEFAULT_URL, as_json: JsonOpt = False) -> None:
    """The configuration with which MODEL was loaded. JSON; with --json under `config`, beside `schema`."""
    _tell("config", _ask(url, reach, lambda client: client.config(model)), as_json)


@app.command()
@connected
def statistics(reach: Any, model: ModelArg = "", url: Url = DEFAULT_URL, as_json: JsonOpt = False) -> None:
    """Counts and times of requests, of MODEL or of all models. JSON; with --json under `models`, beside `schema`."""
    _tell("models", _ask(url, reach, lambda client: client.statistics(model)), as_json)


@app.command()
@connected
def index(reach: Any, url: Url = DEFAULT_URL, as_json: JsonOpt = False) -> None:
    """The models of the repository, and their states."""
    models = _ask(url, reach, lambda client: client.index())
    if as_json:
        print_json({"schema": 1, "models": models})
        return
    for model in models:
        line(f"{model['name']} {model['version']} {model['state']} {model['reason']}".rstrip())


@app.command()
@connected
def load(
    reach: Any,
    model: NamedArg,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="JSON file with another configuration.", show_default=False)
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: JsonOpt = False,
) -> None:
    """Load or reload MODEL; the server needs explicit model control."""
    other = _json(config_file) if config_file else None
    _ask(url, reach, lambda client: client.load(model, other))
    _done("loaded", model, as_json)


@app.command()
@connected
def unload(reach: Any, model: NamedArg, url: Url = DEFAULT_URL, as_json: JsonOpt = False) -> None:
    """Unload MODEL; the server needs explicit model control."""
    _ask(url, reach, lambda client: client.unload(model))
    _done("unloaded", model, as_json)


for _command in (client_answers.infer, client_answers.stream, client_answers.cancel):
    app.command()(_command)
_COMMANDS = tuple(command.callback.__name__ for command in app.registered_commands if command.callback)


def _json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"cannot read {path}: {error}", param_hint="--config") from error
    if not isinstance(loaded, dict):
        raise typer.BadParameter(f"{path} is not a JSON object", param_hint="--config")
    return loaded


def _tell(what: str, answer: Any, as_json: bool) -> None:
    print_json({"schema": 1, what: answer} if as_json else answer)


def _done(what: str, model: str, as_json: bool) -> None:
    if as_json:
        print_json({"schema": 1, what: model})
    else:
        note(f"{what} {model}")


def _yes_or_no(what: str, ask: Callable[[], bool], as_json: bool) -> None:
    """A server that is away is a no, too; the error says which."""
    try:
        answer = ask()
    except ServerError as error:
        if as_json:
            print_json({"schema": 1, what: False, "error": error.message})
        raise
    if as_json:
        print_json({"schema": 1, what: answer})
    else:
        line("yes" if answer else "no")
    if not answer:
        raise typer.Exit(ServerError.exit_code)
