"""The form that a model family fills in: one declarative `Family` value. PURE, no array library.

A family names its config keys, what it demands of them, and one `Rule` per tensor of the TensorRT-LLM checkpoint.
Everything that acts on a family is in `shard.py`, `plan.py` and `checkpoint/config.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping as Dict
from dataclasses import dataclass, field, replace
from typing import Any

from trtbuild.layout import Axis, Split, Stage

REQUIRED = object()
"""Default of a `Key` that the config must hold."""


@dataclass(frozen=True)
class Key:
    """One config.json value: the first of `names` that is present and not null, else `default`.

    `kind` is int (positive), float (positive), bool, str, list or dict; `zero` admits 0. `default` None leaves the
    value to a rule of `checkpoint/config.py` (kv heads = heads, head size = hidden / heads) or to `Family.derive`.
    """

    names: tuple[str, ...]
    kind: type
    default: Any = REQUIRED
    zero: bool = False


@dataclass(frozen=True)
class Expect:
    """A meaning-changing config value: absent, null or one of `allowed`; anything else is refused by name."""

    name: str
    allowed: tuple[Any, ...]
    why: str = ""


@dataclass(frozen=True)
class Refuse:
    """A config key that must be absent, null, false or empty (or a tensor); `why` completes the sentence."""

    name: str
    why: str


@dataclass(frozen=True)
class Multiple:
    """A config value that must be `times` the spec's field `of`, where it is present; `why` explains the refusal."""

    name: str
    of: str
    times: int = 1
    why: str = ""


@dataclass(frozen=True)
class Source:
    """One Hugging Face tensor; "{i}" is the layer, "{e}" the expert. `rows` lists the parts stacked in dim 0.

    `cols` is dim 1, or None for a vector. `fallback` is read instead when `name` is absent and the embeddings are tied.
    `grouped`: rows = (Q, KV, KV) lie by kv head as [kv heads, (q..q, k, v), head size, ...] (Falcon, GPT-NeoX, BLOOM).
    `transposed`: the file holds [in, out] (GPT-2's Conv1D). `skip`: leading rows that are no data (OPT's positions).
    `order`: which parts go into the target, and in which order; empty = as they lie.
    """

    name: str
    rows: tuple[Axis, ...]
    cols: Axis | None = None
    fallback: str = ""
    grouped: bool = False
    transposed: bool = False
    skip: int = 0
    order: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rule:
    """One TensorRT-LLM tensor: its sources' parts, each cut on its own and then stacked in this order.

    "{i}" in `target` is the layer's index inside its pipeline stage. `when` names config fields of the spec that must
    be true ("a !b c=1": a true, b false, c 1). `experts`: the stack repeats for every expert of the rank and gains a
    leading dim. `add` is added to every element (Gemma's norms); `dtype` overrules the checkpoint's (routers: float32).
    """

    target: str
    sources: tuple[Source, ...]
    split: Split
    stage: Stage = Stage.LAYER
    when: str = ""
    experts: bool = False
    add: float = 0.0
    dtype: str = ""


@dataclass(frozen=True)
class Family:
    """Everything that trtbuild knows about a family of models."""

    name: str
    architectures: Dict[str, str]
    """Hugging Face architecture -> architecture string of the TensorRT-LLM checkpoint."""
    keys: Dict[str, Key]
    """Field of the TensorRT-LLM config.json -> where the Hugging Face one has it (checkpoint format 1.2, 1.6)."""
    rules: tuple[Rule, ...]
    activations: Dict[str, str]
    """Accepted `hidden_act` values -> TensorRT-LLM's name."""
    constants: Dict[str, Any] = field(default_factory=dict)
    """TensorRT-LLM config fields with fixed values."""
    derive: Callable[[Dict[str, Any], Dict[str, Any]], tuple[Dict[str, Any], list[str]]] | None = None
    """(Hugging Face config, fields so far) -> (fields to set, problems); for what `keys` cannot say. Pure."""
    rope_types: tuple[str, ...] = ()
    expects: tuple[Expect, ...] = ()
    refuses: tuple[Refuse, ...] = ()
    multiples: tuple[Multiple, ...] = ()
    ignored: tuple[str, ...] = ()
    """fnmatch patterns of source tensors that carry no weights."""
    unusable: tuple[Refuse, ...] = ()
    """fnmatch patterns of source tensors that hold weights in a form that cannot be read, and what to do."""
    prefixes: tuple[tuple[str, str], ...] = ()
    """(prefix in `rules`, prefix that some files have instead)."""
    tensor: bool = True
    """False where TensorRT-LLM's model class cannot be cut into tensor-parallel ranks."""
    pipeline: bool = True
    """False where TensorRT-LLM's model class cannot be cut into pipeline stages."""
    parallel_embedding: bool = False
    """True where the class shards the vocabulary table by rows whenever tp > 1, whatever the config says (Gemma)."""
    quantization: bool = True
    """False where TensorRT-LLM's model class has no quantized form."""
    engine: bool = True
    """False where the cpu runtime, which generates with decoder-only models, has no engine for it."""
    folder: str = ""
    """Subfolder of the checkpoint for one half of an encoder-decoder model."""
    note: str = ""
    """What `trtbuild show families` says of limits of TensorRT-LLM's class."""


def norm(
    target: str, source: str, stage: Stage = Stage.LAYER, *, bias: bool = False, **fields: Any
) -> tuple[Rule, ...]:
    """Rules of a norm over the hidden size: `target`.weight and, for a LayerNorm, `target`.bias."""
    names = ("weight", "bias") if bias else ("weight",)
    return tuple(
        Rule(f"{target}.{name}", (Source(f"{source}.{name}", (Axis.HIDDEN,)),), Split.COPY, stage, **fields)
        for name in names
    )


def linear(
    target: str,
    sources: str | tuple[str, ...],
    rows: tuple[Axis, ...],
    cols: Axis,
    split: Split,
    *,
    bias: str | None = None,
    bias_split: Split | None = None,
    stage: Stage = Stage.LAYER,
    when: str = "",
    **source_fields: Any,
) -> tuple[Rule, ...]:
    """Rules of a linear layer: its weight and, where `bias` is not None, its bias under the condition `bias`.

    With several `sources` each holds one part of `rows`. A bias of a row-parallel linear stays whole (format 3.1).
    """
    names = (sources,) if isinstance(sources, str) else sources
    parts = [rows] if len(names) == 1 else [(axis,) for axis in rows]
    made = tuple(Source(f"{name}.weight", part, cols, **source_fields) for name, part in zip(names, parts, strict=True))
    rules = [Rule(f"{target}.weight", made, split, stage, when)]
    if bias is not None:
        vectors = tuple(
            replace(source, name=f"{name}.bias", cols=None, transposed=False)
            for name, source in zip(names, made, strict=True)
        )
        rules.append(Rule(f"{target}.bias", vectors, bias_split or split, stage, f"{when} {bias}".strip()))
    return tuple(rules)
