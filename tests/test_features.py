"""What the cpu runtime reads from a config, what it refuses, and its vector functions against torch in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from trtbuild.errors import EngineError
from trtbuild.mapping import Mapping
from trtbuild.runtime.architectures import ARCHITECTURES, read_features, require_seq_len
from trtbuild.runtime.executor import EXECUTORS, Batch, State
from trtbuild.runtime.features import Activation
from trtbuild.runtime.ops import Buffer, Kind, Op
from trtbuild.runtime.program import build_program

SIZES = {
    "dtype": "float32",
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "vocab_size": 131,
    "max_position_embeddings": 64,
}
LLAMA = {
    **SIZES,
    "architecture": "LlamaForCausalLM",
    "position_embedding_type": "rope_gpt_neox",
    "hidden_act": "silu",
}
GPT2 = {
    **SIZES,
    "architecture": "GPT2LMHeadModel",
    "position_embedding_type": "learned_absolute",
    "hidden_act": "gelu_new",
}


def test_everything_unsupported_is_named_at_once() -> None:
    config = {
        **LLAMA,
        "position_embedding_type": "rope_gptj",
        "hidden_act": "tanh",
        "rotary_scaling": {"type": "dynamic", "factor": 2.0},
        "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "INT4"},
        "mapping": {"cp_size": 2},
        "moe": {"num_experts": 8, "top_k": 2},
        "residual_multiplier": 0.5,
        "rotary_pct": 0.4,
    }
    with pytest.raises(EngineError) as error:
        read_features(config)
    for part in (
        "position_embedding_type 'rope_gptj' (supported: 'rope_gpt_neox')",
        "hidden_act 'tanh'",
        "rotary_scaling 'dynamic'",
        "quantization.quant_algo 'NVFP4' (supported: W8A16, W4A16,",
        "kv_cache_quant_algo 'INT4' (supported: INT8, FP8)",
        "mapping.cp_size 2",
        "residual_multiplier 0.5",
        "an odd rotary size 3",
    ):
        assert part in error.value.message
    assert "expert" in error.value.message


def test_an_unknown_architecture_is_answered_with_the_known_ones() -> None:
    with pytest.raises(EngineError, match="cannot execute ChatGLMForCausalLM") as error:
        read_features({**LLAMA, "architecture": "ChatGLMForCausalLM"})
    assert all(name in error.value.hint for name in ARCHITECTURES)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({**LLAMA, "architecture": "Gemma2ForCausalLM"}, "no query_pre_attn_scalar"),
        ({**LLAMA, "architecture": "PhiForCausalLM", "qk_layernorm": True}, "qk_layernorm True"),
        ({**GPT2, "max_position_embeddings": None}, "no max_position_embeddings"),
        ({**GPT2, "architecture": "OPTForCausalLM", "do_layer_norm_before": False}, "do_layer_norm_before False"),
        ({**GPT2, "hidden_act": "swiglu"}, "hidden_act 'swiglu'"),
        (
            {
                **LLAMA,
                "architecture": "Phi3ForCausalLM",
                "hidden_act": "swiglu",
                "position_embedding_type": "long_rope",
            },
            "no longrope_scaling_long_factors",
        ),
    ],
)
def test_refusals(config: dict[str, Any], named: str) -> None:
    with pytest.raises(EngineError, match=named):
        build_program(config, Mapping())


def test_learned_positions_end() -> None:
    features = read_features(GPT2)
    require_seq_len(features, 64)
    with pytest.raises(EngineError, match="max_seq_len 65 is more than the 64 positions"):
        require_seq_len(features, 65)
    require_seq_len(read_features(LLAMA), 1 << 20)


def test_windows_are_cyclic_over_all_layers() -> None:
    features = read_features({**LLAMA, "max_attention_window": [16, 64, 8, 200]})
    # As long as the context is all of it.
    assert [layer.window for layer in features.layers] == [16, 0, 8, 0, 16, 0]


def on_both(op: Op, into: dict[Buffer, torch.Tensor], weights: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """`op` on every executor, on one and on two threads; what it leaves in its output."""
    tokens = len(next(iter(into.values())))
    ints = torch.arange(tokens, dtype=torch.int32)
    batch = Batch(ints, ints, ints * 0, torch.zeros(1, 4, dtype=torch.int32), ints)
    program = build_program({**GPT2, "hidden_size": 72, "intermediate_size": 299}, Mapping())
    found = []
    for executor, threads in (("native", 1), ("native", 2), ("torch", 1)):
        buffers = {buffer: torch.zeros(tokens, width) for buffer, width in program.shapes.widths().items()}
        for buffer, value in into.items():
            buffers[buffer].copy_(value)
        empty = torch.zeros(1, 1, 1, 1, 1)
        state = State(program, weights, buffers, empty, empty, empty[0, 0], empty[0, 0], 32)
        EXECUTORS[executor](state, threads).run((op,), batch)
        found.append(buffers[op.out])
    assert torch.equal(found[0], found[1])
    return found


EXACT = {
    Activation.SILU: torch.nn.functional.silu,
    Activation.GELU: torch.nn.functional.gelu,
    Activation.GELU_TANH: lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    Activation.RELU: torch.relu,
    Activation.SQUARED_RELU: lambda x: torch.relu(x) ** 2,
}


@pytest.mark.parametrize("act", Activation)
def test_activations_over_their_whole_range(one_thread: None, act: Activation) -> None:
    """299 columns are no whole number of vectors; both halves of the range are steep near 0 and flat far away."""
    near = torch.linspace(-6, 6, 20 * 299)
    x = torch.cat([near, near * 50, near * 1e-3]).view(-1, 299)
    wanted = EXACT[act](x.double())
    for y in on_both(Op(Kind.ACT, Buffer.MLP, Buffer.FC_GATE, n=299, act=act), {Buffer.FC_GATE: x}, {}):
        # 1 + erf and 1 + tanh cancel where x is negative, in torch as well.
        assert torch.allclose(y.double(), wanted, rtol=2e-6, atol=2e-7 * 6)


def test_soft_cap(one_thread: None) -> None:
    x = torch.cat([torch.linspace(-300, 300, 5 * 131), torch.linspace(-2, 2, 5 * 131)]).view(10, 131)
    op = Op(Kind.SOFT_CAP, Buffer.LOGITS, Buffer.LOGITS, n=131, factor=30.0, of_rows=True)
    for y in on_both(op, {Buffer.LOGITS: x}, {}):
        assert torch.allclose(y.double(), 30 * torch.tanh(x.double() / 30), rtol=5e-7, atol=1e-7)


def test_layer_norm_of_rows_far_from_zero(one_thread: None) -> None:
    """The variance is that of differences from the mean, not a difference of squares, which would cancel."""
    torch.manual_seed(0)
    x, weights = torch.randn(4, 72) + 1000, {"w": torch.randn(72), "b": torch.randn(72)}
    part = torch.randn(4, 72)
    op = Op(Kind.LAYER_NORM, Buffer.H, Buffer.X, Buffer.PART, "w", "b", k=72, eps=1e-5)
    exact = torch.nn.functional.layer_norm(
        (x + part).double(), (72,), weights["w"].double(), weights["b"].double(), 1e-5
    )
    for y in on_both(op, {Buffer.X: x, Buffer.PART: part}, weights):
        assert torch.allclose(y.double(), exact, rtol=1e-4, atol=1e-3)


def test_the_activations_are_told_apart() -> None:
    """Otherwise the parity of families would not show which one is meant."""
    x = torch.linspace(-3, 3, 1000)
    values = [EXACT[act](x) for act in Activation]
    gaps = [float((a - b).abs().max()) for i, a in enumerate(values) for b in values[:i]]
    assert min(gaps) > 1e-4
    assert math.isclose(min(gaps), float((EXACT[Activation.GELU](x) - EXACT[Activation.GELU_TANH](x)).abs().max()))
