"""What a generation asks for -> the tensors of the ensemble. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trtbuild.client.answers import OUTPUTS
from trtbuild.errors import RequestError

_INT32_MAX = 2**31 - 1
_UINT64_MAX = 2**64 - 1


@dataclass(frozen=True)
class Generation:
    """One prompt and how to continue it; None leaves a choice to the server (greedy, no penalties).

    `log_probs` and `count_prompt` ask for what `Chunk` can hold. `guide_type` (json, json_schema, regex, ebnf_grammar)
    and `guide` want guided decoding on the server. Without `stream` the answer comes whole, as models that are not
    decoupled give it.
    """

    prompt: str
    max_tokens: int = 64
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    end_id: int | None = None
    add_special_tokens: bool | None = None
    log_probs: bool = False
    count_prompt: bool = False
    guide: str | None = None
    guide_type: str | None = None
    stream: bool = True


def request_tensors(generation: Generation) -> list[tuple[str, str, list[list[Any]]]]:
    """(name, datatype, [row]) of each input tensor of the `ensemble` model.

    Temperature 0 is greedy. TensorRT-LLM is greedy too when neither top_k nor top_p is given, so a temperature alone
    samples from the whole distribution (top_p 1).

    Raises:
        RequestError: values that no server could take.
    """
    g = generation
    _check(g)
    temperature, top_k, top_p = g.temperature, g.top_k, g.top_p
    if temperature == 0:
        temperature, top_k, top_p = None, 1, None
    elif temperature is not None and top_k is None and top_p is None:
        top_p = 1.0
    singles = (
        ("text_input", "BYTES", g.prompt.encode()),
        ("max_tokens", "INT32", g.max_tokens),
        ("stream", "BOOL", g.stream),
        ("exclude_input_in_output", "BOOL", True),
        ("return_num_output_tokens", "BOOL", True),
        ("temperature", "FP32", temperature),
        ("top_k", "INT32", top_k),
        ("top_p", "FP32", top_p),
        ("repetition_penalty", "FP32", g.repetition_penalty),
        ("presence_penalty", "FP32", g.presence_penalty),
        ("frequency_penalty", "FP32", g.frequency_penalty),
        ("min_tokens", "INT32", g.min_tokens),
        ("seed", "UINT64", g.seed),
        ("end_id", "INT32", g.end_id),
        ("return_log_probs", "BOOL", g.log_probs or None),
        ("return_num_input_tokens", "BOOL", g.count_prompt or None),
        ("guided_decoding_guide", "BYTES", None if g.guide is None else g.guide.encode()),
        ("guided_decoding_guide_type", "BYTES", None if g.guide_type is None else g.guide_type.encode()),
    )
    lists = (("stop_words", g.stop), ("bad_words", g.bad))
    tensors: list[tuple[str, str, list[list[Any]]]] = [
        (n, kind, [[value]]) for n, kind, value in singles if value is not None
    ]
    return tensors + [(name, "BYTES", [[word.encode() for word in words]]) for name, words in lists if words]


def output_names(generation: Generation) -> list[str]:
    """The tensors to ask for."""
    more = {"output_log_probs": generation.log_probs, "num_input_tokens": generation.count_prompt}
    return [*OUTPUTS, *(name for name, wanted in more.items() if wanted)]


def request_parameters(generation: Generation) -> dict[str, Any]:
    """Parameters of the request, beside its tensors."""
    if generation.add_special_tokens is None:
        return {}
    return {"add_special_tokens": generation.add_special_tokens}


def _check(g: Generation) -> None:
    try:
        " ".join([g.prompt, *g.stop, *g.bad]).encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"the text is not valid UTF-8 (position {error.start})") from error
    problems = [
        text
        for wrong, text in (
            (not 1 <= g.max_tokens <= _INT32_MAX, f"max_tokens {g.max_tokens} must be within 1..{_INT32_MAX}"),
            (g.temperature is not None and not g.temperature >= 0, f"temperature {g.temperature} must be 0 or more"),
            (g.top_k is not None and not 0 <= g.top_k <= _INT32_MAX, f"top_k {g.top_k} must be within 0..{_INT32_MAX}"),
            (
                g.min_tokens is not None and not 0 <= g.min_tokens <= _INT32_MAX,
                f"min_tokens {g.min_tokens} must be 0 or more",
            ),
            (g.seed is not None and not 0 <= g.seed <= _UINT64_MAX, f"seed {g.seed} must be within 0..{_UINT64_MAX}"),
        )
        if wrong
    ]
    if problems:
        raise RequestError("; ".join(problems))
