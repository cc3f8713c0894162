"""Tiny random encoders and encoder-decoders of transformers, and what transformers computes with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.tiny import edit_config, edit_weights

BERT_SIZES: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
T5_SIZES: dict[str, Any] = {
    "vocab_size": 211,  # not a multiple of tp: lm_head is padded
    "d_model": 48,
    "d_kv": 16,  # heads x d_kv is not d_model
    "d_ff": 96,
    "num_heads": 4,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 24,  # shorter than the input, so that every kind of bucket is met
    "decoder_start_token_id": 0,
}
IDS = np.random.default_rng(0).integers(3, 211, 40).tolist()
TYPES = [0] * 17 + [1] * 23
DECODER_IDS = [0, *np.random.default_rng(1).integers(3, 211, 30).tolist()]
NEW_TOKENS = 20


@dataclass(frozen=True)
class Case:
    """A model of transformers: its classes, config and what is done to its files; layouts are (tp, pp, options)."""

    model: str
    config: str
    sizes: dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)
    layouts: tuple[tuple[int, int, dict[str, Any]], ...] = ((1, 1, {}), (2, 1, {}), (4, 1, {}))
    own_head: bool = False

    @property
    def is_t5(self) -> bool:
        return "decoder_start_token_id" in self.sizes


BY_ROWS = {"use_parallel_embedding": True}
BY_COLUMNS = {"use_parallel_embedding": True, "embedding_sharding_dim": 1}
T5_LAYOUTS = ((1, 1, {}), (2, 1, BY_ROWS), (4, 1, {}), (1, 2, {}), (2, 2, BY_COLUMNS))
ROBERTA_SIZES = {**BERT_SIZES, "pad_token_id": 1, "type_vocab_size": 2}
CASES: dict[str, Case] = {
    "bert": Case("BertModel", "BertConfig", BERT_SIZES),
    "bert-questions": Case("BertForQuestionAnswering", "BertConfig", BERT_SIZES, {"hidden_act": "relu"}),
    "bert-classes": Case("BertForSequenceClassification", "BertConfig", BERT_SIZES, {"num_labels": 5}),
    "roberta": Case("RobertaModel", "RobertaConfig", ROBERTA_SIZES, {"hidden_act": "gelu_new"}),
    "roberta-questions": Case("RobertaForQuestionAnswering", "RobertaConfig", ROBERTA_SIZES),
    "roberta-classes": Case("RobertaForSequenceClassification", "RobertaConfig", ROBERTA_SIZES, {"num_labels": 3}),
    "t5": Case("T5ForConditionalGeneration", "T5Config", T5_SIZES, {}, T5_LAYOUTS),
    "flan-t5": Case(
        "T5ForConditionalGeneration",
        "T5Config",
        T5_SIZES,
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        T5_LAYOUTS,
        own_head=True,
    ),
    "t5-gated-tied": Case(
        "T5ForConditionalGeneration", "T5Config", T5_SIZES, {"feed_forward_proj": "gated-silu"}, ((2, 2, {}),)
    ),
    "mt5": Case(
        "MT5ForConditionalGeneration",
        "MT5Config",
        T5_SIZES,
        {"feed_forward_proj": "gated-gelu"},
        ((2, 1, {}), (2, 2, {})),
    ),
}


def make_model(case: Case, folder: Path) -> Path:
    """Save a random model of a case; norms and biases are random too."""
    import transformers

    torch.manual_seed(3)
    config = getattr(transformers, case.config)(**case.sizes, **case.changes)
    model = getattr(transformers, case.model)(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 1:
                value.add_(torch.randn_like(value) * 0.2)
            elif "relative" in name:
                value.copy_(torch.randn_like(value) * 2)
            elif case.is_t5:
                # Small tokens beside large layers: else a tied model says its last token over and over.
                value.copy_(torch.randn_like(value) * (0.1 if "shared" in name else value.shape[1] ** -0.5))
    model.save_pretrained(folder)
    if case.own_head:
        # As transformers 4 wrote Flan-T5; transformers 5 leaves a separate lm_head out of what it makes itself.
        head = torch.randn(case.sizes["vocab_size"], case.sizes["d_model"])
        edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": head}))
        edit_config(folder, scale_decoder_outputs=None, tie_word_embeddings=False)
    return folder


def reference(case: Case, folder: Path) -> dict[str, np.ndarray]:
    """What transformers computes in float32 for the inputs of the jobs."""
    import transformers

    model = getattr(transformers, case.model).from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([IDS])
    with torch.no_grad():
        if not case.is_t5:
            made = model(ids, token_type_ids=torch.tensor([TYPES]))
            if "start_logits" in made:
                return {"output": torch.stack([made.start_logits, made.end_logits], -1)[0].numpy()}
            return {"output": (made.logits if "logits" in made else made.last_hidden_state)[0].numpy()}
        whole = model(ids, decoder_input_ids=torch.tensor([DECODER_IDS]))
        tokens = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1)[0, 1:]
        return {
            "encoded": whole.encoder_last_hidden_state[0].numpy(),
            "logits": whole.logits[0].numpy(),
            "tokens": tokens.numpy(),
        }
