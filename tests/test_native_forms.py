"""Kernels of quantized forms against the formulas in float64, on each path of the C file."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from trtbuild.runtime.forms import Round
from trtbuild.runtime.int4 import pack_int4, unpack_int4
from trtbuild.runtime.native.library import BatchStruct, OpStruct
from trtbuild.runtime.ops import Kind

IN, OUT, ROUTER = 0, 1, 2
INT8, INT4, FP8 = 3, 4, 5
NONE, INT8_STATIC, INT8_TOKEN, FP8_STATIC, FP8_TOKEN = Round
TOKENS = 70


@dataclass
class Linear:
    """A quantized weight [..., n, k], as numbers and as an engine holds it."""

    wtype: int
    k: int
    values: torch.Tensor  # of the grid, float64
    held: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    group: int

    @classmethod
    def random(cls, wtype: int, shape: tuple[int, ...], group: int, zero: bool) -> Linear:
        random = torch.Generator().manual_seed(5)
        spread = {INT8: 40.0, INT4: 4.0, FP8: 30.0}[wtype]
        values = torch.randn(shape, generator=random) * spread
        if wtype == FP8:
            held = values.to(torch.float8_e4m3fn)
            values = held.double()
        else:
            least = -128 if wtype == INT8 else -8
            integers = values.round().clamp(least, -1 - least).to(torch.int8)
            values, held = integers.double(), pack_int4(integers) if wtype == INT4 else integers
        scales = (*shape[:-1], shape[-1] // group) if group else shape[:-1]
        scale = torch.rand(scales, generator=random) + 0.1
        offset = torch.randn(scales, generator=random) if zero else None
        return cls(wtype, shape[-1], values, held, scale, offset, group)

    def dequantized(self) -> torch.Tensor:
        """The formula: float64 [..., n, k]."""
        scale, zero = self.scale.double(), self.zero
        if not self.group:
            return self.values * scale[..., None]
        weight = self.values * scale.repeat_interleave(self.group, -1)
        return weight if zero is None else weight + zero.double().repeat_interleave(self.group, -1)

    def operation(self, kind: int, n: int) -> OpStruct:
        op = OpStruct(kind=kind, wtype=self.wtype, in_=IN, in2=-1, out=OUT, n=n, k=self.k, group=self.group)
        op.weight, op.scale = self.held.data_ptr(), self.scale.data_ptr()
        if self.zero is not None:
            op.zero = self.zero.data_ptr()
        return op


def run(library: ctypes.CDLL, op: OpStruct, tokens: int, buffers: dict[int, torch.Tensor], threads: int = 2) -> None:
    scratch = torch.full((threads, 5 * op.k + 64), float("nan"))
    batch = BatchStruct(num_tokens=tokens, num_threads=threads, scratch=scratch.data_ptr())
    batch.scratch_stride = scratch.shape[1]
    for buffer, tensor in buffers.items():
        batch.buffer[buffer], batch.width[buffer] = tensor.data_ptr(), tensor.shape[1]
    library.trtbuild_run(ctypes.pointer(op), 1, ctypes.byref(batch))


def apply(library: ctypes.CDLL, linear: Linear, x: torch.Tensor, bias: torch.Tensor, threads: int) -> torch.Tensor:
    """x [T, k] -> [T, n], written from column 3 on of a wider buffer."""
    n = linear.values.shape[0]
    out = torch.full((len(x), n + 5), float("nan"))
    op = linear.operation(Kind.LINEAR, n)
    op.bias, op.column = bias.data_ptr(), 3
    run(library, op, len(x), {IN: x, OUT: out}, threads)
    assert out[:, :3].isnan().all()
    assert out[:, n + 3 :].isnan().all()
    return out[:, 3 : n + 3]


CASES = [
    *((INT4, k, 0, False) for k in (2, 30, 46, 96, 224, 366)),
    *((INT4, k, group, zero) for zero in (False, True) for k, group in ((352, 32), (320, 64), (512, 128), (576, 192))),
    *((INT8, k, group, zero) for zero in (False, True) for k, group in ((352, 32), (512, 128))),
    *((FP8, k, 0, False) for k in (7, 365)),
]


@pytest.mark.parametrize(("wtype", "k", "group", "zero"), CASES)
def test_linear(library: ctypes.CDLL, wtype: int, k: int, group: int, zero: bool) -> None:
    n = 53
    random = torch.Generator().manual_seed(7)
    linear = Linear.random(wtype, (n, k), group, zero)
    x, bias = torch.randn(TOKENS, k, generator=random) + 0.5, torch.randn(n, generator=random)
    together = apply(library, linear, x, bias, 2)
    exact = x.double() @ linear.dequantized().T + bias
    # of the sum of magnitudes: codes are 8 too large, which is taken off at the end
    bound = 1e-6 * (x.double().abs() @ linear.dequantized().abs().T).max()
    assert (together - exact).abs().max() < bound
    for tokens in (1, 2, 3, 4, 5, 8, 9, 16, 17, 64):
        for threads in (1, 3):
            alone = apply(library, linear, x[:tokens].contiguous(), bias, threads)
            assert np.array_equal(alone.numpy(), together[:tokens].numpy()), (tokens, threads)


@pytest.mark.parametrize(
    ("wtype", "group", "zero"), [(INT4, 0, False), (INT4, 32, True), (INT8, 64, True), (FP8, 0, False)]
)
def test_experts(library: ctypes.CDLL, wtype: int, group: int, zero: bool) -> None:
    experts, n, k, tokens = 3, 29, 192, 11
    random = torch.Generator().manual_seed(3)
    linear = Linear.random(wtype, (experts, n, k), group, zero)
    routes = torch.rand(tokens, experts, generator=random) * (torch.rand(tokens, experts, generator=random) > 0.5)
    routes[:, 1] = 0  # an expert that nobody chose
    pairs = [(e, t) for e in range(experts) for t in range(tokens) if routes[t, e]]
    x = torch.randn(len(pairs), k, generator=random)
    out = torch.zeros(len(pairs), n)
    op = linear.operation(Kind.EXPERT_LINEAR, n)
    op.in2, op.column = ROUTER, experts
    run(library, op, tokens, {IN: x, OUT: out, ROUTER: routes})
    weights = linear.dequantized()
    exact = torch.stack([weights[e] @ x[row].double() for row, (e, _) in enumerate(pairs)])
    assert (out - exact).abs().max() < 1e-5 * exact.abs().max()


def rounded(y: torch.Tensor, scale: torch.Tensor, rounding: int) -> torch.Tensor:
    """The nearest value of the grid of `scale`, float32."""
    if rounding in (INT8_STATIC, INT8_TOKEN):
        return torch.clamp(torch.round(y / scale), -128, 127) * scale
    return (y / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


@pytest.mark.parametrize("rounding", [NONE, INT8_STATIC, INT8_TOKEN, FP8_STATIC, FP8_TOKEN])
@pytest.mark.parametrize("scaled", [False, True])
def test_prepare(library: ctypes.CDLL, rounding: int, scaled: bool) -> None:
    k, tokens, random = 77, 9, torch.Generator().manual_seed(2)
    x = torch.randn(tokens, k, generator=random) * torch.logspace(-4, 2, k)  # subnormals of e4m3 too
    x[3] = 0
    factor, scale = torch.rand(k, generator=random) + 0.5, torch.tensor([0.125])  # a power of two: ties happen
    x[1, :24] = torch.arange(24) * 0.0625 / (factor[:24] if scaled else 1)
    out = torch.full((tokens, k + 3), float("nan"))
    op = OpStruct(kind=Kind.PREPARE, in_=IN, in2=-1, out=OUT, k=k, act=rounding)
    if scaled:
        op.weight = factor.data_ptr()
    if rounding in (INT8_STATIC, FP8_STATIC):
        op.bias = scale.data_ptr()
    run(library, op, tokens, {IN: x, OUT: out})
    y = x * factor if scaled else x
    expected = y
    if rounding in (INT8_TOKEN, FP8_TOKEN):
        scale = y.abs().amax(-1, keepdim=True) / (127 if rounding == INT8_TOKEN else 448)
        scale[3] = 1
    if rounding:
        expected = rounded(y, scale, rounding)
    assert torch.equal(out[:, :k], expected)


def test_every_fp8_boundary(library: ctypes.CDLL) -> None:
    """Between any two neighbours of e4m3: the middle, and a little to both sides of it."""
    grid = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middle = (grid[1:] + grid[:-1]) / 2
    x = torch.cat([grid, middle, middle.nextafter(grid[1:]), middle.nextafter(grid[:-1]), torch.tensor([449.0, 1e6])])
    x = torch.stack([x, -x])
    scale, out = torch.ones(1), torch.zeros_like(x)
    op = OpStruct(kind=Kind.PREPARE, in_=IN, in2=-1, out=OUT, k=x.shape[1], act=FP8_STATIC, bias=scale.data_ptr())
    run(library, op, 2, {IN: x, OUT: out})
    assert torch.equal(out, rounded(x, scale, FP8_STATIC))


@pytest.mark.parametrize("rounding", [NONE, INT8_STATIC, FP8_STATIC])
def test_cache(library: ctypes.CDLL, rounding: int) -> None:
    """k after rotation, and v, on the grid when they are in the cache."""
    heads, kv_heads, size, block, tokens = 4, 2, 16, 32, 5
    random = torch.Generator().manual_seed(4)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * size, generator=random)
    angles = torch.rand(tokens, size // 2, generator=random)
    cos, sin, scale = angles.cos(), angles.sin(), torch.tensor([0.02])
    keys, values = torch.zeros(1, kv_heads, size, block), torch.zeros(1, kv_heads, block, size)
    positions = torch.arange(tokens, dtype=torch.int32)
    zeros = torch.zeros(tokens, dtype=torch.int32)
    op = OpStruct(kind=Kind.ROPE_CACHE, in_=IN, in2=-1, out=IN, act=rounding)
    if rounding:
        op.weight = scale.data_ptr()
    batch = BatchStruct(num_tokens=tokens, num_threads=2, num_heads=heads, num_kv_heads=kv_heads, head_size=size)
    batch.rotary_size, batch.block_tokens, batch.max_blocks = size, block, 1
    batch.positions, batch.slots, batch.block_tables = positions.data_ptr(), zeros.data_ptr(), zeros.data_ptr()
    batch.cos_table, batch.sin_table, batch.table_stride = cos.data_ptr(), sin.data_ptr(), cos.numel()
    batch.keys, batch.values = keys.data_ptr(), values.data_ptr()
    batch.layer_stride = batch.block_stride = keys.numel()
    given = qkv.clone()
    batch.buffer[IN], batch.width[IN] = given.data_ptr(), given.shape[1]
    library.trtbuild_run(ctypes.pointer(op), 1, ctypes.byref(batch))
    first, second = qkv.view(tokens, -1, size)[:, heads:].unflatten(2, (2, -1)).unbind(2)
    rotated = torch.cat(
        [first * cos[:, None] - second * sin[:, None], second * cos[:, None] + first * sin[:, None]], -1
    )
    k, v = rotated[:, :kv_heads], qkv.view(tokens, -1, size)[:, heads + kv_heads :]
    if rounding:
        k, v = rounded(k, scale, rounding), rounded(v, scale, rounding)
    assert torch.equal(keys[0, :, :, :tokens].permute(2, 0, 1), k)
    assert torch.equal(values[0, :, :tokens].transpose(0, 1), v)


@pytest.mark.parametrize("k", [2, 32, 64, 126, 128, 366, 576])
def test_packing(k: int) -> None:
    values = torch.randint(-8, 8, (3, 5, k), generator=torch.Generator().manual_seed(1), dtype=torch.int8)
    packed = pack_int4(values)
    assert packed.shape == (3, 5, k // 2)
    assert packed.dtype is torch.uint8
    assert torch.equal(unpack_int4(packed), values)


def test_packing_of_a_block() -> None:
    """Code i of the little-endian word l belongs to input 16 i + l."""
    values = torch.randint(-8, 8, (128,), generator=torch.Generator().manual_seed(1), dtype=torch.int8)
    words = pack_int4(values).numpy().view("<u4")
    codes = np.stack([(words >> 4 * i) & 15 for i in range(8)])
    assert np.array_equal(codes.reshape(-1).astype(int) - 8, values.numpy())
