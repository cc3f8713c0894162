"""The int8 formula and the mixed-gemm layout."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pytest
import torch

from trtbuild.errors import CheckpointError
from trtbuild.quantize.packing import preprocess_weights_for_mixed_gemm
from trtbuild.quantize.values import symmetric


@dataclass(frozen=True)
class Vector:
    """One golden vector: made with upstream's compiled C++ functions."""

    bits: int
    act_bits: int
    sm: int
    rows: int
    cols: int
    digest: str


VECTORS = [
    Vector(8, 16, 80, 128, 64, "07cc37a98346d63330a93f24cd35f8980c29d902f4476d60833b89637905d585"),
    Vector(8, 16, 80, 256, 192, "fb85f272032e63f32305a69b4f187c4b2e564e9eef1c936655e9ecf0f176d665"),
    Vector(8, 16, 90, 128, 64, "06c96049c3d1452487f64d9f16c1f6a20cc78f31ec93f4278cf5fc6d032d81dc"),
    Vector(8, 16, 90, 256, 192, "d7019c77c3b6d1f5b0da674b14bb4f26d994fe1ccb19923ad52c476760c52bdb"),
    Vector(4, 16, 80, 128, 64, "d9e5e6c83c6071a37aa08b91dccb786922836788a857f4af34151a2beb4d3a2c"),
    Vector(4, 16, 80, 256, 192, "c73c19eb7749e7c5c6df9722ac3e4031481b987bcfc1652f42e0b3b9663d5564"),
    Vector(4, 16, 90, 128, 64, "83e325e9b45c9aaaaca95dd47bbe47bea6d371d702eb7f95b0d825dd1ea71fb9"),
    Vector(4, 16, 90, 256, 192, "fc9e020694ad523f91b2c2f6d5e6e772425c8aa77e48830ce8a72ce6e0dbd2c2"),
    Vector(4, 8, 80, 128, 64, "06641f0c380ce4b301fa3364369bf30afb95f962d1bd1606bf5416879408e453"),
    Vector(4, 8, 80, 256, 192, "3979308b1a9cd098f6ec89a2e55c3d97016e1de75913227884e5b2cd0706b07a"),
    Vector(4, 8, 90, 256, 192, "19f0715df21c5a0b671dd680c035a656a2d1b0a86d35f0ed428cb9e980203edb"),
]


def pseudo_random_bytes(count: int) -> bytearray:
    """The generator of the vectors' input."""
    state, out = 1, bytearray()
    for _ in range(count):
        state = (state * 1103515245 + 12345) % 2**31
        out.append((state >> 16) & 255)
    return out


@pytest.mark.parametrize("v", VECTORS, ids=lambda v: f"w{v.bits}a{v.act_bits}-sm{v.sm}-{v.rows}x{v.cols}")
def test_layout_equals_upstream(v: Vector) -> None:
    data = pseudo_random_bytes(v.rows * v.cols * v.bits // 8)
    weight = torch.frombuffer(data, dtype=torch.int8).reshape(v.rows, -1)
    laid = preprocess_weights_for_mixed_gemm(weight, v.bits, v.act_bits, v.sm)
    assert laid.shape == weight.shape
    assert hashlib.sha256(laid.numpy().tobytes()).hexdigest() == v.digest


def test_layout_refuses_what_has_none() -> None:
    with pytest.raises(CheckpointError, match="in must be a multiple of 64"):
        preprocess_weights_for_mixed_gemm(torch.zeros(80, 64, dtype=torch.int8), 8, 16, 80)
    with pytest.raises(CheckpointError, match="SM 70"):
        preprocess_weights_for_mixed_gemm(torch.zeros(64, 64, dtype=torch.int8), 8, 16, 70)


def test_quantize_by_upstreams_rule() -> None:
    # amax 128 -> scale 1: halves go away from zero, the positive maximum saturates, the negative one does not.
    weight = torch.tensor([[128.0, 0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, -128.0], [0.0] * 8])
    q, scale = symmetric(weight, 8)
    assert q.tolist() == [[127, 1, -1, 2, 3, -3, 0, -128], [0] * 8]
    assert scale.tolist() == [1.0, 0.0]
    assert (q.dtype, scale.dtype) == (torch.int8, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_quantize_error_is_within_half_a_step(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 256).to(dtype)
    q, scale = symmetric(weight, 8)
    error = (q.float() * scale[:, None] - weight.float()).abs()
    saturated = weight.float() / scale[:, None] > 127.5
    assert (error[~saturated] <= (0.5001 * scale)[:, None].expand_as(error)[~saturated]).all()
