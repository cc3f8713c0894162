"""Parameters of the models around the engine: preprocessing, postprocessing, tensorrt_llm_bls. PURE.

Upstream's models read a switch that they do not know as their default, with a warning in the log at most; ours refuse
to load. Either way the text is not what its writer meant, so it is an error here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trtbuild.finding import Finding
from trtbuild.repo.check.rules import found

_SWITCH = ("true", "1", "t", "y", "yes", "false", "0", "f", "n", "no")
"""Words of these models, in any case; those of TensorRT-LLM's C++ backend are fewer."""


@dataclass(frozen=True)
class _Keys:
    """What a model reads. `needed` without a guard; `ours` are read by this program's model.py only, `theirs` by
    upstream's only."""

    needed: tuple[str, ...] = ()
    needed_by_ours: tuple[str, ...] = ()
    needed_by_theirs: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()
    switches_of_ours: tuple[str, ...] = ()
    numbers_of_ours: tuple[str, ...] = ()


_MODELS = {
    "preprocessing": _Keys(
        needed=("tokenizer_dir",),
        needed_by_theirs=("multimodal_model_path",),
        switches=("add_special_tokens",),
        numbers_of_ours=("max_input_len",),
    ),
    "postprocessing": _Keys(
        needed=("tokenizer_dir",), switches=("skip_special_tokens",), switches_of_ours=("stream_ids",)
    ),
    "tensorrt_llm_bls": _Keys(
        needed_by_ours=("tokenizer_dir",),
        switches=("accumulate_tokens",),
        switches_of_ours=("skip_special_tokens", "exclude_input_in_output"),
        numbers_of_ours=("concurrent_requests",),
    ),
}


def text_findings(where: str, role: str, values: Mapping[str, str], *, is_ours: bool) -> Iterator[Finding]:
    """Faults of one model's parameters; `role`: upstream's name of it, "" for a model that is none of these."""
    keys = _MODELS.get(role)
    if keys is None:
        return
    for key in (*keys.needed, *(keys.needed_by_ours if is_ours else keys.needed_by_theirs)):
        if key not in values:
            hint = "Text models may leave it empty, but it must be there." if key == "multimodal_model_path" else ""
            yield found(
                "parameter-missing", where, f"parameter {key}", "none", hint or "The model cannot load without."
            )
    for key in (*keys.switches, *(keys.switches_of_ours if is_ours else ())):
        text = values.get(key, "")
        if text.startswith("${") and not is_ours:
            continue  # upstream takes it for unset, and model-placeholder tells of it
        if text and text.lower() not in _SWITCH:
            yield found(
                "parameter-value", where, f"{key}: one of {', '.join(_SWITCH)}", repr(text), "Set true or false."
            )
    for key in keys.numbers_of_ours if is_ours else ():
        text = values.get(key, "")
        if text and not text.isdecimal():
            yield found(
                "parameter-value", where, f"{key}: a whole number", repr(text), "The model cannot load with it."
            )
