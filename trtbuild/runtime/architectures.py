"""What the decoder families of TensorRT-LLM differ in, read from a checkpoint's config.json. PURE.

`read_features` turns the config (checkpoint format 1.2 and 1.6) into `Features`: a table keyed by architecture, of
small functions that say how an architecture differs from Llama. `program.py` builds from Features alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from trtbuild.errors import EngineError
from trtbuild.runtime.features import Activation, Config, Features, Layer, Mlp, Norm, Position, Rope, scaling_kind
from trtbuild.runtime.forms import config_problems
from trtbuild.runtime.moe import moe_problems, read_moe


@dataclass(frozen=True)
class Architecture:
    """`differs` gives the Features fields in which a model is not a plain Llama.

    `fixed`: the value that a config field must have where it is present; `required`: fields that must be there;
    `scaling`: types of rotary scaling.
    """

    differs: Callable[[Config], dict[str, Any]]
    positions: tuple[str, ...] = ("rope_gpt_neox",)
    mlp: Mlp = Mlp.GATED
    fixed: Config = field(default_factory=dict)
    required: tuple[str, ...] = ()
    scaling: tuple[str, ...] = ("default", "linear", "llama3", "yarn")
    moe: bool = False


# TensorRT-LLM computes every spelling of gelu in the tanh form. This runtime is what proves numbers against
# transformers, so the spellings mean what they mean there: `gelu` is the one with erf.
_ACTIVATIONS = {
    "silu": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "relu": Activation.RELU,
    "squared-relu": Activation.SQUARED_RELU,
}
_FUSED_ACTIVATIONS = {"swiglu": Activation.SILU}
_POSITIONS = {
    "rope_gpt_neox": Position.ROPE,
    "long_rope": Position.ROPE,
    "learned_absolute": Position.LEARNED,
    "alibi": Position.ALIBI,
    "alibi_with_scale": Position.ALIBI,
}


def head_size(config: Config) -> int:
    return int(config.get("head_size") or config["hidden_size"] // config["num_attention_heads"])


def num_kv_heads(config: Config) -> int:
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def intermediate_size(config: Config) -> int:
    return int(config.get("intermediate_size") or 4 * config["hidden_size"])


def read_features(config: Config) -> Features:
    """The features of a checkpoint config (or an engine's `pretrained_config`).

    Raises:
        EngineError: the architecture, or one of its fields, is not one that the cpu runtime can execute; names all.
    """
    name = config["architecture"]
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        raise EngineError(f"the cpu runtime cannot execute {name}", hint=f"It executes: {', '.join(ARCHITECTURES)}.")
    problems = _problems(config, architecture)
    if problems:
        raise EngineError(f"the cpu runtime cannot execute {name} with {'; '.join(problems)}")
    position = _POSITIONS[config["position_embedding_type"]]
    known: dict[str, Any] = {
        "layers": _layers(config),
        "norm_eps": float(config.get("norm_epsilon") or 1e-5),
        "activation": _activations(architecture)[config["hidden_act"]],
        "score_scale": head_size(config) ** -0.5 / float(config.get("q_scaling") or 1.0),
        "mlp": architecture.mlp,
        "moe": read_moe(config) if architecture.moe else None,
        "position": position,
    }
    if position is Position.ROPE:
        known |= {"rotary_size": _rotary_size(config), **_ropes(config)}
    elif position is Position.LEARNED:
        known["max_positions"] = int(config["max_position_embeddings"])
    return Features(**{**known, **architecture.differs(config)})


def require_seq_len(features: Features, max_seq_len: int) -> None:
    """Raises EngineError when the model has no position for the last of `max_seq_len` tokens."""
    if features.max_positions and max_seq_len > features.max_positions:
        raise EngineError(
            f"max_seq_len {max_seq_len} is more than the {features.max_positions} positions of the model",
            hint=f"Choose --max-seq-len {features.max_positions} or less.",
        )


def _activations(architecture: Architecture) -> dict[str, Activation]:
    return _FUSED_ACTIVATIONS if architecture.mlp is Mlp.FUSED_GATED else _ACTIVATIONS


def _problems(config: Config, architecture: Architecture) -> list[str]:
    choices: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "position_embedding_type": (config.get("position_embedding_type"), architecture.positions),
        "hidden_act": (config.get("hidden_act"), tuple(_activations(architecture))),
        "rotary_scaling": (scaling_kind(config.get("rotary_scaling") or {}), architecture.scaling),
        "mapping.cp_size": (config.get("mapping", {}).get("cp_size", 1), (1,)),
        **{key: (config.get(key, value), (value,)) for key, value in architecture.fixed.items()},
    }
    found = [
        f"{name} {value!r} (supported: {', '.join(repr(choice) for choice in allowed)})"
        for name, (value, allowed) in choices.items()
        if value not in allowed
    ]
    needed = (*architecture.required, *_NEEDED.get(config.get("position_embedding_type", ""), ()))
    found += config_problems(config)
    found += moe_problems(config, wanted=architecture.moe)
    found += [f"no {key}" for key in needed if config.get(key) is None]
    rotates = _POSITIONS.get(config.get("position_embedding_type", ""), Position.ROPE) is Position.ROPE
    if rotates and _rotary_size(config) % 2:
        found.append(f"an odd rotary size {_rotary_size(config)}")
    return found


_NEEDED = {
    "learned_absolute": ("max_position_embeddings",),
    "long_rope": (
        "max_position_embeddings",
        "original_max_position_embeddings",
        "longrope_scaling_short_factors",
        "longrope_scaling_long_factors",
    ),
}


def _rotary_size(config: Config) -> int:
    return int(config.get("rotary_embedding_dim") or head_size(config) * (config.get("rotary_pct") or 1.0))


def _layers(config: Config) -> tuple[Layer, ...]:
    """`max_attention_window` is TensorRT-LLM's run-time list, cyclic over the layers; max_position_embeddings: all."""
    full = config.get("max_position_embeddings") or math.inf
    windows = [int(window) if window < full else 0 for window in config.get("max_attention_window") or ()] or [0]
    return tuple(Layer(window=windows[i % len(windows)]) for i in range(config["num_hidden_layers"]))


def _ropes(config: Config) -> dict[str, Any]:
    base = float(config.get("rotary_base") or 10000.0)
    if config["position_embedding_type"] != "long_rope":
        scaling = dict(config.get("rotary_scaling") or {})
        scaling.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
        return {"ropes": (Rope(base, scaling),)}
    original = int(config["original_max_position_embeddings"])
    factor = config["max_position_embeddings"] / original
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0

    def rope(which: str) -> Rope:
        factors = config[f"longrope_scaling_{which}_factors"]
        scale = config.get(f"longrope_{which}_mscale") or usual
        return Rope(base, {"rope_type": "longrope", "factors": factors, "attention_factor": scale})

    return {"ropes": (rope("short"), rope("long")), "rope_switch": original}


# ---- what is not as in Llama ----


def _llama(config: Config) -> dict[str, Any]:
    bias = bool(config.get("attn_bias"))
    return {"qkv_bias": bias, "dense_bias": bias, "mlp_bias": bool(config.get("mlp_bias"))}


def _qwen2(config: Config) -> dict[str, Any]:
    return {"qkv_bias": bool(config.get("attn_bias", True))}


def _qwen3(config: Config) -> dict[str, Any]:
    # TensorRT-LLM's class takes its default epsilon for q and k; transformers takes the model's, and so do we.
    return {**_qwen2(config), "qk_norm": True}


def _gemma(config: Config) -> dict[str, Any]:
    return {**_llama(config), "embedding_scale": float(config["hidden_size"]) ** 0.5}


def _gemma2(config: Config) -> dict[str, Any]:
    return {
        **_gemma(config),
        "after_attention": "post_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "after_mlp": "post_feedforward_layernorm",
        "score_scale": float(config["query_pre_attn_scalar"]) ** -0.5,
        "attention_soft_cap": float(config.get("attn_logit_softcapping") or 0.0),
        "final_soft_cap": float(config.get("final_logit_softcapping") or 0.0),
    }


def _gemma3(config: Config) -> dict[str, Any]:
    """Every `pattern`-th layer sees everything with the global rotary base, the others `sliding_window` tokens."""
    pattern = int(config.get("_sliding_window_pattern") or config["sliding_window_pattern"])
    window = int(config["sliding_window"])
    layers = tuple(
        Layer() if (i + 1) % pattern == 0 else Layer(window, rope=1) for i in range(config["num_hidden_layers"])
    )
    ropes = (*_ropes(config)["ropes"], Rope(float(config["rope_local_base_freq"])))
    return {**_gemma2(config), "qk_norm": True, "layers": layers, "ropes": ropes}


def _phi(config: Config) -> dict[str, Any]:
    return {"norm": Norm.LAYER, "parallel": True, "mlp_norm": "", **_biases(True), "head_bias": True}


def _phi3(config: Config) -> dict[str, Any]:
    return {}


def _gpt(config: Config) -> dict[str, Any]:
    return {"norm": Norm.LAYER, **_biases(config.get("bias", True))}


def _starcoder2(config: Config) -> dict[str, Any]:
    # Upstream writes `gelu` for this family, whose models have the tanh form (gelu_pytorch_tanh).
    tanh = {"activation": Activation.GELU_TANH} if config["hidden_act"] == "gelu" else {}
    return {**_gpt(config), **tanh}


def _falcon(config: Config) -> dict[str, Any]:
    new = bool(config.get("new_decoder_architecture"))
    parallel = new or bool(config.get("parallel_attention"))
    one_norm = parallel and (not new or config.get("num_ln_in_parallel_attn") == 1)
    return {
        "norm": Norm.LAYER,
        "parallel": parallel,
        "mlp_norm": "" if one_norm else "mlp_layernorm" if new else "post_layernorm",
        "alibi_scale": head_size(config) ** -0.5,
        "alibi_rounded": True,
        **_biases(config.get("bias")),
    }


def _gptneox(config: Config) -> dict[str, Any]:
    return {
        "norm": Norm.LAYER,
        "parallel": True,
        "mlp_norm": "post_attention_layernorm",
        "ropes": (Rope(float(config.get("rotary_emb_base") or 10000.0)),),
        **_biases(True),
    }


def _bloom(config: Config) -> dict[str, Any]:
    # transformers has its own gelu for BLOOM, which is the tanh form whatever a config calls it.
    return {"norm": Norm.LAYER, "embedding_norm": True, "activation": Activation.GELU_TANH, **_biases(True)}


def _opt(config: Config) -> dict[str, Any]:
    return {"norm": Norm.LAYER, **_biases(True)}


def _biases(present: Any) -> dict[str, Any]:
    return dict.fromkeys(("qkv_bias", "dense_bias", "mlp_bias"), bool(present))


def _with_experts(dense: Architecture, fixed: Config | None = None) -> Architecture:
    return replace(dense, mlp=Mlp.FUSED_GATED, moe=True, fixed={**dense.fixed, "mlp_bias": False, **(fixed or {})})


_LLAMA = Architecture(
    _llama,
    fixed={
        "qk_layernorm": False,
        "residual_mlp": False,
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "output_multiplier_scale": 1.0,
    },
)
_GPT_FIXED = {
    "qk_layernorm": False,
    "embedding_scale": None,
    "apply_query_key_layer_scaling": False,
    "inner_layernorm": False,
    "norm_before_bmm1": False,
}
_LEARNED = Architecture(_gpt, ("learned_absolute",), Mlp.PLAIN, _GPT_FIXED)
_EVERY_LAYER = {"mlp_only_layers": [], "decoder_sparse_step": 1}  # has experts
_QWEN2 = Architecture(_qwen2, fixed={"qk_layernorm": False, "use_logn_attn": False})
_QWEN3 = Architecture(_qwen3, fixed={"use_logn_attn": False})
_GEMMA3_NEEDS = ("query_pre_attn_scalar", "sliding_window", "sliding_window_pattern", "rope_local_base_freq")

ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": _with_experts(_LLAMA),
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen2MoeForCausalLM": _with_experts(_QWEN2, _EVERY_LAYER),
    "Qwen3ForCausalLM": _QWEN3,
    "Qwen3MoeForCausalLM": _with_experts(_QWEN3, _EVERY_LAYER),
    "GemmaForCausalLM": Architecture(_gemma),
    "Gemma2ForCausalLM": Architecture(_gemma2, required=("query_pre_attn_scalar",)),
    "Gemma3ForCausalLM": Architecture(_gemma3, required=_GEMMA3_NEEDS),
    "PhiForCausalLM": Architecture(_phi, mlp=Mlp.PLAIN, fixed={"qk_layernorm": False}),
    "Phi3ForCausalLM": Architecture(_phi3, ("rope_gpt_neox", "long_rope"), Mlp.FUSED_GATED, {"qk_layernorm": False}),
    "GPT2LMHeadModel": _LEARNED,
    "GPTBigCodeForCausalLM": _LEARNED,
    "Starcoder2ForCausalLM": Architecture(_starcoder2, mlp=Mlp.PLAIN, fixed=_GPT_FIXED),
    "FalconForCausalLM": Architecture(_falcon, ("rope_gpt_neox", "alibi_with_scale"), Mlp.PLAIN),
    "GPTNeoXForCausalLM": Architecture(_gptneox, mlp=Mlp.PLAIN, scaling=("default",)),
    "BloomForCausalLM": Architecture(_bloom, ("alibi",), Mlp.PLAIN),
    "OPTForCausalLM": Architecture(_opt, ("learned_absolute",), Mlp.PLAIN, {"do_layer_norm_before": True}),
}
