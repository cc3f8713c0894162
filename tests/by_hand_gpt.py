"""Whole models in TensorRT-LLM's terms, put together from a state dict by torch alone, and cut by hand.

By the written rules of the checkpoint format (2.6 to 2.10, 3.1 to 3.3); no rule of the families takes part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

H, HEADS, HD, LAYERS = 64, 8, 8, 4
State = dict[str, Tensor]


@dataclass
class Whole:
    """Uncut tensors by TensorRT-LLM's names; `qkv` and `column` hold the parts that are cut separately."""

    first: dict[str, Tensor]
    last: dict[str, Tensor]
    head: dict[str, Tensor]
    layers: list[Layer]


@dataclass
class Layer:
    copy: dict[str, Tensor] = field(default_factory=dict)
    column: dict[str, list[Tensor]] = field(default_factory=dict)
    row: dict[str, Tensor] = field(default_factory=dict)
    kv: dict[str, list[Tensor]] = field(default_factory=dict)
    once: dict[str, Tensor] = field(default_factory=dict)

    def linear(
        self, s: State, target: str, source: str, kind: str, split: Callable[[Tensor], Any], **flags: Any
    ) -> None:
        """A linear's weight and bias; `split` makes the parts of the output axis."""
        for name in ("weight", "bias"):
            tensor = s.get(f"{source}.{name}")
            if tensor is None:
                continue
            if name == "weight" and flags.get("conv1d"):
                tensor = tensor.T
            into = f"{target}.{name}"
            if kind == "row" and name == "bias":
                (self.once if flags.get("once") else self.copy)[into] = tensor
            elif kind == "row":
                self.row[into] = tensor
            else:
                getattr(self, kind)[into] = split(tensor)

    def norm(self, s: State, target: str, source: str) -> None:
        self.copy |= {f"{target}.{n}": s[f"{source}.{n}"] for n in ("weight", "bias") if f"{source}.{n}" in s}


def thirds(heads: int, kv: int) -> Callable[[Tensor], list[Tensor]]:
    return lambda t: list(t.split([heads * HD, kv * HD, kv * HD]))


def by_group(heads: int, kv: int) -> Callable[[Tensor], list[Tensor]]:
    """Rows lie as [kv heads, (q..q, k, v), head size]."""

    def split(t: Tensor) -> list[Tensor]:
        grouped = t.reshape(kv, heads // kv + 2, HD, *t.shape[1:])
        return [part.reshape(-1, *t.shape[1:]) for part in (grouped[:, :-2], grouped[:, -2], grouped[:, -1])]

    return split


def alone(t: Tensor) -> list[Tensor]:
    return [t]


def named(s: State, target: str, source: str) -> State:
    return {f"{target}.{n}": s[f"{source}.{n}"] for n in ("weight", "bias") if f"{source}.{n}" in s}


def fused(s: State, prefix: str) -> State:
    """q, k and v of a layer put together under one name."""
    kinds = [n for n in ("weight", "bias") if f"{prefix}q_proj.{n}" in s]
    return {f"{prefix}qkv.{n}": torch.cat([s[f"{prefix}{part}_proj.{n}"] for part in "qkv"]) for n in kinds}


def phi(s: State, c: dict[str, Any]) -> Whole:
    layers = []
    for i in range(LAYERS):
        at, layer = f"model.layers.{i}.", Layer()
        s |= fused(s, at + "self_attn.")
        layer.norm(s, "input_layernorm", at + "input_layernorm")
        layer.linear(s, "attention.qkv", at + "self_attn.qkv", "kv", thirds(HEADS, HEADS))
        layer.linear(s, "attention.dense", at + "self_attn.dense", "row", alone)
        layer.linear(s, "mlp.fc", at + "mlp.fc1", "column", alone)
        layer.linear(s, "mlp.proj", at + "mlp.fc2", "row", alone)
        layers.append(layer)
    first = {"vocab_embedding.weight": s["model.embed_tokens.weight"]}
    return Whole(first, named(s, "ln_f", "model.final_layernorm"), named(s, "lm_head", "lm_head"), layers)


def phi3(s: State, c: dict[str, Any]) -> Whole:
    layers = []
    for i in range(LAYERS):
        at, layer = f"model.layers.{i}.", Layer()
        layer.norm(s, "input_layernorm", at + "input_layernorm")
        layer.norm(s, "post_layernorm", at + "post_attention_layernorm")
        layer.linear(s, "attention.qkv", at + "self_attn.qkv_proj", "kv", thirds(HEADS, c["num_key_value_heads"]))
        layer.linear(s, "attention.dense", at + "self_attn.o_proj", "row", alone)
        # In the file [gate; up]; swiglu activates the second half of what is stored.
        layer.linear(s, "mlp.fc", at + "mlp.gate_up_proj", "column", lambda t: list(reversed(t.chunk(2))))
        layer.linear(s, "mlp.proj", at + "mlp.down_proj", "row", alone)
        layers.append(layer)
    table = s["model.embed_tokens.weight"]
    head = {"lm_head.weight": s.get("lm_head.weight", table)}
    return Whole({"vocab_embedding.weight": table}, named(s, "ln_f", "model.norm"), head, layers)


def gpt2(s: State, c: dict[str, Any], conv1d: bool = True) -> Whole:
    kv = 1 if c.get("multi_query", not conv1d) else HEADS
    split = thirds(HEADS, kv) if conv1d or kv == 1 else by_group(HEADS, HEADS)
    layers = []
    for i in range(LAYERS):
        at, layer = f"transformer.h.{i}.", Layer()
        layer.norm(s, "input_layernorm", at + "ln_1")
        layer.norm(s, "post_layernorm", at + "ln_2")
        layer.linear(s, "attention.qkv", at + "attn.c_attn", "kv", split, conv1d=conv1d)
        layer.linear(s, "attention.dense", at + "attn.c_proj", "row", alone, conv1d=conv1d)
        layer.linear(s, "mlp.fc", at + "mlp.c_fc", "column", alone, conv1d=conv1d)
        layer.linear(s, "mlp.proj", at + "mlp.c_proj", "row", alone, conv1d=conv1d)
        layers.append(layer)
    table = s["transformer.wte.weight"]
    first = {"vocab_embedding.weight": table, "position_embedding.weight": s["transformer.wpe.weight"]}
    head = {"lm_head.weight": s.get("lm_head.weight", table)}
    return Whole(first, named(s, "ln_f", "transformer.ln_f"), head, layers)


def gpt_bigcode(s: State, c: dict[str, Any]) -> Whole:
    return gpt2(s, c, conv1d=False)


def starcoder2(s: State, c: dict[str, Any]) -> Whole:
    layers = []
    for i in range(LAYERS):
        at, layer = f"model.layers.{i}.", Layer()
        s |= fused(s, at + "self_attn.")
        layer.norm(s, "input_layernorm", at + "input_layernorm")
        layer.norm(s, "post_layernorm", at + "post_attention_layernorm")
        layer.linear(s, "attention.qkv", at + "self_attn.qkv", "kv", thirds(HEADS, c["num_key_value_heads"]))
        layer.linear(s, "attention.dense", at + "self_attn.o_proj", "row", alone)
        layer.linear(s, "mlp.fc", at + "mlp.c_fc", "column", alone)
        layer.linear(s, "mlp.proj", at + "mlp.c_proj", "row", alone)
        layers.append(layer)
    table = s["model.embed_tokens.weight"]
    head = {"lm_head.weight": s.get("lm_head.weight", table)}
    return Whole({"vocab_embedding.weight": table}, named(s, "ln_f", "model.norm"), head, layers)


def falcon(s: State, c: dict[str, Any]) -> Whole:
    new, parallel = c["new_decoder_architecture"], c["parallel_attn"]
    kv = c["num_kv_heads"] if new else 1 if c["multi_query"] else HEADS
    layers = []
    for i in range(LAYERS):
        at, layer = f"transformer.h.{i}.", Layer()
        if new and c.get("num_ln_in_parallel_attn") != 1:
            layer.norm(s, "input_layernorm", at + "ln_attn")
            layer.norm(s, "mlp_layernorm", at + "ln_mlp")
        else:
            layer.norm(s, "input_layernorm", at + "input_layernorm")
        if not parallel:
            layer.norm(s, "post_layernorm", at + "post_attention_layernorm")
        layer.linear(s, "attention.qkv", at + "self_attention.query_key_value", "kv", by_group(HEADS, kv))
        layer.linear(s, "attention.dense", at + "self_attention.dense", "row", alone, once=parallel)
        layer.linear(s, "mlp.fc", at + "mlp.dense_h_to_4h", "column", alone)
        layer.linear(s, "mlp.proj", at + "mlp.dense_4h_to_h", "row", alone, once=parallel)
        layers.append(layer)
    table = s["transformer.word_embeddings.weight"]
    head = {"lm_head.weight": s.get("lm_head.weight", table)}
    return Whole({"vocab_embedding.weight": table}, named(s, "ln_f", "transformer.ln_f"), head, layers)


def gptneox(s: State, c: dict[str, Any]) -> Whole:
    layers = []
    for i in range(LAYERS):
        at, layer = f"gpt_neox.layers.{i}.", Layer()
        layer.norm(s, "input_layernorm", at + "input_layernorm")
        layer.norm(s, "post_attention_layernorm", at + "post_attention_layernorm")
        layer.linear(s, "attention.qkv", at + "attention.query_key_value", "kv", by_group(HEADS, HEADS))
        layer.linear(s, "attention.dense", at + "attention.dense", "row", alone)
        layer.linear(s, "mlp.fc", at + "mlp.dense_h_to_4h", "column", alone)
        layer.linear(s, "mlp.proj", at + "mlp.dense_4h_to_h", "row", alone)
        layers.append(layer)
    first = {"vocab_embedding.weight": s["gpt_neox.embed_in.weight"]}
    head = {"lm_head.weight": next(s[n] for n in ("embed_out.weight", "lm_head.weight") if n in s)}
    return Whole(first, named(s, "ln_f", "gpt_neox.final_layer_norm"), head, layers)


def bloom(s: State, c: dict[str, Any]) -> Whole:
    layers = []
    for i in range(LAYERS):
        at, layer = f"transformer.h.{i}.", Layer()
        layer.norm(s, "input_layernorm", at + "input_layernorm")
        layer.norm(s, "post_layernorm", at + "post_attention_layernorm")
        layer.linear(s, "attention.qkv", at + "self_attention.query_key_value", "kv", by_group(HEADS, HEADS))
        layer.linear(s, "attention.dense", at + "self_attention.dense", "row", alone)
        layer.linear(s, "mlp.fc", at + "mlp.dense_h_to_4h", "column", alone)
        layer.linear(s, "mlp.proj", at + "mlp.dense_4h_to_h", "row", alone)
        layers.append(layer)
    table = s["transformer.word_embeddings.weight"]
    first = {"vocab_embedding.weight": table} | named(s, "ln_embed", "transformer.word_embeddings_layernorm")
    return Whole(first, named(s, "ln_f", "transformer.ln_f"), {"lm_head.weight": table}, layers)


def opt(s: State, c: dict[str, Any]) -> Whole:
    layers = []
    for i in range(LAYERS):
        at, layer = f"model.decoder.layers.{i}.", Layer()
        s |= fused(s, at + "self_attn.")
        layer.norm(s, "input_layernorm", at + "self_attn_layer_norm")
        layer.norm(s, "post_layernorm", at + "final_layer_norm")
        layer.linear(s, "attention.qkv", at + "self_attn.qkv", "kv", thirds(HEADS, HEADS))
        layer.linear(s, "attention.dense", at + "self_attn.out_proj", "row", alone)
        layer.linear(s, "mlp.fc", at + "fc1", "column", alone)
        layer.linear(s, "mlp.proj", at + "fc2", "row", alone)
        layers.append(layer)
    table, positions = s["model.decoder.embed_tokens.weight"], s["model.decoder.embed_positions.weight"][2:]
    first = {"vocab_embedding.weight": table, "position_embedding.weight": positions}
    return Whole(first, named(s, "ln_f", "model.decoder.final_layer_norm"), {"lm_head.weight": table}, layers)


def cut(whole: Whole, tp: int, pp: int, dim: int | None, rank: int) -> State:
    """The tensors of one rank by the rules of checkpoint format 3.1 to 3.3."""
    r, stage = rank % tp, rank // tp
    layers = torch.arange(LAYERS).tensor_split(pp)[stage].tolist()

    def rows(t: Tensor) -> Tensor:
        return pad(t, (0, 0) * (t.ndim - 1) + (0, -len(t) % tp)).chunk(tp)[r]

    def kv_rows(t: Tensor) -> Tensor:
        heads = t.reshape(-1, HD, *t.shape[1:])
        return heads.repeat_interleave(max(1, tp // len(heads)), 0).chunk(tp)[r].flatten(0, 1)

    found: State = {}
    if stage == 0:
        for name, t in whole.first.items():
            if dim is not None and "_embedding" in name:
                t = rows(t) if dim == 0 else t.chunk(tp, 1)[r]
            found[f"transformer.{name}"] = t
    if stage == pp - 1:
        found |= {f"transformer.{name}": t for name, t in whole.last.items()}
        found |= {name: rows(t) for name, t in whole.head.items()}
    for local, number in enumerate(layers):
        layer, at = whole.layers[number], f"transformer.layers.{local}."
        found |= {at + name: t for name, t in layer.copy.items()}
        found |= {at + name: t if r == 0 else torch.zeros_like(t) for name, t in layer.once.items()}
        found |= {at + name: t.chunk(tp, 1)[r] for name, t in layer.row.items()}
        found |= {at + name: torch.cat([rows(part) for part in parts]) for name, parts in layer.column.items()}
        found |= {at + name: torch.cat([kv_rows(part) for part in parts]) for name, parts in layer.kv.items()}
    return found
