"""Bodies of requests. What is not understood is refused by its name, never ignored: an answer would not be as asked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_CHOICES = 16
Stop = str | Annotated[list[str], Field(max_length=16)] | None
_NOT_SERVED = (
    "tools", "tool_choice", "functions", "function_call", "audio", "modalities", "prediction", "logit_bias", "suffix",
    "web_search_options",
)  # fmt: skip
_WITHOUT_EFFECT = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "safety_identifier",
    "prompt_cache_key",
)

_SCORES = "the server gives the log probabilities of the chosen tokens only"


class StreamOptions(BaseModel):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    name: str = ""
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("response_format json_schema wants json_schema")
        return self


class _Sampled(BaseModel):
    """What both kinds of completion take."""

    model_config = ConfigDict(extra="forbid")

    model: str
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Stop = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    response_format: ResponseFormat | None = None
    # beyond OpenAI's, by the names that other servers use
    top_k: int | None = Field(None, ge=0, lt=2**31)
    repetition_penalty: float | None = Field(None, gt=0, le=100, allow_inf_nan=False)
    min_tokens: int | None = Field(None, ge=0, lt=2**31)
    ignore_eos: bool = False

    @model_validator(mode="before")
    @classmethod
    def _words(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        unserved = [name for name in _NOT_SERVED if name not in cls.model_fields and body.get(name)]
        if unserved:
            raise ValueError(f"{', '.join(unserved)} is not served here")
        left_out = {name for name in cls.model_fields if body.get(name) is None}  # null is OpenAI's word for it, too
        return {name: value for name, value in body.items() if name not in {*_NOT_SERVED, *_WITHOUT_EFFECT, *left_out}}

    @model_validator(mode="after")
    def _fits(self) -> _Sampled:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in found if text)


class ContentPart(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, message: Any) -> Any:
        """Clients send answers back as they came, with null for what there was none of."""
        if not isinstance(message, dict):
            return message
        return {name: value for name, value in message.items() if value is not None or name in cls.model_fields}

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(_Sampled):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _chosen_only(self) -> ChatRequest:
        if self.top_logprobs:
            raise ValueError(f"top_logprobs {self.top_logprobs} is not served here: {_SCORES}")
        return self


class CompletionRequest(_Sampled):
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
    echo: bool = False
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)
    logprobs: int | None = Field(None, ge=0, le=5)

    @model_validator(mode="after")
    def _as_many(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.n:
            raise ValueError("best_of other than n is not served here")
        if self.logprobs is not None and self.logprobs > 1:
            raise ValueError(f"logprobs {self.logprobs} is not served here, at most 1: {_SCORES}")
        if self.logprobs is not None and self.echo:
            raise ValueError(f"echo with logprobs is not served here: {_SCORES}, and none of the prompt's")
        return self

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt
