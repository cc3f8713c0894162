"""BERT: an encoder alone, or with a head for questions or for classes; norms come after each residual sum.

Source: TensorRT-LLM's models/bert (model, config, convert), as stored at a version of the 1.x line. What its class does
whatever a checkpoint says, so that an engine's numbers can differ from Hugging Face's in the last digits:
- the MLP is 4 x hidden wide (other widths are refused here), and layer norms use epsilon 1e-5 (Hugging Face: 1e-12);
- every gelu is the tanh form (Hugging Face's `gelu` is the exact one);
- `BertModel` ends with the hidden states: its pooler has no place in TensorRT-LLM, and is left out.
The embedding tables are whole on every rank. Not confirmed: byte for byte sources of 1.2.1.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import replace
from typing import Any

from trtbuild.families.llama import QUANTIZED
from trtbuild.families.rules import Expect, Family, Key, Rule, Source, linear, norm
from trtbuild.layout import Axis, Split, Stage

_H, _Q, _KV, _I = Axis.HIDDEN, Axis.Q, Axis.KV, Axis.INTER

KEYS = {
    "hidden_size": Key(("hidden_size",), int),
    "num_hidden_layers": Key(("num_hidden_layers",), int),
    "num_attention_heads": Key(("num_attention_heads",), int),
    "intermediate_size": Key(("intermediate_size",), int),
    "vocab_size": Key(("vocab_size",), int),
    "max_position_embeddings": Key(("max_position_embeddings",), int, 512),
    "norm_epsilon": Key(("layer_norm_eps",), float, 1e-12),
    "hidden_act": Key(("hidden_act",), str, "gelu"),
    "type_vocab_size": Key(("type_vocab_size",), int, 2),
    "pad_token_id": Key(("pad_token_id",), int, 0, zero=True),
}
_ACTIVATIONS = {name: name for name in ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu", "tanh")}


def encoder(source: str, target: str) -> tuple[Rule, ...]:
    """Rules of the encoder; `source` and `target` are the prefixes of Hugging Face's and TensorRT-LLM's names."""
    at, to, into = f"{source}encoder.layer.{{i}}.", f"{target}layers.{{i}}.", f"{target}embedding."
    qkv = tuple(f"{at}attention.self.{part}" for part in ("query", "key", "value"))
    tables = {
        "word": ("vocab", Axis.VOCAB),
        "position": ("position", Axis.POSITIONS),
        "token_type": ("token", Axis.TYPES),
    }
    return (
        *(
            Rule(
                f"{into}{ours}_embedding.weight",
                (Source(f"{source}embeddings.{theirs}_embeddings.weight", (axis,), _H),),
                Split.COPY,
                Stage.FIRST,
            )
            for theirs, (ours, axis) in tables.items()
        ),
        *norm(into + "embedding_ln", f"{source}embeddings.LayerNorm", Stage.FIRST, bias=True),
        *linear(to + "attention.qkv", qkv, (_Q, _KV, _KV), _H, Split.COLUMN, bias=""),
        *linear(to + "attention.dense", at + "attention.output.dense", (_H,), _Q, Split.ROW, bias=""),
        *norm(to + "input_layernorm", at + "attention.output.LayerNorm", bias=True),
        *linear(to + "mlp.fc", at + "intermediate.dense", (_I,), _H, Split.COLUMN, bias=""),
        *linear(to + "mlp.proj", at + "output.dense", (_H,), _I, Split.ROW, bias=""),
        *norm(to + "post_layernorm", at + "output.LayerNorm", bias=True),
    )


def head(target: str, source: str, rows: Axis) -> tuple[Rule, ...]:
    """A linear layer after the encoder, whole on every rank."""
    return linear(target, source, (rows,), _H, Split.COPY, bias="", stage=Stage.LAST)


QUESTIONS = head("qa_outputs", "qa_outputs", Axis.LABELS)
CLASSES = (*head("pooler.dense", "bert.pooler.dense", _H), *head("classifier", "classifier", Axis.LABELS))


def _derive(hf: Dict[str, Any], fields: Dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """num_labels, which Hugging Face writes as a table of names; the width that the class takes for granted."""
    hidden, width = fields["hidden_size"], fields["intermediate_size"]
    labels = hf.get("num_labels") or len(hf.get("id2label") or ()) or 2
    problem = f"intermediate_size is {width}; supported: 4 x hidden_size = {4 * hidden} (fixed in TensorRT-LLM's class)"
    return {"num_labels": labels}, [problem] if width != 4 * hidden else []


_MODEL = Family(
    name="bert",
    architectures={"BertModel": "BertModel"},
    keys=KEYS,
    rules=encoder("", ""),
    constants={"position_embedding_type": "learned_absolute", "is_roberta": False},
    derive=_derive,
    activations={**_ACTIVATIONS, "swish": "silu"},
    expects=(
        Expect("model_type", ("bert",)),
        Expect("position_embedding_type", ("absolute",)),
        Expect("is_decoder", (False,)),
        Expect("add_cross_attention", (False,)),
    ),
    refuses=(QUANTIZED,),
    ignored=("*position_ids", "*pooler.dense.*", "cls.*"),
    prefixes=(("", "bert."),),
    pipeline=False,
    quantization=False,
    engine=False,
    note="no cpu engine: checkpoint and its numbers only",
)
BERT = (
    _MODEL,
    replace(
        _MODEL,
        architectures={"BertForQuestionAnswering": "BertForQuestionAnswering"},
        rules=(*encoder("bert.", "bert."), *QUESTIONS),
        prefixes=(),
    ),
    replace(
        _MODEL,
        architectures={"BertForSequenceClassification": "BertForSequenceClassification"},
        rules=(*encoder("bert.", "bert."), *CLASSES),
        prefixes=(),
    ),
)
"""The bare encoder, whose names have no prefix, and two models around it."""
