"""What one rank computes, as a list of operations over named weights and numbered buffers.

Built from a TensorRT-LLM checkpoint config, family-neutral, without arrays. Two executors run the same list: the
native kernels and torch. Communication between ranks is an operation too, so that every family and every
TP x PP layout is one program.

Shapes: T tokens of the batch, R rows that need logits, H hidden, I intermediate of this rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from trtbuild.mapping import Mapping
from trtbuild.runtime.architectures import head_size, intermediate_size, num_kv_heads, read_features
from trtbuild.runtime.features import Features, Mlp, Norm, Position
from trtbuild.runtime.forms import KV_ROUND
from trtbuild.runtime.linears import Linears
from trtbuild.runtime.moe import Experts, moe_block, rank_experts
from trtbuild.runtime.ops import Buffer, Kind, Op, Weight


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
    fc_size: int  # outputs of the first linear of the MLP
    experts: Experts | None = None
    prepared_size: int = 0  # inputs of the widest linear whose form changes them

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
            Buffer.FC_GATE: self.fc_size,
            Buffer.MLP: self.intermediate_size,
            Buffer.PART: hidden,
            Buffer.ROWS: hidden,
            Buffer.LOGITS: self.vocab_rows,
            Buffer.MLP_PART: hidden,
            **(self.experts.widths(hidden) if self.experts else {}),
            **({Buffer.PREPARED: self.prepared_size} if self.prepared_size else {}),
        }


@dataclass(frozen=True)
class Program:
    features: Features
    shapes: Shapes
    ops: tuple[Op, ...]
    weights: tuple[Weight, ...]


def rank_shapes(config: dict[str, Any], mapping: Mapping, features: Features) -> Shapes:
    """Sizes of the rank `mapping.rank`; `config` is a checkpoint config (or an engine's pretrained_config)."""
    tp, experts = mapping.tp_size, rank_experts(features.moe, mapping) if features.moe else None
    inter = experts.shared_inter if experts else intermediate_size(config) // tp
    return Shapes(
        hidden_size=config["hidden_size"],
        num_layers=len(mapping.layers(config["num_hidden_layers"])),
        num_heads=config["num_attention_heads"] // tp,
        num_kv_heads=mapping.kv_heads(num_kv_heads(config)),
        head_size=head_size(config),
        intermediate_size=inter,
        vocab_size=config["vocab_size"],
        vocab_rows=-(-config["vocab_size"] // tp),
        fc_size=inter if features.mlp is Mlp.PLAIN else 2 * inter,
        experts=experts,
    )


def build_program(config: dict[str, Any], mapping: Mapping) -> Program:
    """The operations and weights of one rank.

    Raises:
        EngineError: the architecture or one of its fields is not one that the cpu runtime can execute.
    """
    features = read_features(config)
    builder = _Builder(config, mapping, features, rank_shapes(config, mapping, features))
    builder.build()
    prepared = max((op.k for op in builder.ops if op.out is Buffer.PREPARED), default=0)
    shapes = replace(builder.shapes, prepared_size=prepared)
    return Program(features, shapes, tuple(builder.ops), tuple(builder.weights))


class _Builder:
    """Collects the operations and weights of one rank, in the order in which they run."""

    def __init__(self, config: dict[str, Any], mapping: Mapping, features: Features, shapes: Shapes) -> None:
        self.config, self.mapping, self.features, self.shapes = config, mapping, features, shapes
        self.ops: list[Op] = []
        self.weights: list[Weight] = []
        first_layer = mapping.layers(config["num_hidden_layers"]).start
        self.linears = Linears(config, first_layer, self.ops, self.weights)
        self.kv_round = KV_ROUND.get((config.get("quantization") or {}).get("kv_cache_quant_algo") or "")
        # A row-parallel bias is complete on every rank and added once: only rank 0 applies it (checkpoint format 3.1).
        self.adds_bias = mapping.tp_rank == 0

    def build(self) -> None:
        if self.mapping.is_first_stage:
            self._embedding()
        else:
            self.ops.append(Op(Kind.RECEIVE, out=Buffer.X))
        layers = self.mapping.layers(self.config["num_hidden_layers"])
        for local, layer in enumerate(layers):
            self._layer(local, layer)
        if layers:
            self.ops.append(Op(Kind.ADD, in_=Buffer.X, in2=Buffer.PART, k=self.shapes.hidden_size))
        if self.mapping.is_last_stage:
            self._head()
        else:
            self.ops.append(Op(Kind.SEND, in_=Buffer.X))

    def _embedding(self) -> None:
        parallel = self.config.get("use_parallel_embedding", False) and self.mapping.tp_size > 1
        self._table(Kind.EMBED, "transformer.vocab_embedding.weight", self.shapes.vocab_size, parallel)
        if self.features.position is Position.LEARNED:
            positions = self.features.max_positions
            self._table(Kind.ADD_POSITION, "transformer.position_embedding.weight", positions, parallel)
        if parallel:
            self.ops.append(Op(Kind.ALL_REDUCE, out=Buffer.X))
        if self.features.embedding_norm:
            self._norm("transformer.ln_embed", Buffer.X, Buffer.X)

    def _table(self, kind: Kind, name: str, entries: int, parallel: bool) -> None:
        """An embedding table: whole, or cut by rows (padded) or by columns."""
        rows, columns, row, column = entries, self.shapes.hidden_size, 0, 0
        if parallel and self.config.get("embedding_sharding_dim", 0) == 0:
            rows = -(-entries // self.mapping.tp_size)
            row = rows * self.mapping.tp_rank
        elif parallel:
            columns //= self.mapping.tp_size
            column = columns * self.mapping.tp_rank
        self.weights.append(Weight(name, (name,), (rows, columns)))
        factor = self.features.embedding_scale if kind is Kind.EMBED else 1.0
        self.ops.append(Op(kind, Buffer.X, weight=name, n=rows, k=columns, row=row, column=column, factor=factor))

    def _layer(self, local: int, layer: int) -> None:
        """PART, the last layer's summand, is added to X by the first norm that reads X."""
        f, base = self.features, f"transformer.layers.{local}."
        self._norm(base + f.attention_norm, Buffer.H, Buffer.X, Buffer.PART if local else None)
        self._attention(base, local, layer)
        if f.parallel:
            if f.mlp_norm:
                self._norm(base + f.mlp_norm, Buffer.H, Buffer.X)
            self._mlp(base, Buffer.MLP_PART)
            self.ops.append(Op(Kind.ADD, in_=Buffer.PART, in2=Buffer.MLP_PART, k=self.shapes.hidden_size))
            self._reduce_part()
            return
        self._reduce_part()
        if f.after_attention:
            self._norm(base + f.after_attention, Buffer.PART, Buffer.PART)
        self._norm(base + f.mlp_norm, Buffer.H, Buffer.X, Buffer.PART)
        self._mlp(base, Buffer.PART)
        self._reduce_part()
        if f.after_mlp:
            self._norm(base + f.after_mlp, Buffer.PART, Buffer.PART)

    def _attention(self, base: str, local: int, layer: int) -> None:
        """H -> PART, not yet reduced."""
        f, s, differs = self.features, self.shapes, self.features.layers[layer]
        add = self.linears.add
        add(base + "attention.qkv", Buffer.QKV, Buffer.H, s.qkv_size, s.hidden_size, bias=f.qkv_bias)
        if f.qk_norm:
            self._head_norm(base + "attention.q_layernorm.weight", 0, s.num_heads)
            self._head_norm(base + "attention.k_layernorm.weight", s.num_heads * s.head_size, s.num_kv_heads)
        kv_scale = self._kv_scale(base)
        self.ops += [
            Op(
                Kind.ROPE_CACHE,
                in_=Buffer.QKV,
                weight=kv_scale,
                layer=local,
                act=self.kv_round or 0,
                table=differs.rope,
            ),
            Op(Kind.ATTENTION, Buffer.ATT, Buffer.QKV, layer=local, window=differs.window),
        ]
        width = s.num_heads * s.head_size
        bias = f.dense_bias and self.adds_bias
        add(base + "attention.dense", Buffer.PART, Buffer.ATT, s.hidden_size, width, bias=bias)

    def _kv_scale(self, base: str) -> str:
        """The scale of a rounded KV cache: one for keys and values of a layer."""
        if self.kv_round is None:
            return ""
        name = base + "attention.kv_cache_scaling_factor"
        self.weights.append(Weight(name, (name,), (1,), float32=True))
        return name

    def _mlp(self, base: str, out: Buffer) -> None:
        """H -> `out`, not yet reduced."""
        f, s = self.features, self.shapes
        if s.experts:
            moe_block(s.experts, base + "mlp.", s.hidden_size, f.activation, out, self.linears)
            return
        name, parts = ("mlp.fc_gate", ("mlp.fc", "mlp.gate")) if f.mlp is Mlp.GATED else ("mlp.fc", ("mlp.fc",))
        stacked = tuple(base + part for part in parts)
        add = self.linears.add
        add(base + name, Buffer.FC_GATE, Buffer.H, s.fc_size, s.hidden_size, parts=stacked, bias=f.mlp_bias)
        inter = s.intermediate_size
        kind = Kind.ACT if f.mlp is Mlp.PLAIN else Kind.ACT_MUL
        column = inter if f.mlp is Mlp.FUSED_GATED else 0
        self.ops.append(Op(kind, Buffer.MLP, Buffer.FC_GATE, n=inter, column=column, act=f.activation))
        bias = f.mlp_bias and self.adds_bias
        add(base + "mlp.proj", out, Buffer.MLP, s.hidden_size, inter, bias=bias)

    def _head(self) -> None:
        f, s, hidden = self.features, self.shapes, self.shapes.hidden_size
        self.ops.append(Op(Kind.TAKE_ROWS, Buffer.ROWS, Buffer.X, k=hidden))
        self._norm("transformer.ln_f", Buffer.H, Buffer.ROWS, of_rows=True)
        self.linears.add("lm_head", Buffer.LOGITS, Buffer.H, s.vocab_rows, hidden, bias=f.head_bias, of_rows=True)
        if f.final_soft_cap:
            cap = Op(Kind.SOFT_CAP, Buffer.LOGITS, Buffer.LOGITS, n=s.vocab_rows, factor=f.final_soft_cap, of_rows=True)
            self.ops.append(cap)
        self.ops.append(Op(Kind.GATHER_LOGITS, in_=Buffer.LOGITS))

    def _norm(self, name: str, out: Buffer, in_: Buffer, add: Buffer | None = None, *, of_rows: bool = False) -> None:
        """`in_` += `add` first, where there is one."""
        layer_norm, hidden = self.features.norm is Norm.LAYER, self.shapes.hidden_size
        weight, bias = f"{name}.weight", f"{name}.bias" if layer_norm else ""
        self.weights += [Weight(part, (part,), (hidden,), float32=True) for part in (weight, bias) if part]
        kind, eps = Kind.LAYER_NORM if layer_norm else Kind.NORM, self.features.norm_eps
        self.ops.append(Op(kind, out, in_, add, weight, bias, k=hidden, eps=eps, of_rows=of_rows))

    def _head_norm(self, name: str, column: int, heads: int) -> None:
        size, eps = self.shapes.head_size, self.features.norm_eps
        self.weights.append(Weight(name, (name,), (size,), float32=True))
        op = Op(Kind.HEAD_NORM, Buffer.QKV, Buffer.QKV, weight=name, n=heads, k=size, column=column, eps=eps)
        self.ops.append(op)

    def _reduce_part(self) -> None:
        if self.mapping.tp_size > 1:
            self.ops.append(Op(Kind.ALL_REDUCE, out=Buffer.PART))
