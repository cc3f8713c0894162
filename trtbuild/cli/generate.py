"""`trtbuild generate`: one prompt to a running server, the text as it is made."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from trtbuild.cli import sampling
from trtbuild.cli.output import note, print_json

NAME = "generate"
PANEL = "Serve"


def command(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from stdin.")],
    url: sampling.Url = sampling.DEFAULT_URL,
    model: sampling.Model = "ensemble",
    max_tokens: sampling.MaxTokens = 64,
    temperature: sampling.Temperature = None,
    top_k: sampling.TopK = None,
    top_p: sampling.TopP = None,
    repetition_penalty: sampling.RepetitionPenalty = None,
    presence_penalty: sampling.PresencePenalty = None,
    frequency_penalty: sampling.FrequencyPenalty = None,
    seed: sampling.Seed = None,
    stop: sampling.Stop = None,
    bad: sampling.Bad = None,
    min_tokens: sampling.MinTokens = None,
    stall_timeout: sampling.StallTimeout = 60.0,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON document at the end instead of the text.")
    ] = False,
) -> None:
    """Continue a PROMPT: text on stdout as it comes, time to first token and speed on stderr. Ctrl-C cancels."""
    from trtbuild.client import Generation, generate_stream

    generation = Generation(
        prompt=sys.stdin.read() if prompt == "-" else prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        bad=tuple(bad or ()),
        min_tokens=min_tokens,
    )
    answer = sampling.Answer()
    chunks = generate_stream(url, generation, model=model, stall_timeout_s=stall_timeout)
    try:
        sampling.show(chunks, answer, quiet=json_output)
    finally:
        chunks.close()
        if not json_output and answer.text:
            sys.stdout.write("\n")
            sys.stdout.flush()
    if json_output:
        rate = answer.tokens_per_second
        print_json({"text": answer.text, "tokens": answer.tokens, "ttft_s": answer.first_s, "tokens_per_second": rate})
    note(answer.summary())
