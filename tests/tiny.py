"""Tiny random models in the shape of real ones, made with transformers or written by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONFIG: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_llama(folder: Path, *, seed: int = 0, shard_size: str = "5GB", dtype: str = "float32", **changes: Any) -> Path:
    """Save a random Llama (`CONFIG` with `changes`) as a Hugging Face folder; norms and biases are random too."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**CONFIG, **changes}))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                value.add_(torch.randn_like(value) * 0.1)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard_size)
    return folder


def load_rank(path: Path) -> dict[str, Any]:
    """All tensors of a rank file, through the real safetensors library."""
    from safetensors.torch import load_file

    return dict(load_file(path))


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json in place; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def edit_weights(folder: Path, edit: Any) -> None:
    """Load model.safetensors, let `edit` change the dict, save it again."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def trtbuild(
    *arguments: object, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the real program in a process of its own."""
    program = "import sys; sys.argv[0] = 'trtbuild'; from trtbuild.cli.app import main; main()"
    command = [sys.executable, "-c", program, *(str(a) for a in arguments)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    full = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=full, **options)
