"""Tiny models of every family that `--target llmapi` covers, whose weights need no file: numpy makes them of names.

ModelOpt's own exports of the same models are in tests/data/llmapi (`scripts/llmapi_golden.py` makes them).
"""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

DATA = Path(__file__).resolve().parent / "data" / "llmapi"
VOCAB, SAMPLES, LENGTH = 96, 4, 24
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 128}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32},
    "gemma3_text": {"head_dim": 32},
    "phi3": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 128},
    "qwen3_moe": {**_EXPERTS, "num_experts": 4, "head_dim": 32},
}
"""model_type of transformers -> what differs from the others' sizes."""

EXPORTS = (
    *((kind, "fp8", "") for kind in KINDS),
    ("llama", "fp8", "fp8"),
    ("qwen2", "fp8", "fp8"),
    ("llama", "fp8_rowwise", ""),
    ("llama", "int4_awq", ""),
    ("llama", "w4a8_awq", ""),
)
"""(model, method, KV cache)."""


def make(kind: str, folder: Path) -> Path:
    """Save a model in float16; each tensor is drawn from a seed of its own name, so no release of a library matters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    changes = {**_SIZES, **KINDS[kind]}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **changes)).half().save_pretrained(folder)
    one = 0.0 if kind.startswith("gemma") else 1.0  # Gemma's norms multiply with 1 + weight
    tensors = {
        name: (drawn(name, tuple(held.shape)) + (one if "norm" in name else 0.0)).half()
        for name, held in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    # Releases before 5 know the number of experts by the model's own name only.
    config |= {key: value for key, value in KINDS[kind].items() if key not in config}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    seed = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy(seed.standard_normal(shape).astype(np.float32) * np.float32(0.1))


def token_ids() -> Any:
    """What the models are calibrated on, int64 [SAMPLES, LENGTH]."""
    return np.random.RandomState(1).randint(3, VOCAB, (SAMPLES, LENGTH))


def add_letters(folder: Path) -> Path:
    """Give a model folder a tokenizer of letters, one a token: transformers has Qwen2's class for any of its files."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(BPE({letter(i): i for i in range(3, VOCAB)} | {"<unk>": 0, "<s>": 1, "</s>": 2}, []))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>").save_pretrained(folder)
    return folder


def letter(token: int) -> str:
    return chr(33 - 3 + token)


def calibration_text() -> str:
    """The text of `token_ids`, as a line of a .jsonl file."""
    return json.dumps({"text": "".join(letter(token) for token in token_ids().reshape(-1).tolist())})


def described(tensor: torch.Tensor) -> list[Any]:
    """[dtype, shape, number of a scalar, or SHA-256 of the bytes (floats as float16)]."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if not tensor.dim():
        return [kind, [], tensor.item()]
    held = tensor.half() if tensor.dtype is torch.float32 else tensor
    digest = hashlib.sha256(held.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
    return [kind, list(tensor.shape), digest]
