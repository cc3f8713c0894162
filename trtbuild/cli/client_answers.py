"""`trtbuild client infer | stream | cancel`: what the client library does with generations, from a shell."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtbuild.cli import sampling
from trtbuild.cli.filled import filled
from trtbuild.cli.options import JsonOpt
from trtbuild.cli.output import line, note, print_json
from trtbuild.cli.reach import connected

if TYPE_CHECKING:
    from trtbuild.client import Chunk, Completion

RequestId = Annotated[str | None, typer.Option(help="By which it can be cancelled.", show_default=False)]
Deadline = Annotated[float | None, typer.Option(min=0.001, help="Seconds for the whole answer.", show_default=False)]


def make_more(
    *, embedding_bias: list[str] | None, tensor: list[str] | None, output: list[str] | None, **others: Any
) -> dict[str, Any]:
    """Fields of a Generation.

    Raises:
        typer.BadParameter: a text that cannot be read.
    """
    bias = {}
    for text, value in _pairs(embedding_bias, "--embedding-bias", "TEXT=NUMBER"):
        try:
            bias[text] = float(value)
        except ValueError as error:
            raise typer.BadParameter(f"{value!r} is no number", param_hint="--embedding-bias") from error
    tensors = {}
    for name, text in _pairs(tensor, "--tensor", "NAME=JSON"):
        try:
            tensors[name] = json.loads(text)
        except ValueError as error:
            raise typer.BadParameter(f"{text!r} is no JSON: {error}", param_hint="--tensor") from error
    return {"embedding_bias": bias, "tensors": tensors, "outputs": tuple(output or ()), **others}


def _pairs(texts: list[str] | None, option: str, form: str) -> list[tuple[str, str]]:
    pairs = [text.rpartition("=") if option == "--embedding-bias" else text.partition("=") for text in texts or ()]
    if wrong := [text for text, (name, equals, _) in zip(texts or (), pairs, strict=True) if not equals or not name]:
        raise typer.BadParameter(f"{wrong[0]!r} is not {form}", param_hint=option)
    return [(name, value) for name, _, value in pairs]


def _more(kind: Any, help_text: str, *names: str, **settings: Any) -> Any:
    """Annotation of an option."""
    option = typer.Option(*names, help=help_text, show_default=False, rich_help_panel="More of the request", **settings)
    return Annotated[kind, option]


_MORE: dict[str, tuple[Any, Any]] = {
    "num_return_sequences": (_more(int | None, "So many answers."), None),
    "beam_width": (_more(int | None, "Beams; `infer` only."), None),
    "end_id": (_more(int | None, "The token that ends the answer; -1: none does."), None),
    "add_special_tokens": (
        _more(bool | None, "Those that the tokenizer puts before.", "--special-tokens/--no-special-tokens"),
        None,
    ),
    "log_probs": (_more(bool, "Log probabilities of the tokens, in the JSON.", "--log-probs"), False),
    "guide_type": (_more(str | None, "json, json_schema, regex or ebnf_grammar."), None),
    "guide": (_more(str | None, "What the answer has to be."), None),
    "embedding_bias": (
        _more(list[str] | None, "For the logits of a text's tokens; repeatable.", metavar="TEXT=NUMBER"),
        None,
    ),
    "tensor": (
        _more(list[str] | None, "Any input, with its dimension of batches; repeatable.", metavar="NAME=JSON"),
        None,
    ),
    "output": (_more(list[str] | None, "Any output, into `tensors` of the JSON; repeatable.", metavar="NAME"), None),
}
more = filled("changes", _MORE, make_more)


@connected
@more
@sampling.prompted
def infer(
    generation: Any,
    changes: Any,
    reach: Any,
    url: sampling.Url = sampling.DEFAULT_URL,
    model: sampling.Model = "ensemble",
    request_id: RequestId = None,
    deadline: Deadline = None,
    as_json: JsonOpt = False,
) -> None:
    """The whole answer to a PROMPT in one response, as models that are not decoupled give it."""
    from trtbuild.client import Client

    asked = replace(generation, stream=False, count_prompt=True, **changes)
    with Client(url.split(","), reach=reach) as client:
        answer = client.infer(asked, model=model, request_id=request_id, deadline_s=deadline)
    if as_json:
        print_json({"schema": 1, **_answer(answer), "others": [_answer(other) for other in answer.others]})
        return
    for each in (answer, *answer.others):
        line(each.text)


@connected
@more
@sampling.prompted
def stream(
    generation: Any,
    changes: Any,
    reach: Any,
    url: sampling.Url = sampling.DEFAULT_URL,
    model: sampling.Model = "ensemble",
    request_id: RequestId = None,
    deadline: Deadline = None,
    stall_timeout: sampling.StallTimeout = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line for each chunk.")] = False,
) -> None:
    """The answer to a PROMPT as it is made. Ctrl-C cancels."""
    from trtbuild.client import Client
    from trtbuild.client.answers import finish_reason

    asked, count = replace(generation, **changes), 0
    if asked.sequences > 1 and not as_json:
        raise typer.BadParameter("several answers come mixed: take --json", param_hint="--num-return-sequences")
    limits = {"deadline_s": deadline, "stall_s": stall_timeout}
    with (
        Client(url.split(","), reach=reach) as client,
        closing(client.stream(asked, model=model, request_id=request_id, **limits)) as chunks,
    ):
        for chunk in chunks:
            count += chunk.token_count
            if as_json:
                over = chunk.final and asked.sequences == 1
                reason = finish_reason(chunk.finish_reason, count, asked.max_tokens) if over else chunk.finish_reason
                sys.stdout.write(json.dumps(_chunk(chunk, reason)) + "\n")
            else:
                sys.stdout.write(chunk.text + ("\n" if chunk.final else ""))
            sys.stdout.flush()


@connected
def cancel(
    reach: Any,
    request_id: Annotated[str, typer.Argument(help="The --request-id that it was sent with.")],
    model: Annotated[
        str, typer.Option(help="The engine's model, or that of a llmapi repository; not tensorrt_llm_bls.")
    ] = "tensorrt_llm",
    url: sampling.Url = sampling.DEFAULT_URL,
    as_json: JsonOpt = False,
) -> None:
    """Stop a request of any client by its id; its answer ends as if it were complete. An unknown id is no error."""
    from trtbuild.client import Client

    with Client(url.split(","), reach=reach) as client:
        client.stop(request_id, model=model)
    if as_json:
        print_json({"schema": 1, "cancelled": request_id, "model": model})
    else:
        note(f"{model} was asked to stop {request_id}")


def _answer(answer: Completion) -> dict[str, Any]:
    return {
        "text": answer.text,
        "tokens": answer.token_count,
        "prompt_tokens": answer.prompt_tokens,
        "finish_reason": answer.finish_reason,
        "log_probs": list(answer.log_probs),
        "tensors": _lists(answer.tensors),
    }


def _chunk(chunk: Chunk, reason: str | None) -> dict[str, Any]:
    return {
        "text": chunk.text,
        "tokens": chunk.token_count,
        "sequence": chunk.sequence,
        "final": chunk.final,
        "finish_reason": reason,
        "log_probs": list(chunk.log_probs),
        "tensors": _lists(chunk.tensors),
    }


def _lists(tensors: Any) -> dict[str, Any]:
    """Arrays as JSON has them; bytes are texts."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(each) for each in value]
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    return {name: None if values is None else plain(values.tolist()) for name, values in tensors.items()}
