"""Registers the commands; the one place where errors become a message and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from trtbuild import __version__
from trtbuild.cli import (
    bench,
    cache,
    chat,
    check,
    checkpoint,
    client,
    doctor,
    engine,
    generate,
    inspect,
    openai,
    plan,
    pull,
    push,
    repo,
    run,
    serve,
    show,
    verify,
)
from trtbuild.errors import TrtbuildError

app = typer.Typer(
    name="trtbuild",
    help="From a Hugging Face checkpoint to streamed tokens out of a Triton server.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show_it: bool) -> None:
    if show_it:
        typer.echo(f"trtbuild {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a failure.", envvar="TRTBUILD_DEBUG")
    ] = False,
    _version_flag: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if debug:
        os.environ["TRTBUILD_DEBUG"] = "1"


for command in (
    plan,
    doctor,
    check,
    inspect,
    verify,
    checkpoint,
    engine,
    repo,
    run,
    push,
    pull,
    serve,
    generate,
    chat,
    openai,
    bench,
):
    app.command(name=command.NAME, rich_help_panel=command.PANEL)(command.command)
app.add_typer(client.app, name="client", rich_help_panel="Serve")
app.add_typer(cache.app, name="cache", rich_help_panel="Look")
app.add_typer(show.app, name="show", rich_help_panel="Look")


class _Terminated(BaseException):
    """SIGTERM, raised so that outputs and children are cleaned up on the way out."""


def _on_sigterm(_signum: int, _frame: FrameType | None) -> None:
    raise _Terminated


def main() -> None:
    """Entry point of the `trtbuild` program."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        app(standalone_mode=True)
    except TrtbuildError as error:
        if os.environ.get("TRTBUILD_DEBUG"):
            raise
        _report(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except _Terminated:
        sys.stderr.write("terminated\n")
        sys.exit(143)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _report(error: TrtbuildError) -> None:
    from trtbuild.cli.output import console

    console.print(f"error: {error.message}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    if error.hint:
        console.print(f"hint: {error.hint}", markup=False, highlight=False, soft_wrap=True)
