"""Logits from our rank files, by a forward of its own that sums the ranks, equal transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import silu

from tests.tiny import load_rank, make_llama
from trtbuild import pipeline
from trtbuild.spec import ConvertOptions

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = [1, 400, 17, 17, 305, 2, 99, 460]


def linear(x: torch.Tensor, weights: dict[str, Any], name: str) -> torch.Tensor:
    """x [T, in] -> [T, out] of one rank."""
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)


def row_sum(inputs: list[torch.Tensor], ranks: list[dict[str, Any]], name: str) -> torch.Tensor:
    """The all-reduce: partial products of every rank, the bias once."""
    total = sum(x @ rank[f"{name}.weight"].T for x, rank in zip(inputs, ranks, strict=True))
    return total + ranks[-1].get(f"{name}.bias", 0)


def forward(folder: Path, ids: list[int]) -> torch.Tensor:
    """Logits float64 [T, vocab] by reading nothing but the checkpoint."""
    c = json.loads((folder / "config.json").read_text())
    tp, pp, size, time = c["mapping"]["tp_size"], c["mapping"]["pp_size"], c["head_size"], len(ids)
    files = [load_rank(folder / f"rank{rank}.safetensors") for rank in range(tp * pp)]
    ranks = [{name: tensor.double() for name, tensor in file.items()} for file in files]
    heads, kv_heads = c["num_attention_heads"] // tp, -(-c["num_key_value_heads"] // tp)
    angles = torch.outer(torch.arange(time), c["rotary_base"] ** -(torch.arange(0, size, 2).double() / size))
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    future = torch.triu(torch.ones(time, time), 1).bool()

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + c["norm_epsilon"]) * weight

    def rope(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def attention(qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv.view(time, -1, size).split([heads, kv_heads, kv_heads], 1)
        k, v = (part.repeat_interleave(heads // kv_heads, 1) for part in (rope(k), v))
        scores = torch.einsum("thd,shd->hts", rope(q), k) / size**0.5
        return torch.einsum("hts,shd->thd", scores.masked_fill(future, -1e30).softmax(-1), v).reshape(time, -1)

    dim = c["embedding_sharding_dim"] if c["use_parallel_embedding"] else None
    tables = [rank["transformer.vocab_embedding.weight"] for rank in ranks[:tp]]
    x = (tables[0] if dim is None else torch.cat(tables, dim))[ids]
    for stage in (ranks[start : start + tp] for start in range(0, tp * pp, tp)):
        for layer in range(sum(name.endswith("input_layernorm.weight") for name in stage[0])):
            at = f"transformer.layers.{layer}."
            y = norm(x, stage[0][at + "input_layernorm.weight"])
            mixed = [attention(linear(y, rank, at + "attention.qkv")) for rank in stage]
            x = x + row_sum(mixed, stage, at + "attention.dense")
            y = norm(x, stage[0][at + "post_layernorm.weight"])
            inner = [silu(linear(y, rank, at + "mlp.fc")) * linear(y, rank, at + "mlp.gate") for rank in stage]
            x = x + row_sum(inner, stage, at + "mlp.proj")
    x = norm(x, ranks[-1]["transformer.ln_f.weight"])
    return torch.cat([linear(x, rank, "lm_head") for rank in ranks[-tp:]], -1)[:, : c["vocab_size"]]


MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied, odd vocabulary": {"tie_word_embeddings": True, "vocab_size": 509},
    "biases, wide heads": {"attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "two kv heads": {"num_key_value_heads": 2},
}
LAYOUTS = [(1, 1, None), (2, 1, 0), (4, 2, None), (8, 3, 1), (1, 5, None)]  # tp, pp, embedding dim


@pytest.mark.parametrize("name", list(MODELS))
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = make_llama(tmp_path / "model", num_hidden_layers=5, rope_parameters={"rope_theta": 5e3}, **MODELS[name])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0]
    for tp, pp, dim in LAYOUTS:
        parallel = {"use_parallel_embedding": dim is not None, "embedding_sharding_dim": dim or 0}
        options = ConvertOptions(tp, pp, "float32", **parallel)
        out = pipeline.make_checkpoint(str(folder), tmp_path / f"tp{tp}pp{pp}", options)
        error = (forward(out, IDS) - expected).abs().max() / expected.abs().max()
        # transformers computes its rotary angles in float32 whatever the model's dtype.
        assert error < 1e-6, (tp, pp, float(error))
