"""Checkpoints of Llama-like models assembled by hand, to compare with what trtbuild writes.

The assembly follows the written rules of the format (split, then stack; kv heads repeated; padded vocabulary; experts
by rank), with torch on the state dict of a transformers model, and knows nothing of trtbuild's families.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.tiny import load_rank
from trtbuild import pipeline
from trtbuild.spec import ConvertOptions

BASE: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GEMMA = {"vocab_size": 68, "head_dim": 16, "tie_word_embeddings": True}
MODELS: dict[str, dict[str, Any]] = {
    "Llama": {"attention_bias": True, "mlp_bias": True},
    "Mistral": {"head_dim": 16, "sliding_window": 16},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen2Moe": {**MOE, "shared_expert_intermediate_size": 40},
    "Qwen3": {"head_dim": 16},
    "Qwen3Moe": {**MOE, "head_dim": 16, "norm_topk_prob": True},
    "Gemma": {**GEMMA, "num_key_value_heads": 1},
    "Gemma2": {**GEMMA, "sliding_window": 16, "query_pre_attn_scalar": 24},
    "Gemma3": {**GEMMA, "sliding_window": 16, "query_pre_attn_scalar": 24, "attention_bias": True},
}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def make(name: str, folder: Path, dtype: str = "float32", **changes: Any) -> Path:
    """Save a random model; norms and biases are random too, so that a swap shows."""
    import transformers

    kind = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    torch.manual_seed(1)
    config = getattr(transformers, kind)(**{**BASE, **MODELS[name], **changes})
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(DTYPES[dtype]).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Layout:
    tp: int = 1
    pp: int = 1
    ep: int | None = None
    embedding: int | None = None
    dtype: str = "float16"

    @property
    def options(self) -> ConvertOptions:
        return ConvertOptions(
            self.tp,
            self.pp,
            self.dtype,
            use_parallel_embedding=self.embedding is not None,
            embedding_sharding_dim=self.embedding or 0,
            moe_ep_size=self.ep,
        )


class Hand:
    """One rank of a checkpoint, by hand."""

    def __init__(self, weights: dict[str, torch.Tensor], config: dict[str, Any], layout: Layout, rank: int) -> None:
        self.hf, self.config, self.layout, self.rank = weights, config, layout, rank % layout.tp
        self.stage, self.dtype = rank // layout.tp, DTYPES[layout.dtype]
        self.gemma = config["model_type"].startswith("gemma")
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        self.head = config.get("head_dim") or hidden // heads
        self.out: dict[str, torch.Tensor] = {}

    def cut(self, tensor: torch.Tensor, dim: int, count: int | None = None, index: int | None = None) -> torch.Tensor:
        """An equal share along a dim."""
        count, index = count or self.layout.tp, self.rank if index is None else index
        assert tensor.shape[dim] % count == 0
        return tensor.chunk(count, dim)[index]

    def kv(self, tensor: torch.Tensor) -> torch.Tensor:
        """Kv heads of the rank, each repeated for neighbouring ranks where there are fewer than ranks."""
        count = self.config["num_key_value_heads"]
        heads = tensor.reshape(count, self.head, *tensor.shape[1:])
        if count < self.layout.tp:
            heads = heads.repeat_interleave(self.layout.tp // count, 0)
        return self.cut(heads, 0).flatten(0, 1)

    def put(self, name: str, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        self.out[name] = tensor.to(dtype or self.dtype).contiguous()

    def norm(self, target: str, source: str) -> None:
        weight = self.hf[f"{source}.weight"]
        self.put(f"{target}.weight", weight.float() + 1 if self.gemma else weight)

    def padded(self, table: torch.Tensor) -> torch.Tensor:
        rows = -(-table.shape[0] // self.layout.tp) * self.layout.tp
        whole = torch.cat([table, torch.zeros(rows - table.shape[0], table.shape[1], dtype=table.dtype)])
        return self.cut(whole, 0)

    def tensors(self) -> dict[str, torch.Tensor]:
        layers = torch.arange(self.config["num_hidden_layers"]).tensor_split(self.layout.pp)[self.stage].tolist()
        table = self.hf["model.embed_tokens.weight"]
        if self.stage == 0:
            by = 0 if self.gemma and self.layout.tp > 1 else self.layout.embedding
            share = table if by is None else self.padded(table) if by == 0 else self.cut(table, 1)
            self.put("transformer.vocab_embedding.weight", share)
        for local, layer in enumerate(layers):
            self.layer(f"transformer.layers.{local}.", f"model.layers.{layer}.")
        if self.stage == self.layout.pp - 1:
            self.norm("transformer.ln_f", "model.norm")
            self.put("lm_head.weight", self.padded(self.hf.get("lm_head.weight", table)))
        return self.out

    def layer(self, to: str, at: str) -> None:
        for target, source in {
            "input_layernorm": "input_layernorm",
            "post_layernorm": "post_attention_layernorm",
            "pre_feedforward_layernorm": "pre_feedforward_layernorm",
            "post_feedforward_layernorm": "post_feedforward_layernorm",
            "attention.q_layernorm": "self_attn.q_norm",
            "attention.k_layernorm": "self_attn.k_norm",
        }.items():
            if f"{at}{source}.weight" in self.hf:
                self.norm(to + target, at + source)
        for kind in ("weight", "bias"):
            q, k, v, o = (self.hf.get(f"{at}self_attn.{part}_proj.{kind}") for part in "qkvo")
            if q is not None and k is not None and v is not None:
                self.put(f"{to}attention.qkv.{kind}", torch.cat([self.cut(q, 0), self.kv(k), self.kv(v)]))
            if o is not None:
                self.put(f"{to}attention.dense.{kind}", self.cut(o, 1) if kind == "weight" else o)
            for target, source in {"fc": "gate_proj", "gate": "up_proj"}.items():
                if (tensor := self.hf.get(f"{at}mlp.{source}.{kind}")) is not None:
                    self.put(f"{to}mlp.{target}.{kind}", self.cut(tensor, 0))
            if (tensor := self.hf.get(f"{at}mlp.down_proj.{kind}")) is not None:
                self.put(f"{to}mlp.proj.{kind}", self.cut(tensor, 1) if kind == "weight" else tensor)
        for block, names in {
            "block_sparse_moe.": ("w3", "w1", "w2"),
            "mlp.": ("up_proj", "gate_proj", "down_proj"),
        }.items():
            if f"{at}{block}experts.0.{names[0]}.weight" in self.hf:
                self.experts(to, at + block, *names)

    def experts(self, to: str, at: str, up: str, gate: str, down: str) -> None:
        self.put(f"{to}mlp.router.weight", self.hf[f"{at}gate.weight"], torch.float32)
        ep = self.layout.ep or 1
        tp, total = self.layout.tp // ep, self.hf[f"{at}gate.weight"].shape[0]
        mine = [f"{at}experts.{e}." for e in range(total)][self.rank % ep * total // ep :][: total // ep]
        share = {"count": tp, "index": self.rank // ep}
        fc = [torch.cat([self.cut(self.hf[f"{e}{n}.weight"], 0, **share) for n in (up, gate)]) for e in mine]
        self.put(f"{to}mlp.fc.weight", torch.stack(fc))
        proj = [self.cut(self.hf[f"{e}{down}.weight"], 1, **share) for e in mine]
        self.put(f"{to}mlp.proj.weight", torch.stack(proj))
        if f"{at}shared_expert.up_proj.weight" in self.hf:
            both = [self.cut(self.hf[f"{at}shared_expert.{name}.weight"], 0) for name in (up, gate)]
            self.put(f"{to}mlp.shared_expert.fc.weight", torch.cat(both))
            self.put(f"{to}mlp.shared_expert.proj.weight", self.cut(self.hf[f"{at}shared_expert.{down}.weight"], 1))
            self.put(f"{to}mlp.shared_expert_gate.weight", self.hf[f"{at}shared_expert_gate.weight"])


def check(folder: Path, layout: Layout, out: Path) -> dict[str, Any]:
    """Convert and compare every tensor of every rank, bit for bit; returns the written config."""
    pipeline.make_checkpoint(str(folder), out, layout.options)
    config = json.loads((folder / "config.json").read_text())
    weights = load_rank(folder / "model.safetensors")
    weights = {name.removeprefix("language_model."): tensor for name, tensor in weights.items()}
    for rank in range(layout.tp * layout.pp):
        expected = Hand(weights, {**config, **config.get("text_config", {})}, layout, rank).tensors()
        found = load_rank(out / f"rank{rank}.safetensors")
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype, name
            assert found[name].shape == tensor.shape, name
            assert torch.equal(found[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8)), name
    return dict(json.loads((out / "config.json").read_text()))
