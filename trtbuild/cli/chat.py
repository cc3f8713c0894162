"""`trtbuild chat`: a conversation with a running server, through the model's own chat template."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtbuild.cli import sampling
from trtbuild.cli.output import note
from trtbuild.cli.reach import connected

if TYPE_CHECKING:
    from trtbuild.client import Generation, Reach

NAME = "chat"
PANEL = "Serve"


@connected
def command(
    reach: Any,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the model's tokenizer, for the chat template.", show_default=False)
    ] = None,
    repo: Annotated[
        Path | None, typer.Option(help="The repository that is served; its tokenizer is taken.", show_default=False)
    ] = None,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    url: sampling.Url = sampling.DEFAULT_URL,
    model: Annotated[
        str | None, typer.Option(help="Name of the model to ask. Default: the ensemble.", show_default=False)
    ] = None,
    max_tokens: sampling.MaxTokens = 256,
    temperature: sampling.Temperature = None,
    top_k: sampling.TopK = None,
    top_p: sampling.TopP = None,
    repetition_penalty: sampling.RepetitionPenalty = None,
    seed: sampling.Seed = None,
    stall_timeout: sampling.StallTimeout = 60.0,
) -> None:
    """Talk to the model: a line is a turn, Ctrl-C cancels an answer, end of input (Ctrl-D) leaves."""
    from trtbuild.client import Generation
    from trtbuild.text.chat import load_chat_template

    model, folder = _asked(model, tokenizer, repo)
    template = load_chat_template(folder)
    messages = [{"role": "system", "content": system}] if system else []
    while (line := _read_line()) is not None:
        if not line.strip():
            continue
        turn = [*messages, {"role": "user", "content": line}]
        generation = Generation(
            prompt=template.render(turn),
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            add_special_tokens=False,  # the template wrote them
        )
        answer = _answer(generation, url, model, stall_timeout, reach)
        messages = [*turn, {"role": "assistant", "content": answer}]


def _answer(generation: Generation, url: str, model: str, stall_timeout: float, reach: Reach) -> str:
    """One turn; Ctrl-C ends the answer, not the conversation."""
    from trtbuild.client import generate_stream

    answer = sampling.Answer()
    chunks = generate_stream(url, generation, model=model, stall_timeout_s=stall_timeout, reach=reach)
    ending = answer.summary
    try:
        sampling.show(chunks, answer)
    except KeyboardInterrupt:
        note("\ncancelled")
    finally:
        chunks.close()
        sys.stdout.write("\n")
        sys.stdout.flush()
    note(ending())
    return answer.text


def _asked(model: str | None, tokenizer: Path | None, repo: Path | None) -> tuple[str, Path]:
    """The model's name and the folder of its tokenizer."""
    if repo is None and tokenizer is not None:
        return model or "ensemble", tokenizer
    if repo is None:
        raise typer.BadParameter(
            "pass --repo REPOSITORY (the one that is served) or --tokenizer FOLDER", param_hint="--repo"
        )
    from trtbuild.repo.text_models import choose, read_text_models

    found = choose(read_text_models(repo), model)
    if len(found) > 1:
        said = f"{repo} has several models: choose one of {', '.join(each.name for each in found)}"
        raise typer.BadParameter(said, param_hint="--model")
    return found[0].name, tokenizer or found[0].tokenizer


def _read_line() -> str | None:
    """The next line, with a prompt where a person types it; None at the end."""
    if sys.stdin.isatty():
        sys.stderr.write("> ")
        sys.stderr.flush()
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None
