"""RoBERTa: BERT whose positions count from pad_token_id + 1, and whose classifier is a head of two layers.

TensorRT-LLM's class takes the whole position table, its unused first rows included, and adds `pad_token_id` to the
positions itself (models/bert). Its three architectures are those of BERT by another name; the encoder's prefix is
`bert.` there too. `classifier.out_proj` is made without a dtype in that class, but upstream's converter writes it in
the checkpoint's dtype, and so do we; whether a build of 1.2.1 warns about it is not confirmed.
"""

from __future__ import annotations

from dataclasses import replace

from trtbuild.families.bert import BERT, KEYS, QUESTIONS, encoder, head
from trtbuild.families.rules import Expect, Key
from trtbuild.layout import Axis

_MODEL = replace(
    BERT[0],
    name="roberta",
    architectures={"RobertaModel": "RobertaModel"},
    keys={**KEYS, "pad_token_id": Key(("pad_token_id",), int, 1, zero=True)},
    constants={**BERT[0].constants, "is_roberta": True},
    expects=(Expect("model_type", ("roberta",)), *BERT[0].expects[1:]),
    ignored=("*position_ids", "*pooler.dense.*", "lm_head.*"),
    prefixes=(("", "roberta."),),
)
_CLASSES = (
    *head("classifier.dense", "classifier.dense", Axis.HIDDEN),
    *head("classifier.out_proj", "classifier.out_proj", Axis.LABELS),
)
ROBERTA = (
    _MODEL,
    replace(
        _MODEL,
        architectures={"RobertaForQuestionAnswering": "RobertaForQuestionAnswering"},
        rules=(*encoder("roberta.", "bert."), *QUESTIONS),
        prefixes=(),
    ),
    replace(
        _MODEL,
        architectures={"RobertaForSequenceClassification": "RobertaForSequenceClassification"},
        rules=(*encoder("roberta.", "bert."), *_CLASSES),
        prefixes=(),
    ),
)
