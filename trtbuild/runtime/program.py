"""What one rank computes, as a list of operations over named weights and numbered buffers.

Built from a TensorRT-LLM checkpoint config, family-neutral, without arrays. Two executors run the same list: the
native kernels and torch. Communication between ranks is an operation too, so that every family and every
TP x PP layout is one program.

Shapes: T tokens of the batch, R rows that need logits, H hidden, I intermediate of this rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from trtbuild.errors import EngineError
from trtbuild.mapping import Mapping
from trtbuild.runtime.rope import SCALING_TYPES


class Kind(IntEnum):
    """Operations; the values up to TAKE_ROWS are those of kernels.c, the others are done by `model.py`."""

    EMBED = 0
    NORM = 1
    LINEAR = 2
    ROPE_CACHE = 3
    ATTENTION = 4
    ACT_MUL = 5
    ADD = 6
    TAKE_ROWS = 7
    ALL_REDUCE = 100
    RECEIVE = 101
    SEND = 102
    GATHER_LOGITS = 103


class Buffer(IntEnum):
    """Activations, float32 [T, width] (ROWS, LOGITS: [R, width])."""

    X = 0  # residual stream, [T, H]
    H = 1  # normed input of a block, [T, H]
    QKV = 2
    ATT = 3
    FC_GATE = 4
    MLP = 5
    PART = 6  # output of a row-parallel linear: this rank's summand of the residual, [T, H]
    ROWS = 7
    LOGITS = 8


@dataclass(frozen=True)
class Op:
    """One operation. `weight` and `bias` are engine tensor names; n outputs, k inputs."""

    kind: Kind
    out: Buffer = Buffer.X
    in_: Buffer = Buffer.X
    in2: Buffer | None = None
    weight: str = ""
    bias: str = ""
    n: int = 0
    k: int = 0
    layer: int = 0
    row: int = 0
    column: int = 0
    eps: float = 0.0
    of_rows: bool = False


@dataclass(frozen=True)
class Weight:
    """An engine tensor: checkpoint tensors stacked along dim 0; `quantized` ones follow the quant_algo."""

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    quantized: bool = False
    float32: bool = False


@dataclass(frozen=True)
class Shapes:
    """Sizes of one rank, from `pretrained_config`."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    vocab_size: int
    vocab_rows: int  # of this rank's lm_head
    rotary_size: int

    @property
    def qkv_size(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_size

    def widths(self) -> dict[Buffer, int]:
        hidden = self.hidden_size
        return {
            Buffer.X: hidden,
            Buffer.H: hidden,
            Buffer.QKV: self.qkv_size,
            Buffer.ATT: self.num_heads * self.head_size,
            Buffer.FC_GATE: 2 * self.intermediate_size,
            Buffer.MLP: self.intermediate_size,
            Buffer.PART: hidden,
            Buffer.ROWS: hidden,
            Buffer.LOGITS: self.vocab_rows,
        }


@dataclass(frozen=True)
class Program:
    shapes: Shapes
    ops: tuple[Op, ...]
    weights: tuple[Weight, ...]


# architecture -> nothing else needs to be known about it here
_SUPPORTED = {"LlamaForCausalLM": {"position_embedding_type": "rope_gpt_neox", "hidden_act": "silu"}}


def rank_shapes(config: dict[str, Any], mapping: Mapping) -> Shapes:
    """Sizes of the rank `mapping.rank`; `config` is a checkpoint config (or an engine's pretrained_config)."""
    tp, heads = mapping.tp_size, config["num_attention_heads"]
    head_size = config.get("head_size") or config["hidden_size"] // heads
    return Shapes(
        hidden_size=config["hidden_size"],
        num_layers=len(mapping.layers(config["num_hidden_layers"])),
        num_heads=heads // tp,
        num_kv_heads=mapping.kv_heads(config["num_key_value_heads"]),
        head_size=head_size,
        intermediate_size=config["intermediate_size"] // tp,
        vocab_size=config["vocab_size"],
        vocab_rows=-(-config["vocab_size"] // tp),
        rotary_size=config.get("rotary_embedding_dim") or head_size,
    )


def build_program(config: dict[str, Any], mapping: Mapping) -> Program:
    """The operations and weights of one rank.

    Raises:
        EngineError: the architecture or one of its fields is not one that the cpu runtime can execute.
    """
    _check(config)
    shapes = rank_shapes(config, mapping)
    ops: list[Op] = []
    weights: list[Weight] = []
    if mapping.is_first_stage:
        _embedding(config, mapping, shapes, ops, weights)
    else:
        ops.append(Op(Kind.RECEIVE, out=Buffer.X))
    pending = False  # whether PART still waits to be added to X
    for layer in range(shapes.num_layers):
        _layer(config, mapping, shapes, layer, pending, ops, weights)
        pending = True
    if pending:
        ops.append(Op(Kind.ADD, in_=Buffer.X, in2=Buffer.PART, k=shapes.hidden_size))
    if mapping.is_last_stage:
        _head(config, shapes, ops, weights)
    else:
        ops.append(Op(Kind.SEND, in_=Buffer.X))
    return Program(shapes, tuple(ops), tuple(weights))


def _check(config: dict[str, Any]) -> None:
    wanted = _SUPPORTED.get(config["architecture"])
    if wanted is None:
        raise EngineError(
            f"the cpu runtime cannot execute {config['architecture']}", hint=f"It executes: {', '.join(_SUPPORTED)}."
        )
    wrong = [
        f"{key} {config.get(key)!r} (supported: {value!r})" for key, value in wanted.items() if config.get(key) != value
    ]
    scaling = config.get("rotary_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in SCALING_TYPES:
        wrong.append(f"rotary_scaling {kind!r} (supported: {', '.join(SCALING_TYPES)})")
    quantization = config.get("quantization") or {}
    only = {
        "quantization.quant_algo": (quantization.get("quant_algo"), (None, "W8A16")),
        "quantization.kv_cache_quant_algo": (quantization.get("kv_cache_quant_algo"), (None,)),
        "qk_layernorm": (config.get("qk_layernorm", False), (False,)),
        "mapping.cp_size": (config.get("mapping", {}).get("cp_size", 1), (1,)),
    }
    wrong += [
        f"{name} {value!r} (supported: {choice})" for name, (value, choice) in only.items() if value not in choice
    ]
    if wrong:
        raise EngineError(f"the cpu runtime cannot execute {config['architecture']} with {'; '.join(wrong)}")


def _embedding(config: dict[str, Any], mapping: Mapping, shapes: Shapes, ops: list[Op], weights: list[Weight]) -> None:
    rows, columns, row, column = shapes.vocab_size, shapes.hidden_size, 0, 0
    parallel = config.get("use_parallel_embedding", False) and mapping.tp_size > 1
    if parallel and config.get("embedding_sharding_dim", 0) == 0:
        rows, row = shapes.vocab_rows, shapes.vocab_rows * mapping.tp_rank
    elif parallel:
        columns = shapes.hidden_size // mapping.tp_size
        column = columns * mapping.tp_rank
    name = "transformer.vocab_embedding.weight"
    weights.append(Weight(name, (name,), (rows, columns)))
    ops.append(Op(Kind.EMBED, out=Buffer.X, weight=name, n=rows, k=columns, row=row, column=column))
    if parallel:
        ops.append(Op(Kind.ALL_REDUCE, out=Buffer.X))


def _layer(
    config: dict[str, Any],
    mapping: Mapping,
    shapes: Shapes,
    layer: int,
    pending: bool,
    ops: list[Op],
    weights: list[Weight],
) -> None:
    base = f"transformer.layers.{layer}."
    hidden, inter, eps = shapes.hidden_size, shapes.intermediate_size, config["norm_epsilon"]
    attn_bias, mlp_bias = config.get("attn_bias", False), config.get("mlp_bias", False)

    def norm(name: str, add: bool) -> None:
        weights.append(Weight(base + name, (base + name,), (hidden,), float32=True))
        ops.append(Op(Kind.NORM, Buffer.H, Buffer.X, Buffer.PART if add else None, base + name, k=hidden, eps=eps))

    def linear(name: str, sources: tuple[str, ...], out: Buffer, in_: Buffer, n: int, k: int, bias: bool) -> None:
        weights.append(
            Weight(f"{base}{name}.weight", tuple(f"{base}{s}.weight" for s in sources), (n, k), quantized=True)
        )
        if bias:
            weights.append(Weight(f"{base}{name}.bias", tuple(f"{base}{s}.bias" for s in sources), (n,), float32=True))
        bias_name = f"{base}{name}.bias" if bias else ""
        ops.append(Op(Kind.LINEAR, out, in_, weight=f"{base}{name}.weight", bias=bias_name, n=n, k=k))

    def reduce_part() -> None:
        if mapping.tp_size > 1:
            ops.append(Op(Kind.ALL_REDUCE, out=Buffer.PART))

    # A row-parallel bias is complete on every rank and added once, so only rank 0 applies it (checkpoint format 3.1).
    first = mapping.tp_rank == 0
    norm("input_layernorm.weight", pending)
    linear("attention.qkv", ("attention.qkv",), Buffer.QKV, Buffer.H, shapes.qkv_size, hidden, attn_bias)
    ops.append(Op(Kind.ROPE_CACHE, in_=Buffer.QKV, layer=layer))
    ops.append(Op(Kind.ATTENTION, Buffer.ATT, Buffer.QKV, layer=layer))
    linear(
        "attention.dense",
        ("attention.dense",),
        Buffer.PART,
        Buffer.ATT,
        hidden,
        shapes.num_heads * shapes.head_size,
        attn_bias and first,
    )
    reduce_part()
    norm("post_layernorm.weight", True)
    linear("mlp.fc_gate", ("mlp.fc", "mlp.gate"), Buffer.FC_GATE, Buffer.H, 2 * inter, hidden, mlp_bias)
    ops.append(Op(Kind.ACT_MUL, Buffer.MLP, Buffer.FC_GATE, n=inter))
    linear("mlp.proj", ("mlp.proj",), Buffer.PART, Buffer.MLP, hidden, inter, mlp_bias and first)
    reduce_part()


def _head(config: dict[str, Any], shapes: Shapes, ops: list[Op], weights: list[Weight]) -> None:
    hidden = shapes.hidden_size
    weights.append(Weight("transformer.ln_f.weight", ("transformer.ln_f.weight",), (hidden,), float32=True))
    weights.append(Weight("lm_head.weight", ("lm_head.weight",), (shapes.vocab_rows, hidden)))
    ops += [
        Op(Kind.TAKE_ROWS, Buffer.ROWS, Buffer.X, k=hidden),
        Op(
            Kind.NORM,
            Buffer.H,
            Buffer.ROWS,
            None,
            "transformer.ln_f.weight",
            k=hidden,
            eps=config["norm_epsilon"],
            of_rows=True,
        ),
        Op(Kind.LINEAR, Buffer.LOGITS, Buffer.H, weight="lm_head.weight", n=shapes.vocab_rows, k=hidden, of_rows=True),
        Op(Kind.GATHER_LOGITS, in_=Buffer.LOGITS),
    ]
