"""The product kernel against float64, and the same bits for a token in every company, on each path of the C file."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import numpy as np
import pytest
import torch

from tests.native_paths import PATHS, shared_object
from trtbuild.runtime.native.library import BatchStruct, OpStruct
from trtbuild.runtime.program import Kind

N, K = 53, 365  # neither divides into the vectors and tiles of any path
LINEAR_IN, LINEAR_OUT = 0, 1
WTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}


def linear(
    library: ctypes.CDLL, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, threads: int
) -> torch.Tensor:
    """x [T, K] through one LINEAR operation -> [T, N]."""
    out = torch.full((len(x), N), float("nan"))
    scratch = torch.zeros(threads, 3 * K)
    op = OpStruct(kind=Kind.LINEAR, wtype=WTYPES[weight.dtype], in_=LINEAR_IN, in2=-1, out=LINEAR_OUT, n=N, k=K)
    op.weight, op.bias = weight.data_ptr(), bias.data_ptr()
    if weight.dtype is torch.int8:
        op.scale = scale.data_ptr()
    batch = BatchStruct(num_tokens=len(x), num_threads=threads, scratch=scratch.data_ptr(), scratch_stride=3 * K)
    for buffer, tensor in ((LINEAR_IN, x), (LINEAR_OUT, out)):
        batch.buffer[buffer], batch.width[buffer] = tensor.data_ptr(), tensor.shape[1]
    library.trtbuild_run(ctypes.pointer(op), 1, ctypes.byref(batch))
    return out


@pytest.mark.parametrize("dtype", WTYPES, ids=str)
def test_linear(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(7)
    x = torch.randn(70, K, generator=random)
    weight = torch.randn(N, K, generator=random) * (40 if dtype is torch.int8 else 1)
    weight = weight.clamp(-127, 127).to(dtype)
    scale, bias = torch.rand(N, generator=random), torch.randn(N, generator=random)
    together = linear(library, x, weight, scale, bias, 2)
    exact = x.double() @ weight.double().T * (scale if dtype is torch.int8 else 1) + bias
    assert (together - exact).abs().max() < 1e-5 * exact.abs().max()
    for tokens in (1, 2, 3, 4, 5, 8, 9, 16, 17, 64):
        for threads in (1, 3):
            alone = linear(library, x[:tokens].contiguous(), weight, scale, bias, threads)
            assert np.array_equal(alone.numpy(), together[:tokens].numpy()), (tokens, threads)


def test_paths_differ() -> None:
    """The flags of PATHS really choose other code: the widest registers that each library names."""
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump")
    found = {}
    for name in PATHS:
        command = ["objdump", "-d", str(shared_object(name))]
        code = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        found[name] = "zmm" in code, "vfmadd" in code
    assert found["256 bits"][0] is False
    assert found["plain C"] == (False, False)
