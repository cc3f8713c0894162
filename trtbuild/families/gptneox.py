"""GPT-NeoX and Pythia: attention and MLP side by side on two norms, partial rope, q, k, v by head.

TensorRT-LLM's class hard-wires the parallel residual, an FFN of 4 x hidden and norms with 1e-05; its second norm keeps
Hugging Face's name `post_attention_layernorm`.
"""

from __future__ import annotations

from trtbuild.families.gpt2 import ACTIVATIONS
from trtbuild.families.llama import QUANTIZED
from trtbuild.families.phi import DEFAULT_EPSILON, NO_ROPE_SCALING
from trtbuild.families.rules import Expect, Family, Key, Multiple, Rule, Source, linear, norm
from trtbuild.layout import Axis, Split, Stage

_IN = "gpt_neox.layers.{i}."
_OUT = "transformer.layers.{i}."
_H, _Q, _KV, _I, _V = Axis.HIDDEN, Axis.Q, Axis.KV, Axis.INTER, Axis.VOCAB

_TABLE = "gpt_neox.embed_in.weight"
RULES = (
    Rule("transformer.vocab_embedding.weight", (Source(_TABLE, (_V,), _H),), Split.EMBED, Stage.FIRST),
    *norm(_OUT + "input_layernorm", _IN + "input_layernorm", bias=True),
    *linear(
        _OUT + "attention.qkv",
        _IN + "attention.query_key_value",
        (_Q, _KV, _KV),
        _H,
        Split.COLUMN,
        bias="",
        grouped=True,
    ),
    *linear(_OUT + "attention.dense", _IN + "attention.dense", (_H,), _Q, Split.ROW, bias=""),
    *norm(_OUT + "post_attention_layernorm", _IN + "post_attention_layernorm", bias=True),
    *linear(_OUT + "mlp.fc", _IN + "mlp.dense_h_to_4h", (_I,), _H, Split.COLUMN, bias=""),
    *linear(_OUT + "mlp.proj", _IN + "mlp.dense_4h_to_h", (_H,), _I, Split.ROW, bias=""),
    *norm("transformer.ln_f", "gpt_neox.final_layer_norm", Stage.LAST, bias=True),
    Rule("lm_head.weight", (Source("embed_out.weight", (_V,), _H, fallback=_TABLE),), Split.VOCAB, Stage.LAST),
)

GPTNEOX = Family(
    name="gptneox",
    architectures={"GPTNeoXForCausalLM": "GPTNeoXForCausalLM"},
    keys={
        "hidden_size": Key(("hidden_size",), int),
        "num_hidden_layers": Key(("num_hidden_layers",), int),
        "num_attention_heads": Key(("num_attention_heads",), int),
        "vocab_size": Key(("vocab_size",), int),
        "max_position_embeddings": Key(("max_position_embeddings",), int, 2048),
        "hidden_act": Key(("hidden_act",), str, "gelu"),
        "rotary_emb_base": Key(("rope_theta", "rotary_emb_base"), float, 10000.0),
        "rotary_pct": Key(("partial_rotary_factor", "rotary_pct"), float, 0.25),
        "tie_word_embeddings": Key(("tie_word_embeddings",), bool, False),
    },
    rules=RULES,
    constants={"position_embedding_type": "rope_gpt_neox", "norm_epsilon": 1e-5},
    activations=ACTIVATIONS,
    expects=(
        Expect("layer_norm_eps", (1e-5,), DEFAULT_EPSILON),
        Expect("use_parallel_residual", (True,), "the class adds attention and MLP to the same residual"),
        Expect("attention_bias", (True,), "the class has biases"),
        Expect("model_type", ("gpt_neox",)),
    ),
    refuses=(QUANTIZED, NO_ROPE_SCALING),
    multiples=(Multiple("intermediate_size", "hidden_size", 4, "the class has no other FFN size"),),
    ignored=("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq"),
    prefixes=(("embed_out.", "lm_head."),),
    pipeline=False,
    note="parallel residual, FFN 4 x hidden and norm epsilon 1e-05 only; no rope scaling",
)
