"""EDGE: what is to be verified, opened, and everything that keeps it from being compared with the model."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping as Dict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trtbuild.errors import VerifyError
from trtbuild.families import family_of_checkpoint
from trtbuild.lint.config import mapping_of
from trtbuild.lint.expected import options_of
from trtbuild.lint.plain import require_sound
from trtbuild.lint.read import KINDS, kind_of
from trtbuild.spec import ConvertOptions

_SIZES = (
    "architecture",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_size",
    "intermediate_size",
    "moe",
    "moe_intermediate_size",
    "moe_shared_expert_intermediate_size",
)
"""Fields of config.json in which the two must agree; in others they may differ, which is said."""


@dataclass(frozen=True)
class Subject:
    """A checkpoint or a cpu engine. `config`: its (pretrained) config.json; `options`: its layout, in float32."""

    folder: Path
    kind: str
    config: dict[str, Any]
    options: ConvertOptions

    @property
    def world_size(self) -> int:
        return self.options.world_size


def open_subject(folder: Path) -> Subject:
    """Read the JSON and the headers of what is to be verified.

    Raises:
        VerifyError: neither a checkpoint nor an engine. CheckpointError: a checkpoint with faults, all of them listed.
        EngineError: an engine of another target, or incomplete.
    """
    from trtbuild.engine.cpu import read_checkpoint_config
    from trtbuild.runtime.info import read_engine

    kind = kind_of(folder)
    if kind == "checkpoint":
        require_sound(folder, read_data=False, target="cpu")
        config = read_checkpoint_config(folder)
    elif kind == "engine":
        config = read_engine(folder).pretrained
    else:
        what = KINDS[kind].partition(":")[0]
        raise VerifyError([f"{folder} is {what}; an engine or a TensorRT-LLM checkpoint is needed"])
    options, _ = mapping_of(config)
    family = family_of_checkpoint(str(config.get("architecture")))
    if options is None or family is None:
        raise VerifyError([f"{folder} is of the architecture {config.get('architecture')}, which trtbuild has not"])
    options = replace(options_of(family, options, "float32"), target="cpu")
    if not _value(config, "moe")["num_experts"]:
        options = replace(options, moe_tp_size=None, moe_ep_size=None)  # of a dense model they say nothing
    return Subject(folder, kind, config, options)


def contradictions(subject: Subject, model: Dict[str, Any]) -> Iterator[str]:
    """Sizes in which a subject's config and the model's (as TensorRT-LLM has it) differ."""
    for field in _SIZES:
        have, want = _value(subject.config, field), _value(model, field)
        if have != want:
            yield f"{field} is {have} in {subject.folder}, but {want} in the model"


def differences(subject: Subject, model: Dict[str, Any]) -> Iterator[str]:
    """Other fields in which they differ."""
    for field, want in model.items():
        have = subject.config.get(field)
        if field not in _SIZES and field in subject.config and have != want:
            yield f"config.json has {field} {have}, the model {want}"


def _value(config: Dict[str, Any], field: str) -> Any:
    """A field, or what its absence means."""
    value = config.get(field)
    if field == "moe":
        return {key: (value or {}).get(key, 0) for key in ("num_experts", "top_k")}
    if value is None and field == "num_key_value_heads":
        return config.get("num_attention_heads")
    if value is None and field == "head_size":
        return int(config["hidden_size"]) // int(config["num_attention_heads"])
    if value is None and field == "intermediate_size":
        return 4 * int(config["hidden_size"])
    return value or 0
