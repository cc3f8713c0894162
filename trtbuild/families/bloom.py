"""BLOOM: ALiBi, a norm after the embedding, q, k, v by head, embeddings tied.

TensorRT-LLM's class hard-wires gelu, ALiBi and norms with 1e-05; Hugging Face's hard-wires gelu (the tanh form) and an
FFN of 4 x hidden.
"""

from __future__ import annotations

from trtbuild.families.llama import QUANTIZED
from trtbuild.families.phi import DEFAULT_EPSILON
from trtbuild.families.rules import Expect, Family, Key, Refuse, Rule, Source, linear, norm
from trtbuild.layout import Axis, Split, Stage

_IN = "transformer.h.{i}."
_OUT = "transformer.layers.{i}."
_H, _Q, _KV, _I, _V = Axis.HIDDEN, Axis.Q, Axis.KV, Axis.INTER, Axis.VOCAB

_TABLE = "transformer.word_embeddings.weight"


def qkv(bias: str) -> tuple[Rule, ...]:
    """The fused projection by head (or by kv head, in Falcon), with a bias under that condition."""
    names = (_OUT + "attention.qkv", _IN + "self_attention.query_key_value")
    return linear(*names, (_Q, _KV, _KV), _H, Split.COLUMN, bias=bias, grouped=True)


def fc(bias: str) -> tuple[Rule, ...]:
    return linear(_OUT + "mlp.fc", _IN + "mlp.dense_h_to_4h", (_I,), _H, Split.COLUMN, bias=bias)


ENDS = (
    Rule("transformer.vocab_embedding.weight", (Source(_TABLE, (_V,), _H),), Split.EMBED, Stage.FIRST),
    *norm("transformer.ln_f", "transformer.ln_f", Stage.LAST, bias=True),
    Rule("lm_head.weight", (Source("lm_head.weight", (_V,), _H, fallback=_TABLE),), Split.VOCAB, Stage.LAST),
)
RULES = (
    ENDS[0],
    *norm("transformer.ln_embed", "transformer.word_embeddings_layernorm", Stage.FIRST, bias=True),
    *norm(_OUT + "input_layernorm", _IN + "input_layernorm", bias=True),
    *qkv(bias=""),
    *linear(_OUT + "attention.dense", _IN + "self_attention.dense", (_H,), _Q, Split.ROW, bias=""),
    *norm(_OUT + "post_layernorm", _IN + "post_attention_layernorm", bias=True),
    *fc(bias=""),
    *linear(_OUT + "mlp.proj", _IN + "mlp.dense_4h_to_h", (_H,), _I, Split.ROW, bias=""),
    *ENDS[1:],
)

BLOOM = Family(
    name="bloom",
    architectures={"BloomForCausalLM": "BloomForCausalLM"},
    keys={
        "hidden_size": Key(("n_embed", "hidden_size"), int),
        "num_hidden_layers": Key(("n_layer", "num_hidden_layers"), int),
        "num_attention_heads": Key(("n_head", "num_attention_heads"), int),
        "vocab_size": Key(("vocab_size",), int),
        # No limit of the model: what it was trained with.
        "max_position_embeddings": Key(("seq_length",), int, 2048),
        "hidden_act": Key(("hidden_act",), str, "gelu"),
        "tie_word_embeddings": Key(("tie_word_embeddings",), bool, True),
    },
    rules=RULES,
    constants={"position_embedding_type": "alibi", "norm_epsilon": 1e-5},
    activations={"gelu": "gelu"},
    expects=(Expect("layer_norm_epsilon", (1e-5,), DEFAULT_EPSILON), Expect("model_type", ("bloom",))),
    refuses=(
        QUANTIZED,
        Refuse("apply_residual_connection_post_layernorm", "the class adds the residual from before the norm"),
    ),
    prefixes=(("transformer.", ""),),
    pipeline=False,
    note="norm epsilon 1e-05 only",
)
