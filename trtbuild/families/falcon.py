"""Falcon: 7B (one kv head, parallel attention), 40B and 180B (new decoder), 11B (one norm), RW (ALiBi, biases).

With parallel attention TensorRT-LLM's class leaves out the all-reduce of attention and MLP and sums both once, after
every rank has added its biases: a row-parallel bias must be whole on the first rank and zero on the others, or it would
count tp times (upstream's converter writes it on every rank). The 1.x class reads `num_ln_in_parallel_attn` and
`rotary_base`, which its converter does not write.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from typing import Any

from trtbuild.families.bloom import ENDS, fc, qkv
from trtbuild.families.llama import QUANTIZED
from trtbuild.families.phi import DEFAULT_EPSILON, NO_ROPE_SCALING
from trtbuild.families.rules import Expect, Family, Key, Rule, linear, norm
from trtbuild.layout import Axis, Split

_IN = "transformer.h.{i}."
_OUT = "transformer.layers.{i}."
_H, _Q, _I = Axis.HIDDEN, Axis.Q, Axis.INTER
_ONE_NORM = "new_decoder_architecture num_ln_in_parallel_attn=1"
_TWO_NORMS = "new_decoder_architecture !num_ln_in_parallel_attn=1"
# What the first, remote-code versions were called says which decoder they have.
_OLD_NAMES = {"RefinedWeb": True, "RefinedWebModel": False}


def _row(target: str, source: str, cols: Axis) -> tuple[Rule, ...]:
    """A row-parallel linear: its bias for one all-reduce of its own, or for the shared one."""
    names = (_OUT + target, _IN + source, (_H,), cols, Split.ROW)
    summed_once = linear(*names, bias="bias parallel_attention", bias_split=Split.FIRST_RANK)[1:]
    return (*linear(*names, bias="bias !parallel_attention"), *summed_once)


RULES = (
    ENDS[0],
    *norm(_OUT + "input_layernorm", _IN + "input_layernorm", bias=True, when="!new_decoder_architecture"),
    *norm(_OUT + "input_layernorm", _IN + "input_layernorm", bias=True, when=_ONE_NORM),
    *norm(_OUT + "input_layernorm", _IN + "ln_attn", bias=True, when=_TWO_NORMS),
    *norm(_OUT + "mlp_layernorm", _IN + "ln_mlp", bias=True, when=_TWO_NORMS),
    *qkv(bias="bias"),
    *_row("attention.dense", "self_attention.dense", _Q),
    *norm(_OUT + "post_layernorm", _IN + "post_attention_layernorm", bias=True, when="!parallel_attention"),
    *fc(bias="bias"),
    *_row("mlp.proj", "mlp.dense_4h_to_h", _I),
    *ENDS[1:],
)


def _derive(hf: Dict[str, Any], fields: Dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Which decoder, how many kv heads and norms, and the kind of positions."""
    new = _OLD_NAMES.get(str(hf.get("model_type")), fields["new_decoder_architecture"])
    heads, norms = fields["num_attention_heads"], fields["num_ln_in_parallel_attn"]
    problems = []
    if new:
        kv_heads = fields["num_key_value_heads"]
        if not fields["parallel_attention"]:
            problems.append("parallel_attn is False; supported with new_decoder_architecture: True")
    else:
        kv_heads = 1 if hf.get("multi_query") in (None, True) else heads
    allowed = (None, 1, 2) if new else (None, 1)
    if norms not in allowed:
        supported = ", ".join(str(number) for number in allowed[1:])
        problems.append(f"num_ln_in_parallel_attn is {norms}; supported with this decoder: {supported}")
    updates = {
        "new_decoder_architecture": new,
        "num_key_value_heads": kv_heads,
        "num_ln_in_parallel_attn": (norms or 2) if new else None,
        "position_embedding_type": "alibi_with_scale" if hf.get("alibi") else "rope_gpt_neox",
    }
    return updates, problems


FALCON = Family(
    name="falcon",
    architectures={"FalconForCausalLM": "FalconForCausalLM", "RWForCausalLM": "FalconForCausalLM"},
    keys={
        "hidden_size": Key(("n_embed", "hidden_size"), int),
        "num_hidden_layers": Key(("num_hidden_layers", "n_layer"), int),
        "num_attention_heads": Key(("num_attention_heads", "n_head"), int),
        "num_key_value_heads": Key(("num_kv_heads", "n_head_kv"), int, None),
        "intermediate_size": Key(("ffn_hidden_size",), int, None),
        "vocab_size": Key(("vocab_size",), int),
        "max_position_embeddings": Key(("max_position_embeddings",), int, 2048),
        "hidden_act": Key(("activation",), str, "gelu"),
        "rotary_base": Key(("rope_theta",), float, 10000.0),
        "bias": Key(("bias",), bool, False),
        "parallel_attention": Key(("parallel_attn",), bool, True),
        "new_decoder_architecture": Key(("new_decoder_architecture",), bool, False),
        "num_ln_in_parallel_attn": Key(("num_ln_in_parallel_attn",), int, None),
        "tie_word_embeddings": Key(("tie_word_embeddings",), bool, True),
    },
    rules=RULES,
    constants={"norm_epsilon": 1e-5, "qk_layernorm": False},
    derive=_derive,
    activations={"gelu": "gelu"},
    expects=(
        Expect("layer_norm_epsilon", (1e-5,), DEFAULT_EPSILON),
        Expect("multi_query", (True, False)),
        Expect("alibi", (True, False)),
        Expect("model_type", ("falcon", *_OLD_NAMES)),
    ),
    refuses=(QUANTIZED, NO_ROPE_SCALING),
    ignored=("*.rotary_emb.inv_freq",),
    note="norm epsilon 1e-05 only; no rope scaling; with biases and parallel attention, ranks > 0 hold zero biases",
)
