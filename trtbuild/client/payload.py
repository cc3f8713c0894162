"""What a generation asks for -> the tensors of the model that is asked. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trtbuild.client.answers import OUTPUTS
from trtbuild.client.forms import Form
from trtbuild.errors import RequestError

_INT32_MAX = 2**31 - 1
_UINT64_MAX = 2**64 - 1


@dataclass(frozen=True)
class Generation:
    """One prompt and how to continue it; None leaves a choice to the server (greedy, no penalties).

    `stop`: the answer ends before the first of these texts; without `cut_stops` they are only told the server, and the
    text comes as it is, for callers that look for them themselves. `log_probs` and `count_prompt` ask for what `Chunk`
    can hold. `guide_type` (json, json_schema, regex, ebnf_grammar) and `guide` want guided decoding on the server.
    Without `stream` the answer comes whole, as models that are not decoupled give it. `num_return_sequences`: so many
    answers, told apart by `Chunk.sequence`; `beam_width` likewise, and only whole. `embedding_bias`: text -> what its
    tokens' logits get. `tensors` and `outputs` are for what has no field here: inputs by name (numpy arrays or lists,
    with the dimension of batches where the model has one), and outputs to be put into `Chunk.tensors`.
    """

    prompt: str
    max_tokens: int = 64
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    length_penalty: float | None = None
    min_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    cut_stops: bool = True
    bad: tuple[str, ...] = ()
    end_id: int | None = None
    add_special_tokens: bool | None = None
    num_return_sequences: int | None = None
    beam_width: int | None = None
    lora_task_id: int | None = None
    embedding_bias: Mapping[str, float] = field(default_factory=dict, hash=False)
    log_probs: bool = False
    count_prompt: bool = False
    guide: str | None = None
    guide_type: str | None = None
    stream: bool = True
    tensors: Mapping[str, Any] = field(default_factory=dict, hash=False)
    outputs: tuple[str, ...] = ()

    @property
    def sequences(self) -> int:
        """How many answers there will be."""
        return max(self.num_return_sequences or 1, self.beam_width or 1)


Rows = list[tuple[str, str, list[list[Any]]]]
"""(name, datatype, [row]) of each input tensor."""


def request_tensors(generation: Generation) -> Rows:
    """Input tensors of the models `ensemble` and `tensorrt_llm_bls`.

    Raises:
        RequestError: values that no server could take.
    """
    g = generation
    check_generation(g)
    temperature, top_k, top_p = sampling(g)
    return rows(
        ("text_input", "BYTES", g.prompt),
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
        ("length_penalty", "FP32", g.length_penalty),
        ("min_tokens", "INT32", g.min_tokens),
        ("seed", "UINT64", g.seed),
        ("end_id", "INT32", g.end_id),
        ("num_return_sequences", "INT32", g.num_return_sequences),
        ("beam_width", "INT32", g.beam_width),
        ("lora_task_id", "UINT64", g.lora_task_id),
        ("return_log_probs", "BOOL", g.log_probs or None),
        ("return_num_input_tokens", "BOOL", g.count_prompt or None),
        ("guided_decoding_guide", "BYTES", g.guide),
        ("guided_decoding_guide_type", "BYTES", g.guide_type),
        ("stop_words", "BYTES", g.stop),
        ("bad_words", "BYTES", g.bad),
        ("embedding_bias_words", "BYTES", tuple(g.embedding_bias)),
        ("embedding_bias_weights", "FP32", tuple(g.embedding_bias.values())),
    )


def rows(*tensors: tuple[str, str, Any]) -> Rows:
    """One row of each tensor that has a value; a tuple is a row of several. Texts become bytes."""

    def row(value: Any) -> list[Any]:
        cells = list(value) if isinstance(value, tuple) else [value]
        return [cell.encode() if isinstance(cell, str) else cell for cell in cells]

    return [(name, kind, [row(value)]) for name, kind, value in tensors if value is not None and value != ()]


def sampling(g: Generation) -> tuple[float | None, int | None, float | None]:
    """Temperature, top_k and top_p as they are sent.

    Temperature 0 is greedy. TensorRT-LLM is greedy too when neither top_k nor top_p is given, so a temperature alone
    samples from the whole distribution (top_p 1).
    """
    if g.temperature == 0:
        return None, 1, None
    if g.temperature is not None and g.top_k is None and g.top_p is None:
        return g.temperature, None, 1.0
    return g.temperature, g.top_k, g.top_p


def output_names(generation: Generation, form: Form | None = None) -> list[str]:
    """The tensors to ask for: those that there are, and all that the generation names."""
    more = {
        "output_log_probs": generation.log_probs,
        "num_input_tokens": generation.count_prompt,
        "sequence_index": generation.sequences > 1,
        "finish_reason": form is not None and form.llmapi,
    }
    names = [*OUTPUTS, *(name for name, wanted in more.items() if wanted)]
    known = [name for name in names if form is None or not form.known or name in form.outputs]
    return list(dict.fromkeys([*known, *generation.outputs]))


def request_parameters(generation: Generation) -> dict[str, Any]:
    """Parameters of the request, beside its tensors."""
    if generation.add_special_tokens is None:
        return {}
    return {"add_special_tokens": generation.add_special_tokens}


def check_generation(g: Generation) -> None:
    """Raises:
    RequestError: values that no server could take.
    """
    try:
        " ".join([g.prompt, *g.stop, *g.bad, *g.embedding_bias]).encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"the text is not valid UTF-8 (position {error.start})") from error
    within = {
        "max_tokens": (1, _INT32_MAX),
        "top_k": (0, _INT32_MAX),
        "num_return_sequences": (1, _INT32_MAX),
        "beam_width": (1, _INT32_MAX),
        "seed": (0, _UINT64_MAX),
        "lora_task_id": (0, _UINT64_MAX),
    }
    problems = [
        f"{name} {value} must be within {least}..{most}"
        for name, (least, most) in within.items()
        if (value := getattr(g, name)) is not None and not least <= value <= most
    ]
    if g.temperature is not None and not g.temperature >= 0:
        problems.append(f"temperature {g.temperature} must be 0 or more")
    if g.min_tokens is not None and not 0 <= g.min_tokens <= _INT32_MAX:
        problems.append(f"min_tokens {g.min_tokens} must be 0 or more")
    if (g.beam_width or 1) > 1 and g.stream:
        problems.append(f"beam_width {g.beam_width} wants stream False: beams are known when all of them have ended")
    if problems:
        raise RequestError("; ".join(problems))
