"""What one rank computes, as a list of operations over named weights and numbered buffers.

Built from a TensorRT-LLM checkpoint config, family-neutral, without arrays. Two executors run the same list: the
native kernels and torch. Communication between ranks is an operation too, so that every family and every
TP x PP layout is one program.

Shapes: T tokens of the batch, R rows that need logits, H hidden, I intermediate of this rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trtbuild.errors import EngineError
from trtbuild.mapping import Mapping
from trtbuild.runtime.moe import Experts, moe_block, moe_problems, rank_experts
from trtbuild.runtime.ops import Buffer, Kind, Op, Weight
from trtbuild.runtime.rope import SCALING_TYPES


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
    experts: Experts | None = None

    @property
    def qkv_size(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_size

    def widths(self) -> dict[Buffer, int]:
        hidden = self.hidden_size
        experts = self.experts.widths(hidden) if self.experts else {}
        return {
            **experts,
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
_DENSE = {"position_embedding_type": "rope_gpt_neox", "hidden_act": "silu"}
_MOE = {**_DENSE, "hidden_act": "swiglu"}
_SUPPORTED = {
    "LlamaForCausalLM": _DENSE,
    "MixtralForCausalLM": _MOE,
    "Qwen2MoeForCausalLM": _MOE,
    "Qwen3MoeForCausalLM": _MOE,
}


def rank_shapes(config: dict[str, Any], mapping: Mapping) -> Shapes:
    """Sizes of the rank `mapping.rank`; `config` is a checkpoint config (or an engine's pretrained_config)."""
    tp, heads = mapping.tp_size, config["num_attention_heads"]
    head_size = config.get("head_size") or config["hidden_size"] // heads
    experts = rank_experts(config, mapping)
    return Shapes(
        hidden_size=config["hidden_size"],
        num_layers=len(mapping.layers(config["num_hidden_layers"])),
        num_heads=heads // tp,
        num_kv_heads=mapping.kv_heads(config["num_key_value_heads"]),
        head_size=head_size,
        intermediate_size=experts.shared_inter if experts else config["intermediate_size"] // tp,
        vocab_size=config["vocab_size"],
        vocab_rows=-(-config["vocab_size"] // tp),
        rotary_size=config.get("rotary_embedding_dim") or head_size,
        experts=experts,
    )


def build_program(config: dict[str, Any], mapping: Mapping) -> Program:
    """The operations and weights of one rank.

    Raises:
        EngineError: the architecture or one of its fields is not one that the cpu runtime can execute.
    """
    _check(config, mapping)
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


def _check(config: dict[str, Any], mapping: Mapping) -> None:
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
    wrong += moe_problems(config, mapping)
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
    if shapes.experts:
        moe_block(shapes.experts, base + "mlp.", hidden, ops, weights)
        reduce_part()
        return
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
