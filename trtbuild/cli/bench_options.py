"""Options of `trtbuild bench`, and their texts -> values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

if TYPE_CHECKING:
    from trtbuild.bench.run import Options
    from trtbuild.bench.workload import Length, Level, Written

BenchOptions: TypeAlias = "Options"
_LOAD, _ASKED, _SERVERS = "Load", "Requests", "Servers"

Endpoints = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[[NAME=]URL[#MODEL]]...",
        help="grpc://HOST:PORT (Triton) or http(s)://HOST[:PORT]/v1 (OpenAI's API). Default: grpc://127.0.0.1:8001.",
        show_default=False,
    ),
]
Model = Annotated[
    str,
    typer.Option(
        help="Name of the model where an endpoint names none. Default: ensemble, or the first of /v1/models.",
        show_default=False,
        rich_help_panel=_SERVERS,
    ),
]
Concurrency = Annotated[
    str | None,
    typer.Option(
        metavar="N[,N...]", help="Requests that are always open; each is a level. Default: 1.", show_default=False,
        rich_help_panel=_LOAD,
    ),
]  # fmt: skip
RequestRate = Annotated[
    str | None,
    typer.Option(
        metavar="R[,R...]",
        help="Instead: requests a second, at random times (Poisson); latency counts from when each was due.",
        show_default=False,
        rich_help_panel=_LOAD,
    ),
]
Requests = Annotated[
    int | None,
    typer.Option(
        min=1, help="Of each level. Default: 5 for each open one, at least 20.", show_default=False,
        rich_help_panel=_LOAD,
    ),
]  # fmt: skip
Duration = Annotated[
    float | None,
    typer.Option(min=0.1, help="Instead: begin requests for so many seconds.", show_default=False,
                 rich_help_panel=_LOAD),
]  # fmt: skip
Warmup = Annotated[
    int | None,
    typer.Option(
        min=0, help="Requests before, left out. Default: one for each open one, at least 2.", show_default=False,
        rich_help_panel=_LOAD,
    ),
]  # fmt: skip
InputLen = Annotated[int, typer.Option(min=1, help="Tokens of a prompt.", rich_help_panel=_ASKED)]
InputStddev = Annotated[float, typer.Option(min=0, help="Their standard deviation.", rich_help_panel=_ASKED)]
OutputLen = Annotated[int, typer.Option(min=1, help="Tokens of an answer.", rich_help_panel=_ASKED)]
OutputStddev = Annotated[float, typer.Option(min=0, help="Their standard deviation.", rich_help_panel=_ASKED)]
Prompts = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Prompts instead: .txt (one a line) or .jsonl (text, max_tokens).", show_default=False,
        rich_help_panel=_ASKED,
    ),
]  # fmt: skip
Seed = Annotated[int, typer.Option(min=0, help="Of prompts, lengths and times.", rich_help_panel=_ASKED)]
Goodput = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME:VALUE",
        help="Objective of a good request, as time_to_first_token:200 (ms); repeatable.",
        show_default=False,
        rich_help_panel=_LOAD,
    ),
]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds for a request; later ones count as failed.",
                                        rich_help_panel=_LOAD)]  # fmt: skip
Temperature = Annotated[float, typer.Option(min=0, help="0 is greedy.", rich_help_panel=_ASKED)]
IgnoreEos = Annotated[
    bool,
    typer.Option(
        "--ignore-eos/--stop-at-eos", help="Answers have their whole length, or end where the model ends them.",
        rich_help_panel=_ASKED,
    ),
]  # fmt: skip
Chat = Annotated[
    bool, typer.Option("--chat", help="OpenAI: /chat/completions, not /completions.", rich_help_panel=_SERVERS)
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Makes prompts of an exact length, and counts for servers that send no usage.",
        show_default=False,
        rich_help_panel=_SERVERS,
    ),
]
ApiKeyEnv = Annotated[str, typer.Option(metavar="NAME", help="Variable with the key.", rich_help_panel=_SERVERS)]
MemoryOf = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=PORT,...",
        help="Memory of the servers at these ports of this host. Default: the endpoint's own, and what it talks to.",
        show_default=False,
        rich_help_panel=_SERVERS,
    ),
]
MetricsUrl = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=URL", help="Triton's metrics page, for GPU memory.", show_default=False, rich_help_panel=_SERVERS
    ),
]
Gates = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME_STAT=N[%]",
        help="For --compare: how much worse NEW may be. Default: ttft_p50=10%, itl_p50=10%, throughput=10%, "
        "memory=10%, errors=0.",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", metavar="DIR", help="Directory for records.jsonl, summary.json, summary.md and plots.",
        show_default=False,
    ),
]  # fmt: skip
Force = Annotated[bool, typer.Option("--force", help="Replace an output of trtbuild.")]


def levels(concurrency: str | None, request_rate: str | None) -> list[Level]:
    """Levels in the order in which they were named."""
    from trtbuild.bench.workload import CONCURRENCY, REQUEST_RATE, Level

    if concurrency is not None and request_rate is not None:
        raise typer.BadParameter("a level is a concurrency or a request rate, not both", param_hint="--request-rate")
    hint = "--request-rate" if request_rate is not None else "--concurrency"
    found = []
    for text in (request_rate if request_rate is not None else concurrency or "1").split(","):
        try:
            value = float(text) if request_rate is not None else int(text)
        except ValueError:
            value = 0
        if not 0 < value < 1e6:
            raise typer.BadParameter(f"{text!r} is no number above 0", param_hint=hint)
        found.append(Level(REQUEST_RATE if request_rate is not None else CONCURRENCY, value))
    if len(set(found)) < len(found):
        raise typer.BadParameter("a level is there twice", param_hint=hint)
    return found


def length(mean: int, stddev: float) -> Length:
    from trtbuild.bench.workload import Length

    return Length(mean, stddev)


def written(path: Path | None) -> list[Written]:
    from trtbuild.bench.prompts import read_prompts

    return read_prompts(path) if path else []


def objectives(texts: list[str] | None) -> dict[str, float]:
    from trtbuild.bench.metrics import parse_goodput

    return parse_goodput(texts or [])


def ports(texts: list[str] | None) -> dict[str, list[int]]:
    found = {}
    for text in texts or ():
        name, _, numbers = text.rpartition("=")
        if not name or not all(number.isdigit() for number in numbers.split(",")):
            raise typer.BadParameter(f"{text!r} is not NAME=PORT,...", param_hint="--memory-of")
        found[name] = [int(number) for number in numbers.split(",")]
    return found


def urls(texts: list[str] | None) -> dict[str, str]:
    found = {}
    for text in texts or ():
        name, _, url = text.partition("=")
        if not name or not url.startswith(("http://", "https://")):
            raise typer.BadParameter(f"{text!r} is not NAME=http://...", param_hint="--metrics-url")
        found[name] = url
    return found
