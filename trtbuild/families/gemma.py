"""Gemma (2B, 7B, CodeGemma).

The traps: Hugging Face multiplies by 1 + weight in a norm, TensorRT-LLM by the weight alone, so 1 is added (in float32,
before the cast); the class shards its vocabulary table by rows whenever tp > 1; embeddings are not to be scaled here,
the class does it; the embeddings are tied where the config does not say.
"""

from __future__ import annotations

from dataclasses import replace

from trtbuild.families.llama import ATTENTION, BIASES, EMBEDDING, GATED_MLP, HEAD, KEYS, LLAMA, NORMS, QUANTIZED
from trtbuild.families.rules import Expect, Key, Refuse, Rule

# All spellings are one function in TensorRT-LLM, the tanh form; it is also what the `gelu` of the oldest files means.
GELU = {"gelu_pytorch_tanh": "gelu_pytorch_tanh", "gelu_new": "gelu_pytorch_tanh", "gelu": "gelu_pytorch_tanh"}
GEMMA_KEYS = {
    **KEYS,
    "head_size": Key(("head_dim",), int, 256),
    "max_position_embeddings": Key(("max_position_embeddings",), int, 8192),
    "hidden_act": Key(("hidden_activation", "hidden_act"), str, "gelu_pytorch_tanh"),
    "tie_word_embeddings": Key(("tie_word_embeddings",), bool, True),
    "attn_bias": BIASES["attn_bias"],
}
CONSTANTS = {
    "position_embedding_type": "rope_gpt_neox",
    "qk_layernorm": False,
    "mlp_bias": False,
    "inter_layernorms": False,
}
CAUSAL = Refuse("use_bidirectional_attention", "attention in this family is causal")
NOTE = "tp must divide the vocabulary, which TensorRT-LLM shards by rows"


def plus_one(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules, with 1 added to the weights of norms."""
    return tuple(replace(rule, add=1.0) if "layernorm." in rule.target or ".ln_f." in rule.target else rule
                 for rule in rules)  # fmt: skip


GEMMA = replace(
    LLAMA,
    name="gemma",
    architectures={"GemmaForCausalLM": "GemmaForCausalLM"},
    keys=GEMMA_KEYS,
    rules=plus_one((*EMBEDDING, *NORMS[0], *ATTENTION, *NORMS[1], *GATED_MLP, *HEAD)),
    constants=CONSTANTS,
    activations=GELU,
    expects=(Expect("partial_rotary_factor", (1, 1.0)), Expect("model_type", ("gemma",))),
    refuses=(QUANTIZED, CAUSAL),
    parallel_embedding=True,
    note=NOTE,
)
