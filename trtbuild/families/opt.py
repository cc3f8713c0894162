"""OPT: learned positions (the file's first two rows are padding), a bias on everything, norms before or after.

TensorRT-LLM's class has no projection between embedding and hidden size, which OPT-350M needs.
"""

from __future__ import annotations

from trtbuild.families.gpt2 import ACTIVATIONS
from trtbuild.families.llama import QUANTIZED
from trtbuild.families.rules import Expect, Family, Key, Multiple, Refuse, Rule, Source, linear, norm
from trtbuild.layout import Axis, Split, Stage

_IN = "model.decoder.layers.{i}."
_OUT = "transformer.layers.{i}."
_H, _Q, _KV, _I, _V = Axis.HIDDEN, Axis.Q, Axis.KV, Axis.INTER, Axis.VOCAB

_TABLE = "model.decoder.embed_tokens.weight"
_POSITIONS = "model.decoder.embed_positions.weight"
_QKV = tuple(f"{_IN}self_attn.{part}_proj" for part in "qkv")
RULES = (
    Rule("transformer.vocab_embedding.weight", (Source(_TABLE, (_V,), _H),), Split.EMBED, Stage.FIRST),
    Rule(
        "transformer.position_embedding.weight",
        (Source(_POSITIONS, (Axis.POSITIONS,), _H, skip=2),),
        Split.EMBED,
        Stage.FIRST,
    ),
    *norm(_OUT + "input_layernorm", _IN + "self_attn_layer_norm", bias=True),
    *linear(_OUT + "attention.qkv", _QKV, (_Q, _KV, _KV), _H, Split.COLUMN, bias=""),
    *linear(_OUT + "attention.dense", _IN + "self_attn.out_proj", (_H,), _Q, Split.ROW, bias=""),
    *norm(_OUT + "post_layernorm", _IN + "final_layer_norm", bias=True),
    *linear(_OUT + "mlp.fc", _IN + "fc1", (_I,), _H, Split.COLUMN, bias=""),
    *linear(_OUT + "mlp.proj", _IN + "fc2", (_H,), _I, Split.ROW, bias=""),
    *norm("transformer.ln_f", "model.decoder.final_layer_norm", Stage.LAST, bias=True, when="do_layer_norm_before"),
    Rule("lm_head.weight", (Source("lm_head.weight", (_V,), _H, fallback=_TABLE),), Split.VOCAB, Stage.LAST),
)

OPT = Family(
    name="opt",
    architectures={"OPTForCausalLM": "OPTForCausalLM"},
    keys={
        "hidden_size": Key(("hidden_size",), int),
        "num_hidden_layers": Key(("num_hidden_layers",), int),
        "num_attention_heads": Key(("num_attention_heads",), int),
        "intermediate_size": Key(("ffn_dim",), int, None),
        "vocab_size": Key(("vocab_size",), int),
        "max_position_embeddings": Key(("max_position_embeddings",), int, 2048),
        "hidden_act": Key(("activation_function",), str, "relu"),
        "do_layer_norm_before": Key(("do_layer_norm_before",), bool, True),
        "tie_word_embeddings": Key(("tie_word_embeddings",), bool, True),
    },
    rules=RULES,
    constants={"position_embedding_type": "learned_absolute", "norm_epsilon": 1e-5},
    activations=ACTIVATIONS,
    expects=(
        Expect("enable_bias", (True,), "the class has biases"),
        Expect("layer_norm_elementwise_affine", (True,), "the class has norm weights"),
        Expect("model_type", ("opt",)),
    ),
    refuses=(QUANTIZED, Refuse("_remove_final_layer_norm", "the class drops that norm only with norms after")),
    multiples=(Multiple("word_embed_proj_dim", "hidden_size", why="the class has no projection around the embedding"),),
    prefixes=(("model.decoder.", "decoder."),),
    pipeline=False,
    note="not OPT-350M, whose embedding is narrower than the model",
)
