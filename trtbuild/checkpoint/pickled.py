"""PyTorch's .bin files, only when asked for: a pickle is a program, and torch's `weights_only` loader guards it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild.errors import CheckpointError
from trtbuild.layout import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    import torch

    Array = np.ndarray[Any, Any]

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
_CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
          "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3",
          "float8_e5m2": "F8_E5M2"}  # fmt: skip


def read_tensors(path: Path) -> list[TensorInfo]:
    """Tensors of a .bin file as `source.read_header` describes those of a safetensors file; offsets are from 0.

    Raises:
        CheckpointError: no state dict, a pickle that asks for more than tensors, or the format of PyTorch before 1.6.
    """
    found = []
    for name, tensor in _state(path).items():
        code = _CODES.get(str(tensor.dtype).removeprefix("torch."), str(tensor.dtype))
        size = tensor.numel() * tensor.element_size()
        found.append(TensorInfo(name, code, tuple(tensor.shape), path, 0, size))
    return found


def load(path: Path) -> dict[str, Array]:
    """The bytes of every tensor of a .bin file by name, memory-mapped; copied only where a tensor is not contiguous."""
    import torch

    return {
        name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        for name, tensor in _state(path).items()
    }


def _state(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        hint = "Do not use this file unless you know where it comes from."
        raise CheckpointError(f"{path.name} holds more than tensors, so it was not loaded", hint=hint) from error
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        hint = "A file of PyTorch before 1.6 must be saved again with torch.save."
        raise CheckpointError(f"{path.name} cannot be mapped: {str(error).splitlines()[0]}", hint=hint) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{path.name} holds no table of tensors")
    return state
