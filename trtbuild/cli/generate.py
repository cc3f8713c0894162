"""`trtbuild generate`: one prompt to a running server, the text as it is made."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtbuild.cli import sampling
from trtbuild.cli.output import note, print_json
from trtbuild.cli.reach import connected

if TYPE_CHECKING:
    from trtbuild.client import Generation

NAME = "generate"
PANEL = "Serve"


@connected
@sampling.prompted
def command(
    generation: Any,
    reach: Any,
    url: sampling.Url = sampling.DEFAULT_URL,
    model: sampling.Model = "ensemble",
    stall_timeout: sampling.StallTimeout = 60.0,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON document at the end instead of the text.")
    ] = False,
) -> None:
    """Continue a PROMPT: text on stdout as it comes, time to first token and speed on stderr. Ctrl-C cancels."""
    from trtbuild.client import generate_stream

    answer = sampling.Answer()
    chunks = generate_stream(url, generation, model=model, stall_timeout_s=stall_timeout, reach=reach)
    try:
        sampling.show(chunks, answer, quiet=json_output)
    finally:
        chunks.close()
        if not json_output and answer.text:
            sys.stdout.write("\n")
            sys.stdout.flush()
    if json_output:
        print_json(_document(answer, generation))
    note(answer.summary())


def _document(answer: sampling.Answer, generation: Generation) -> dict[str, Any]:
    from trtbuild.client.answers import finish_reason

    return {
        "schema": 1,
        "text": answer.text,
        "tokens": answer.tokens,
        "finish_reason": finish_reason(answer.reason, answer.tokens, generation.max_tokens),
        "ttft_s": answer.first_s,
        "tokens_per_second": answer.tokens_per_second,
    }
