"""Options that `generate` and `chat` share, and the way both show an answer."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtbuild.cli.filled import filled

if TYPE_CHECKING:
    from trtbuild.client import Chunk, Generation

Url = Annotated[str, typer.Option(help="gRPC address of the server.", envvar="TRTBUILD_URL")]
Model = Annotated[str, typer.Option(help="Name of the model to ask.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", help="Most tokens to generate.")]
Temperature = Annotated[
    float | None, typer.Option(help="0 or absent: greedy. Alone it samples from all tokens.", show_default=False)
]
TopK = Annotated[int | None, typer.Option(help="Sample from this many likeliest tokens.", show_default=False)]
TopP = Annotated[
    float | None, typer.Option(help="Sample from the likeliest tokens up to this probability.", show_default=False)
]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1: repeat less.", show_default=False)]
PresencePenalty = Annotated[float | None, typer.Option(help="Added once for each token seen.", show_default=False)]
FrequencyPenalty = Annotated[
    float | None, typer.Option(help="Added for each time a token was seen.", show_default=False)
]
Seed = Annotated[
    int | None, typer.Option(help="Of the sampling; the same seed gives the same text.", show_default=False)
]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="End before this text (repeatable).", show_default=False)
]
Bad = Annotated[list[str] | None, typer.Option("--bad", help="Never write this text (repeatable).", show_default=False)]
MinTokens = Annotated[int | None, typer.Option(help="Do not end before this many tokens.", show_default=False)]
StallTimeout = Annotated[float, typer.Option(min=0.1, help="Give up when nothing came for so many seconds.")]
LengthPenalty = Annotated[float | None, typer.Option(help="Of beams: above 0 favours long ones.", show_default=False)]
LoraTaskId = Annotated[int | None, typer.Option(help="Of the LoRA adapter that is used.", show_default=False)]
DEFAULT_URL = "127.0.0.1:8001"


def make_generation(*, prompt: str, stop: list[str] | None, bad: list[str] | None, **others: Any) -> Generation:
    """What the options say; the prompt may be `-`, for stdin."""
    from trtbuild.client import Generation

    text = sys.stdin.read() if prompt == "-" else prompt
    return Generation(text, stop=tuple(stop or ()), bad=tuple(bad or ()), **others)


OPTIONS: dict[str, tuple[Any, Any]] = {
    "prompt": (Annotated[str, typer.Argument(help="The text to continue; - reads it from stdin.")], ...),
    "max_tokens": (MaxTokens, 64),
    "temperature": (Temperature, None),
    "top_k": (TopK, None),
    "top_p": (TopP, None),
    "repetition_penalty": (RepetitionPenalty, None),
    "presence_penalty": (PresencePenalty, None),
    "frequency_penalty": (FrequencyPenalty, None),
    "seed": (Seed, None),
    "stop": (Stop, None),
    "bad": (Bad, None),
    "min_tokens": (MinTokens, None),
    "length_penalty": (LengthPenalty, None),
    "lora_task_id": (LoraTaskId, None),
}
prompted = filled("generation", OPTIONS, make_generation)
"""For commands with a parameter `generation`."""


@dataclass
class Answer:
    """What came back, and how fast. The rate leaves the first token out, which waits for the prompt."""

    text: str = ""
    tokens: int = 0
    reason: str | None = None
    first_s: float | None = None
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        spent = self.seconds - (self.first_s or 0.0)
        return (self.tokens - 1) / spent if self.tokens > 1 and spent > 0 else None

    def summary(self) -> str:
        first = "-" if self.first_s is None else f"{self.first_s * 1000:.0f} ms"
        rate = self.tokens_per_second
        tokens = f"{self.tokens} tokens" if self.tokens or not self.text else "tokens not counted by this model"
        return f"TTFT {first}, {tokens}" + (f", {rate:.1f} tokens/s" if rate else "")


def show(chunks: Iterator[Chunk], answer: Answer, *, quiet: bool = False) -> None:
    """Write the text as it comes, and measure; `answer` is filled even when this ends early."""
    start = time.perf_counter()
    for chunk in chunks:
        answer.seconds = time.perf_counter() - start
        if (chunk.token_count or chunk.text) and answer.first_s is None:
            answer.first_s = answer.seconds
        answer.tokens += chunk.token_count
        answer.text += chunk.text
        answer.reason = chunk.finish_reason or answer.reason
        if not quiet and chunk.text:
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
