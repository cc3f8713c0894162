"""Phi, Phi-3, GPT-2, GPT-BigCode, StarCoder2, Falcon, GPT-NeoX, BLOOM, OPT: rank files against tensors cut by hand.

The expected tensors are those of tests/by_hand_gpt.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.by_hand_gpt import (
    HEADS,
    LAYERS,
    H,
    State,
    Whole,
    bloom,
    cut,
    falcon,
    gpt2,
    gpt_bigcode,
    gptneox,
    opt,
    phi,
    phi3,
    starcoder2,
)
from tests.tiny import edit_config, load_rank
from trtbuild import pipeline
from trtbuild.checkpoint.config import read_spec
from trtbuild.errors import PlanError, UnsupportedModel
from trtbuild.families import FAMILIES
from trtbuild.spec import ConvertOptions

pytestmark = pytest.mark.usefixtures("one_thread")

USUAL = {"hidden_size": H, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "vocab_size": 509}
FFN = {**USUAL, "intermediate_size": 96}
OLD = {"n_embd": H, "n_head": HEADS, "n_layer": LAYERS, "vocab_size": 509, "n_positions": 126}
ROPE = {"rope_theta": 5e3}
# name: (assembly, architecture, config)
MODELS: dict[str, tuple[Callable[[State, dict[str, Any]], Whole], str, dict[str, Any]]] = {
    "phi": (phi, "PhiForCausalLM", {**FFN, "rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}}),
    "phi3": (phi3, "Phi3ForCausalLM", {**FFN, "num_key_value_heads": 2, "pad_token_id": 0}),
    "phi3 tied": (
        phi3,
        "Phi3ForCausalLM",
        {**FFN, "num_key_value_heads": 8, "tie_word_embeddings": True, "pad_token_id": 0},
    ),
    "gpt2": (gpt2, "GPT2LMHeadModel", OLD),
    "gpt2 untied": (gpt2, "GPT2LMHeadModel", {**OLD, "tie_word_embeddings": False, "n_inner": 96}),
    "gpt_bigcode": (gpt_bigcode, "GPTBigCodeForCausalLM", OLD),
    "gpt_bigcode by head": (gpt_bigcode, "GPTBigCodeForCausalLM", {**OLD, "multi_query": False}),
    "starcoder2": (starcoder2, "Starcoder2ForCausalLM", {**FFN, "num_key_value_heads": 2}),
    "starcoder2 no bias": (
        starcoder2,
        "Starcoder2ForCausalLM",
        {**FFN, "num_key_value_heads": 4, "use_bias": False, "tie_word_embeddings": False},
    ),
    "falcon 7B": (falcon, "FalconForCausalLM", USUAL),
    "falcon RW": (
        falcon,
        "FalconForCausalLM",
        {**USUAL, "alibi": True, "bias": True, "parallel_attn": False, "multi_query": False},
    ),
    "falcon parallel with biases": (falcon, "FalconForCausalLM", {**USUAL, "bias": True}),
    "falcon 40B": (falcon, "FalconForCausalLM", {**USUAL, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon 11B": (
        falcon,
        "FalconForCausalLM",
        {**USUAL, "new_decoder_architecture": True, "num_kv_heads": 4, "num_ln_in_parallel_attn": 1},
    ),
    "gptneox": (gptneox, "GPTNeoXForCausalLM", {**USUAL, "intermediate_size": 4 * H}),
    "bloom": (bloom, "BloomForCausalLM", {"hidden_size": H, "n_head": HEADS, "n_layer": LAYERS, "vocab_size": 509}),
    "opt": (opt, "OPTForCausalLM", {**USUAL, "ffn_dim": 96, "max_position_embeddings": 126, "word_embed_proj_dim": H}),
    "opt norms after": (
        opt,
        "OPTForCausalLM",
        {**USUAL, "ffn_dim": 96, "max_position_embeddings": 126, "do_layer_norm_before": False},
    ),
}
LAYOUTS = [(1, 1, None), (2, 3, 0), (4, 2, None), (8, 1, 1), (4, 1, 0)]  # tp, pp, embedding dim
NO_PIPELINE = {"phi", "phi3", "gptneox", "bloom", "opt"}


def make(folder: Path, architecture: str, config: dict[str, Any], dtype: str = "float32") -> dict[str, Any]:
    """Save a random model with random norms and biases; returns its config.json."""
    import transformers

    torch.manual_seed(5)
    kind = getattr(transformers, architecture)
    model = kind(kind.config_class(**config))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name or "ln_" in name or name.endswith("bias"):
                value.add_(torch.randn_like(value) * 0.1)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def convert(source: Path, out: Path, tp: int, pp: int, dim: int | None, dtype: str = "float16") -> list[State]:
    parallel = {"use_parallel_embedding": dim is not None, "embedding_sharding_dim": dim or 0}
    pipeline.make_checkpoint(str(source), out, ConvertOptions(tp, pp, dtype, **parallel))
    return [load_rank(out / f"rank{rank}.safetensors") for rank in range(tp * pp)]


def assert_same(ours: State, expected: State, where: object) -> None:
    assert set(ours) == set(expected), where
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype, (where, name)
        assert ours[name].shape == tensor.shape, (where, name)
        assert torch.equal(ours[name], tensor), (where, name)


@pytest.mark.parametrize("name", list(MODELS))
def test_ranks_equal_a_cut_by_hand(name: str, tmp_path: Path) -> None:
    assemble, architecture, config = MODELS[name]
    source_dtype = "bfloat16" if "3" in name or "falcon" in name else "float32"
    saved = make(tmp_path / "hf", architecture, config, source_dtype)
    state = load_file(tmp_path / "hf" / "model.safetensors")
    whole = assemble({key: tensor.to(torch.float16) for key, tensor in state.items()}, saved)
    for tp, pp, dim in LAYOUTS:
        stages = 1 if name.split()[0] in NO_PIPELINE else pp
        ranks = convert(tmp_path / "hf", tmp_path / f"tp{tp}pp{pp}{dim}", tp, stages, dim)
        for rank, ours in enumerate(ranks):
            assert_same(ours, cut(whole, tp, stages, dim, rank), (tp, stages, dim, rank))


def test_the_biases_of_parallel_attention_sum_to_one(tmp_path: Path) -> None:
    """The all-reduce of Falcon's class adds the ranks' biases: together they are the model's bias, once."""
    make(tmp_path / "hf", "FalconForCausalLM", MODELS["falcon parallel with biases"][2])
    state = load_file(tmp_path / "hf" / "model.safetensors")
    ranks = convert(tmp_path / "hf", tmp_path / "out", 4, 1, None, "float32")
    for ours, theirs in (("attention.dense", "self_attention.dense"), ("mlp.proj", "mlp.dense_4h_to_h")):
        summed = sum(rank[f"transformer.layers.1.{ours}.bias"] for rank in ranks)
        assert torch.equal(summed, state[f"transformer.h.1.{theirs}.bias"])


def hub_gpt2(tensors: State) -> State:
    buffers = {f"h.{i}.attn.{n}": torch.ones(1, 1, 4, 4) for i in range(LAYERS) for n in ("bias", "masked_bias")}
    return buffers | {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def hub_bloom(tensors: State) -> State:
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def hub_opt(tensors: State) -> State:
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def hub_gptneox(tensors: State) -> State:
    buffers = {
        f"gpt_neox.layers.{i}.attention.{n}": torch.ones(4) for i in range(LAYERS) for n in ("bias", "masked_bias")
    }
    rope = {f"gpt_neox.layers.{i}.attention.rotary_emb.inv_freq": torch.ones(4) for i in range(LAYERS)}
    return buffers | rope | {name.replace("lm_head", "embed_out"): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("name", "spelling"), [(n, globals()[f"hub_{n}"]) for n in ("gpt2", "bloom", "opt", "gptneox")]
)
def test_spellings_of_the_hub_give_the_same_ranks(name: str, spelling: Any, tmp_path: Path) -> None:
    make(tmp_path / "hf", *MODELS[name][1:])
    before = convert(tmp_path / "hf", tmp_path / "before", 2, 1, None)
    path = tmp_path / "hf" / "model.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in spelling(load_file(path)).items()}, path)
    after = convert(tmp_path / "hf", tmp_path / "after", 2, 1, None)
    for ours, theirs in zip(after, before, strict=True):
        assert_same(ours, theirs, name)


# Configs in the words of the hub's older files, and fields that they must become.
OLD_CONFIGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"architectures": ["RWForCausalLM"], "model_type": "RefinedWeb", "n_layer": 60, "n_head": 128, "n_head_kv": 8}
        | {"hidden_size": 8192, "vocab_size": 65024, "bias": False, "parallel_attn": True, "alibi": False},
        {"architecture": "FalconForCausalLM", "new_decoder_architecture": True, "num_key_value_heads": 8}
        | {"num_ln_in_parallel_attn": 2, "intermediate_size": 32768, "parallel_attention": True},
    ),
    (
        {"architectures": ["RWForCausalLM"], "model_type": "RefinedWebModel", "n_layer": 32, "n_head": 71}
        | {"hidden_size": 4544, "vocab_size": 65024, "bias": False, "parallel_attn": True, "multi_query": True},
        {"new_decoder_architecture": False, "num_key_value_heads": 1, "position_embedding_type": "rope_gpt_neox"},
    ),
    (
        {"architectures": ["FalconForCausalLM"], "model_type": "falcon", "num_hidden_layers": 24, "alibi": True}
        | {"num_attention_heads": 32, "hidden_size": 2048, "vocab_size": 50304, "bias": True, "parallel_attn": False}
        | {"multi_query": False},
        {"num_key_value_heads": 32, "position_embedding_type": "alibi_with_scale", "parallel_attention": False},
    ),
    (
        {"architectures": ["BloomForCausalLM"], "model_type": "bloom", "n_embed": 1024, "n_layer": 24}
        | {"num_attention_heads": 16, "vocab_size": 250880, "seq_length": 2048},
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "max_position_embeddings": 2048},
    ),
    (
        {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": 512, "vocab_size": 50304}
        | {"intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 6, "rotary_pct": 0.5}
        | {"rotary_emb_base": 20000, "hidden_act": "gelu_fast"},
        {"rotary_pct": 0.5, "rotary_emb_base": 20000.0, "hidden_act": "gelu_fast"},
    ),
    (
        {"architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode", **OLD, "multi_query": True},
        {"num_key_value_heads": 1, "hidden_act": "gelu_pytorch_tanh", "gpt_variant": "starcoder"},
    ),
]


@pytest.mark.parametrize(("config", "expected"), OLD_CONFIGS, ids=lambda value: value.get("model_type", ""))
def test_older_config_keys(config: dict[str, Any], expected: dict[str, Any]) -> None:
    fields = read_spec(config)[1].config
    assert {key: fields.get(key) for key in expected} == expected


PHI4_MINI: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "vocab_size": 200064,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "sliding_window": 262144,
    "attention_bias": False,
    "lm_head_bias": False,
    "full_attn_mod": 1,
}
FACTORS = {"short_factor": [1.0] * 48, "long_factor": [1.5] * 48}


@pytest.mark.parametrize(
    "spelling",
    [
        {"partial_rotary_factor": 0.75, "rope_theta": 10000.0, "rope_scaling": {"type": "longrope", **FACTORS}},
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                **FACTORS,
            }
            | {"original_max_position_embeddings": 4096}
        },
    ],
    ids=["transformers 4", "transformers 5"],
)
def test_long_rope_in_both_spellings(spelling: dict[str, Any]) -> None:
    fields = read_spec({**PHI4_MINI, **spelling})[1].config
    assert fields["position_embedding_type"] == "long_rope"
    assert fields["original_max_position_embeddings"] == 4096
    assert fields["longrope_scaling_short_factors"] == [1.0] * 48
    assert fields["longrope_scaling_long_factors"] == [1.5] * 48
    assert fields["rotary_pct"] == 0.75
    assert fields["rotary_scaling"] is None
    assert fields["hidden_act"] == "swiglu"
    assert "max_attention_window" not in fields  # longer than the context


@pytest.mark.parametrize(("window", "expected"), [(None, None), (2047, [2047]), (4096, None)])
@pytest.mark.parametrize("architecture", ["Phi3ForCausalLM", "Starcoder2ForCausalLM"])
def test_sliding_window(architecture: str, window: int | None, expected: list[int] | None) -> None:
    config = {"architectures": [architecture], **FFN, "max_position_embeddings": 4096, "sliding_window": window}
    assert read_spec(config)[1].config.get("max_attention_window") == expected


# architecture: (config, what the one message must name)
REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "PhiForCausalLM": (
        {**FFN, "num_key_value_heads": 4, "layer_norm_eps": 1e-6, "qk_layernorm": True, "hidden_act": "quick_gelu"}
        | {"rope_scaling": {"type": "linear", "factor": 2.0}},
        ["num_key_value_heads is 4", "layer_norm_eps is 1e-06", "qk_layernorm", "'quick_gelu'", "rope_scaling is set"],
    ),
    "Phi3ForCausalLM": (
        {**FFN, "head_dim": 16, "attention_bias": True, "sliding_window": -1, "hidden_act": "gelu"}
        | {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": "x", "attention_factor": 1.2}},
        [
            *("head_dim is 16", "attention_bias", "sliding_window is -1", "'gelu'", "short_factor has 1 numbers"),
            *("long_factor is 'x'", "attention_factor is 1.2", "original_max_position_embeddings is None"),
        ],
    ),
    "GPT2LMHeadModel": (
        {**OLD, "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "add_cross_attention": True},
        ["scale_attn_weights is False", "scale_attn_by_inverse_layer_idx", "add_cross_attention"],
    ),
    "GPTBigCodeForCausalLM": (
        {**OLD, "multi_query": "no", "scale_attn_weights": False},
        ["multi_query is 'no'", "scale_attn_weights is False"],
    ),
    "Starcoder2ForCausalLM": (
        {**FFN, "sliding_window": "all", "norm_type": "rms_norm", "rope_scaling": {"type": "yarn", "factor": 2.0}},
        ["sliding_window is 'all'", "norm_type is 'rms_norm'", "'yarn'"],
    ),
    "FalconForCausalLM": (
        {**USUAL, "new_decoder_architecture": True, "parallel_attn": False, "num_ln_in_parallel_attn": 3}
        | {"layer_norm_epsilon": 1e-6, "activation": "relu"},
        ["parallel_attn is False", "num_ln_in_parallel_attn is 3", "layer_norm_epsilon is 1e-06", "'relu'"],
    ),
    "GPTNeoXForCausalLM": (
        {**FFN, "use_parallel_residual": False, "layer_norm_eps": 1e-6, "attention_bias": False},
        [
            "use_parallel_residual is False",
            "layer_norm_eps is 1e-06",
            "intermediate_size is 96",
            "4 x hidden_size = 256",
        ],
    ),
    "BloomForCausalLM": (
        {**USUAL, "layer_norm_epsilon": 1e-6, "apply_residual_connection_post_layernorm": True},
        ["layer_norm_epsilon is 1e-06", "apply_residual_connection_post_layernorm"],
    ),
    "OPTForCausalLM": (
        {**USUAL, "word_embed_proj_dim": 32, "enable_bias": False, "_remove_final_layer_norm": True},
        ["word_embed_proj_dim is 32", "hidden_size = 64", "enable_bias is False", "_remove_final_layer_norm"],
    ),
}


@pytest.mark.parametrize("architecture", list(REFUSED))
def test_every_unsupported_value_is_named_at_once(architecture: str) -> None:
    config, expected = REFUSED[architecture]
    with pytest.raises(UnsupportedModel) as caught:
        read_spec({"architectures": [architecture], **config})
    assert [text for text in expected if text not in str(caught.value)] == []


@pytest.mark.parametrize("name", sorted(NO_PIPELINE))
def test_no_stages_where_the_class_has_none(name: str, tmp_path: Path) -> None:
    assert not next(family for family in FAMILIES if family.name == name).pipeline
    make(tmp_path / "hf", *MODELS[name][1:])
    with pytest.raises(PlanError, match=r"cannot cut .* into pipeline stages; use pp 1"):
        convert(tmp_path / "hf", tmp_path / "out", 1, 2, None)


def test_a_file_without_its_biases_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "hf", "FalconForCausalLM", MODELS["falcon RW"][2])
    edit_config(tmp_path / "hf", bias=False)
    with pytest.raises(PlanError, match=r"unexpected tensors.*query_key_value\.bias"):
        convert(tmp_path / "hf", tmp_path / "out", 1, 1, None)
