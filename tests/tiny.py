"""Tiny random models in the shape of real ones, made with transformers or written by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(os.environ.get("TRTBUILD_GOLDEN") or ROOT.parent / "shared" / "golden")
"""Checkpoints written by TensorRT-LLM's own converter, which are not part of this repository."""
NO_GOLDEN = pytest.param("none", marks=pytest.mark.skip(reason=f"no golden checkpoints in {GOLDEN}: TRTBUILD_GOLDEN"))
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
    *arguments: object, env: Mapping[str, str] | None = None, process: bool = False, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the real program: in this process, for that takes a tenth of the time, or in one of its own.

    The latter where `process` is set, or variables (`env`) or options of `subprocess.run` are given.
    """
    words = [str(argument) for argument in arguments]
    if not (process or env or options):
        return _in_this_process(words)
    program = "import sys; sys.argv[0] = 'trtbuild'; from trtbuild.cli.app import main; main()"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    full = {**os.environ, "PYTHONPATH": path, **(env or {})}
    return subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=120, env=full, **options
    )


def _in_this_process(words: list[str]) -> subprocess.CompletedProcess[str]:
    from trtbuild.cli.app import main

    variables, handler, code = dict(os.environ), signal.getsignal(signal.SIGTERM), 0
    argv, sys.argv = sys.argv, ["trtbuild", *words]
    with _captured(1, "stdout") as out, _captured(2, "stderr") as err:
        try:
            main()
        except SystemExit as left:
            code = int(left.code or 0)
        finally:
            sys.argv = argv
            signal.signal(signal.SIGTERM, handler)
            os.environ.clear()  # `--debug` sets one
            os.environ.update(variables)
    return subprocess.CompletedProcess(words, code, "".join(out), "".join(err))


@contextmanager
def _captured(number: int, name: str) -> Iterator[list[str]]:
    """A standard stream of this process and of those that it starts; the text is there at the end."""
    text: list[str] = []
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        before, kept = getattr(sys, name), os.dup(number)
        before.flush()
        os.dup2(file.fileno(), number)
        setattr(sys, name, file)
        try:
            yield text
        finally:
            file.flush()
            setattr(sys, name, before)
            os.dup2(kept, number)
            os.close(kept)
            file.seek(0)
            text.append(file.read())
