"""T5, Flan-T5 and mT5: an encoder and a decoder, each a checkpoint folder of its own.

Source: TensorRT-LLM's examples/models/core/enc_dec/convert_checkpoint.py and models/enc_dec/model.py, as stored at a
version of the 1.x line (module names with `transformer.`). What is particular:
- the relative attention bias is learned in block 0 alone; TensorRT-LLM wants it transposed, [heads, buckets], in
  every layer, and once more at the top of the decoder, on every pipeline stage;
- attention scores are not scaled: `q_scaling` = 1/sqrt(head size) undoes the class's own scaling;
- `gelu_new` is meant by "gated-gelu", as in transformers;
- whether the decoder's output is scaled by 1/sqrt(hidden) hangs on tie_word_embeddings as it was in the original
  config. transformers 5 always writes true there, and the original meaning as scale_decoder_outputs; an lm_head of its
  own in the file is used in any case, as transformers does.
Unlike upstream's script, each pipeline stage holds only what its model class asks for, an lm_head is padded where tp
does not divide the vocabulary, and both configs carry our usual quantization and mapping fields. Not confirmed: that
a build of 1.2.1 asks for the per-layer tables of the decoder, which it does not use with the table at the top.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import replace
from typing import Any

from trtbuild.families.llama import QUANTIZED
from trtbuild.families.rules import Expect, Family, Key, Rule, Source, linear, norm
from trtbuild.layout import Axis, Split, Stage

_OUT = "transformer.layers.{i}."
_H, _Q, _KV, _I, _V = Axis.HIDDEN, Axis.Q, Axis.KV, Axis.INTER, Axis.VOCAB
_ACTS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_new", "silu": "silu", "swish": "silu"}

KEYS = {
    "hidden_size": Key(("d_model",), int),
    "num_hidden_layers": Key(("num_layers",), int),
    "num_attention_heads": Key(("num_heads",), int),
    "head_size": Key(("d_kv",), int, 64),
    "intermediate_size": Key(("d_ff",), int),
    "vocab_size": Key(("vocab_size",), int),
    "max_position_embeddings": Key(("n_positions",), int, 512),
    "norm_epsilon": Key(("layer_norm_epsilon",), float, 1e-6),
    "hidden_act": Key(("feed_forward_proj",), str, "relu"),
    "num_buckets": Key(("relative_attention_num_buckets",), int, 32),
    "max_distance": Key(("relative_attention_max_distance",), int, 128),
}
_DECODER_KEYS = {
    **KEYS,
    "num_hidden_layers": Key(("num_decoder_layers", "num_layers"), int),
    "tie_word_embeddings": Key(("tie_word_embeddings",), bool, True),
    "encoder_hidden_size": Key(("d_model",), int),
    "encoder_num_heads": Key(("num_heads",), int),
    "encoder_head_size": Key(("d_kv",), int, 64),
    "decoder_start_token_id": Key(("decoder_start_token_id", "pad_token_id"), int, 0, zero=True),
    "eos_token_id": Key(("eos_token_id",), int, 1, zero=True),
    "bos_token_id": Key(("bos_token_id",), int, None, zero=True),
    "pad_token_id": Key(("pad_token_id",), int, 0, zero=True),
}
CONSTANTS = {
    "position_embedding_type": "relative",
    "relative_attention": True,
    "has_position_embedding": False,
    "type_vocab_size": None,
    "layernorm_type": 1,  # RmsNorm
    "layernorm_position": 0,  # before each block
    "has_attention_qkvo_bias": False,
    "has_mlp_bias": False,
    "has_model_final_layernorm": True,
    "has_embedding_layernorm": False,
    "has_embedding_scale": False,
    "model_type": "t5",
}
_DECODER_CONSTANTS = {
    **CONSTANTS,
    "has_lm_head_bias": False,
    "skip_cross_kv": False,
    "use_implicit_relative_attention": False,
}


def _attention(target: str, source: str, normed: str) -> tuple[Rule, ...]:
    """Rules of an attention block: its norm, q, k, v stacked, and the output projection."""
    names = tuple(f"{source}.{part}" for part in "qkv")
    return (
        *norm(f"{target}_layernorm", normed),
        *linear(f"{target}.qkv", names, (_Q, _KV, _KV), _H, Split.COLUMN),
        *linear(f"{target}.dense", f"{source}.o", (_H,), _Q, Split.ROW),
    )


def _table(half: str, target: str, stage: Stage) -> Rule:
    """The relative attention bias, which the file holds as [buckets, heads]."""
    name = f"{half}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return Rule(target, (Source(name, (Axis.HEADS,), Axis.BUCKETS, transposed=True),), Split.COLUMN, stage)


def _mlp(at: str) -> tuple[Rule, ...]:
    """`at` is the sublayer in the file; gated ones have wi_0 (activated) and wi_1, others wi."""
    inner = f"{at}.DenseReluDense."
    return (
        *norm(_OUT + "mlp_layernorm", f"{at}.layer_norm"),
        *linear(_OUT + "mlp.fc", inner + "wi", (_I,), _H, Split.COLUMN, when="!gated_act"),
        *linear(_OUT + "mlp.fc", inner + "wi_0", (_I,), _H, Split.COLUMN, when="gated_act"),
        *linear(_OUT + "mlp.gate", inner + "wi_1", (_I,), _H, Split.COLUMN, when="gated_act"),
        *linear(_OUT + "mlp.proj", inner + "wo", (_H,), _I, Split.ROW),
    )


_EMBEDDING = Rule("transformer.vocab_embedding.weight", (Source("shared.weight", (_V,), _H),), Split.EMBED, Stage.FIRST)
_ENCODER_BLOCK, _DECODER_BLOCK = "encoder.block.{i}.layer.", "decoder.block.{i}.layer."
_ENCODER_RULES = (
    _EMBEDDING,
    *_attention(_OUT + "attention", _ENCODER_BLOCK + "0.SelfAttention", _ENCODER_BLOCK + "0.layer_norm"),
    _table("encoder", _OUT + "attention.rel_attn_table", Stage.LAYER),
    *_mlp(_ENCODER_BLOCK + "1"),
    *norm("transformer.ln_f", "encoder.final_layer_norm", Stage.LAST),
)
_DECODER_RULES = (
    _table("decoder", "rel_attn_table", Stage.EVERY),
    _EMBEDDING,
    *_attention(_OUT + "self_attention", _DECODER_BLOCK + "0.SelfAttention", _DECODER_BLOCK + "0.layer_norm"),
    _table("decoder", _OUT + "self_attention.rel_attn_table", Stage.LAYER),
    *_attention(_OUT + "cross_attention", _DECODER_BLOCK + "1.EncDecAttention", _DECODER_BLOCK + "1.layer_norm"),
    *_mlp(_DECODER_BLOCK + "2"),
    *norm("transformer.ln_f", "decoder.final_layer_norm", Stage.LAST),
    Rule("lm_head.weight", (Source("lm_head.weight", (_V,), _H, fallback="shared.weight"),), Split.VOCAB, Stage.LAST),
)


def _derive(hf: Dict[str, Any], fields: Dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    gated = str(hf.get("feed_forward_proj") or "").startswith("gated-")
    return {"gated_act": gated, "mlp_type": int(gated), "q_scaling": fields["head_size"] ** -0.5}, []


def _derive_decoder(hf: Dict[str, Any], fields: Dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Also the output's scaling, by the field of transformers 5 where it is there."""
    scaled = hf.get("scale_decoder_outputs")
    updates, problems = _derive(hf, fields)
    return {
        **updates,
        "rescale_before_lm_head": fields["tie_word_embeddings"] if scaled is None else bool(scaled),
    }, problems


def _derive_mt5_decoder(hf: Dict[str, Any], fields: Dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """mT5 is never scaled; a tied one of transformers 4 was, which transformers 5 forgot."""
    updates, problems = _derive(hf, fields)
    if hf.get("tie_word_embeddings") and str(hf.get("transformers_version", "4")).split(".")[0] < "5":
        problems.append(
            "tie_word_embeddings is true in an mT5 config of transformers 4, whose scaled output transformers 5 no "
            "longer has; supported: false, or a config that transformers 5 wrote"
        )
    return {**updates, "rescale_before_lm_head": False}, problems


_ENCODER = Family(
    name="t5",
    architectures={"T5ForConditionalGeneration": "EncoderModel"},
    keys=KEYS,
    rules=_ENCODER_RULES,
    constants=CONSTANTS,
    derive=_derive,
    # What "gated-gelu" and "gelu" mean differs in transformers: the tanh form and the exact one.
    activations={**_ACTS, **{f"gated-{name}": act for name, act in _ACTS.items()}, "gated-gelu": "gelu_new"},
    expects=(
        Expect("model_type", ("t5",)),
        Expect("is_encoder_decoder", (True,)),
        Expect("is_decoder", (False,)),
    ),
    refuses=(QUANTIZED,),
    # What the other half takes, and copies or leftovers that files carry.
    ignored=("decoder.*", "lm_head.weight", "encoder.embed_tokens.weight"),
    prefixes=(("shared.", "encoder.embed_tokens."), ("shared.", "decoder.embed_tokens.")),
    quantization=False,
    engine=False,
    folder="encoder",
    note="no cpu engine: checkpoint and its numbers only",
)
_DECODER = replace(
    _ENCODER,
    architectures={"T5ForConditionalGeneration": "DecoderModel"},
    keys=_DECODER_KEYS,
    rules=_DECODER_RULES,
    constants=_DECODER_CONSTANTS,
    derive=_derive_decoder,
    ignored=(
        "encoder.*",
        "decoder.embed_tokens.weight",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
    ),
    folder="decoder",
)
_GATED = {"hidden_act": Key(("feed_forward_proj",), str)}
_MT5_EXPECTS = (Expect("model_type", ("mt5",)), *_ENCODER.expects[1:])
T5 = (
    _ENCODER,
    _DECODER,
    replace(
        _ENCODER,
        architectures={"MT5ForConditionalGeneration": "EncoderModel"},
        keys={**KEYS, **_GATED},
        expects=_MT5_EXPECTS,
    ),
    replace(
        _DECODER,
        architectures={"MT5ForConditionalGeneration": "DecoderModel"},
        keys={**_DECODER_KEYS, **_GATED},
        derive=_derive_mt5_decoder,
        expects=_MT5_EXPECTS,
    ),
)
"""Both halves of T5, and of mT5, which never scales the decoder's output."""
