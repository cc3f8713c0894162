"""What goes into the runtime and what comes out; plain values that cross process boundaries as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from trtbuild.errors import RequestError

FinishReason = Literal["end_id", "stop_words", "length", "cancelled", "error"]


@dataclass(frozen=True)
class SamplingParams:
    """TensorRT-LLM's sampling knobs; the defaults are greedy, as top_k 0 with top_p 0 means top_k 1 there.

    Penalties count prompt and generated tokens. `min_tokens` forbids `end_id` until that many were generated.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    min_tokens: int = 0
    stop_words: tuple[tuple[int, ...], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    return_log_probs: bool = False

    def __post_init__(self) -> None:
        problems = [
            text
            for wrong, text in (
                (
                    not self.temperature > 0 or math.isinf(self.temperature),
                    f"temperature {self.temperature} must be above 0",
                ),
                (self.top_k < 0, f"top_k {self.top_k} must be 0 or more"),
                (not 0 <= self.top_p <= 1, f"top_p {self.top_p} must be within 0..1"),
                (not 0 <= self.min_p <= 1, f"min_p {self.min_p} must be within 0..1"),
                (
                    not 0 < self.repetition_penalty < math.inf,
                    f"repetition_penalty {self.repetition_penalty} must be above 0",
                ),
                (not math.isfinite(self.presence_penalty), f"presence_penalty {self.presence_penalty} must be finite"),
                (
                    not math.isfinite(self.frequency_penalty),
                    f"frequency_penalty {self.frequency_penalty} must be finite",
                ),
                (self.seed < 0, f"seed {self.seed} must be 0 or more"),
                (self.min_tokens < 0, f"min_tokens {self.min_tokens} must be 0 or more"),
            )
            if wrong
        ]
        if problems:
            raise RequestError("; ".join(problems))


@dataclass(frozen=True)
class Request:
    """One prompt to continue. `request_id` is unique among the requests in flight."""

    request_id: str
    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    end_id: int = -1
    sampling: SamplingParams = field(default_factory=SamplingParams)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(document: dict[str, Any]) -> Request:
        sampling = dict(document["sampling"])
        for words in ("stop_words", "bad_words"):
            sampling[words] = tuple(tuple(word) for word in sampling[words])
        return replace(
            Request(**{**document, "sampling": SamplingParams()}),
            prompt_ids=tuple(document["prompt_ids"]),
            sampling=SamplingParams(**sampling),
        )


@dataclass(frozen=True)
class Output:
    """Tokens generated since the last output of this request; the last one carries `finish_reason`.

    `end_id` itself is not among the tokens (upstream counts only tokens to be shown); a matched stop word is.
    `log_probs` are natural logarithms of the model's own softmax, one for each token in `token_ids`.
    """

    request_id: str
    token_ids: Sequence[int] = ()
    log_probs: Sequence[float] = ()
    finish_reason: FinishReason | None = None
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(document: dict[str, Any]) -> Output:
        return Output(**document)
