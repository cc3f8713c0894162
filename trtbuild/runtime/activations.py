"""The activations in torch; `native/ops.h` has the same."""

from __future__ import annotations

from collections.abc import Callable

import torch

from trtbuild.runtime.features import Activation

ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    Activation.SILU: torch.nn.functional.silu,
    Activation.GELU: torch.nn.functional.gelu,
    Activation.GELU_TANH: lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    Activation.RELU: torch.relu,
    Activation.SQUARED_RELU: lambda x: torch.relu(x).square(),
}
