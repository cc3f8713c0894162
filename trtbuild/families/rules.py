"""The form that a model family fills in: one declarative `Family` value. PURE, no array library.

A family names its config keys, what it demands of them, and one `Rule` per tensor of the TensorRT-LLM checkpoint.
It contains no loop and no class; everything that acts on a family is in `plan.py` and `checkpoint/config.py`.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass, field
from typing import Any

from trtbuild.layout import Axis, Split, Stage

REQUIRED = object()
"""Default of a `Key` that the config must hold."""


@dataclass(frozen=True)
class Key:
    """One config.json value: the first of `names` that is present and not null, else `default`.

    `kind` is int (positive), float (positive), bool or str. `default` None leaves the value to a rule of
    `checkpoint/config.py` (kv heads = heads, head size = hidden / heads).
    """

    names: tuple[str, ...]
    kind: type
    default: Any = REQUIRED


@dataclass(frozen=True)
class Expect:
    """A meaning-changing config value: absent, null or one of `allowed`; anything else is refused by name."""

    name: str
    allowed: tuple[Any, ...]


@dataclass(frozen=True)
class Refuse:
    """A config key that must be absent, null, false or empty; `why` completes the sentence."""

    name: str
    why: str


@dataclass(frozen=True)
class Source:
    """One Hugging Face tensor; "{i}" is the layer. `rows` lists the parts stacked in dim 0; `cols` is dim 1 or None.

    `fallback` is read instead when `name` is absent and the embeddings are tied.
    """

    name: str
    rows: tuple[Axis, ...]
    cols: Axis | None = None
    fallback: str = ""


@dataclass(frozen=True)
class Rule:
    """One TensorRT-LLM tensor: its sources' parts, each cut on its own and then stacked in this order.

    `when` names a flag of the spec; the tensor exists only where it is true. "{i}" in `target` is the layer's index
    inside its pipeline stage.
    """

    target: str
    sources: tuple[Source, ...]
    split: Split
    stage: Stage = Stage.LAYER
    when: str = ""


@dataclass(frozen=True)
class Family:
    """Everything that trtbuild knows about a family of models."""

    name: str
    architectures: Dict[str, str]
    """Hugging Face architecture -> architecture string of the TensorRT-LLM checkpoint."""
    keys: Dict[str, Key]
    """Field of ModelSpec, or name of a flag -> where config.json has it."""
    rules: tuple[Rule, ...]
    position_embedding_type: str
    activations: Dict[str, str]
    """Accepted `hidden_act` values -> TensorRT-LLM's name."""
    rope_types: tuple[str, ...] = ()
    expects: tuple[Expect, ...] = ()
    refuses: tuple[Refuse, ...] = ()
    ignored: tuple[str, ...] = ()
    """fnmatch patterns of source tensors that carry no weights."""
    config_fields: Dict[str, str] = field(default_factory=dict)
    """Extra TensorRT-LLM config key -> attribute or flag of the spec."""
    config_constants: Dict[str, Any] = field(default_factory=dict)
    """Extra TensorRT-LLM config keys with fixed values."""
    pipeline: bool = True
    """False where TensorRT-LLM's model class cannot be cut into pipeline stages."""
