"""TensorRT-LLM's mixed-gemm weight layout: the bytes that its CUDA kernels of one SM read.

Source: tensorrt_llm/quantization/functional.py and cpp/tensorrt_llm/kernels/cutlass_kernels/cutlass_preprocessors.cpp
(`preprocess_weights_for_mixed_gemm`). Only pre-quantized forms need it; a wrong SM gives garbage text, never an error.
Legend: K = in, N = out, il = interleaved columns, tile = rows of one column that lie together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.errors import CheckpointError

if TYPE_CHECKING:
    import torch

# (weight bits, activation bits) -> source row of each row inside a block of 128 / weight bits rows.
_ROWS = {
    (8, 16): (0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15),
    (4, 16): tuple(8 * (j % 4) + 2 * b + i for b in range(4) for j in range(4) for i in range(2)),
    (4, 8): tuple(16 * (j % 2) + 4 * b + i for b in range(4) for j in range(2) for i in range(4)),
}
_REGISTER = {8: (0, 2, 1, 3), 4: (0, 2, 4, 6, 1, 3, 5, 7)}


def preprocess_weights_for_mixed_gemm(weight: torch.Tensor, bits: int, act_bits: int, sm: int) -> torch.Tensor:
    """Signed weights, int8 [K, N] (`bits` 8) or [K, N/2] (4: low nibble = even n) -> int8 of the same shape, laid out.

    `act_bits` is 16 (float16, bfloat16) or 8 (fp8); `sm` the compute capability, for example 80 or 90.

    Raises:
        CheckpointError: bits, SM or sizes for which no layout exists.
    """
    if (bits, act_bits) not in _ROWS:
        raise CheckpointError(f"no mixed-gemm layout for {bits}-bit weights with {act_bits}-bit activations")
    # Layouts of later SMs were never released in the TensorRT backend: those run the SM80 kernels.
    sm = 80 if sm > 90 else sm
    values = _unpack(weight) if bits == 4 else weight
    num_rows, num_cols = values.shape
    _check_sizes(num_rows, num_cols, bits, act_bits, sm)
    rows = _ROWS[bits, act_bits]
    # [K, N] -> permuted rows -> column-major [N, K]
    laid = values.reshape(-1, len(rows), num_cols)[:, list(rows)].reshape(num_rows, num_cols).T
    interleave, tile = act_bits // bits, 1024 // act_bits
    if sm < 90 and interleave > 1:
        # [N/il, il, K/tile, tile] -> [N/il, K/tile, il, tile]
        laid = laid.reshape(num_cols // interleave, interleave, num_rows // tile, tile).transpose(1, 2)
    order = _REGISTER[bits]
    biased = laid.reshape(-1, len(order))[:, list(order)] ^ (-128 if bits == 8 else 8)
    return (_pack(biased.reshape(-1)) if bits == 4 else biased).reshape(weight.shape).contiguous()


def undo_mixed_gemm(laid: torch.Tensor, bits: int, act_bits: int, sm: int) -> torch.Tensor:
    """Inverse of `preprocess_weights_for_mixed_gemm`: laid bytes int8 [K, N * bits / 8] -> signed int8 [K, N].

    Raises:
        CheckpointError: bits, SM or sizes for which no layout exists.
    """
    import torch

    if (bits, act_bits) not in _ROWS:
        raise CheckpointError(f"no mixed-gemm layout for {bits}-bit weights with {act_bits}-bit activations")
    sm = 80 if sm > 90 else sm
    num_rows, num_cols = laid.shape[0], laid.shape[1] * 8 // bits
    _check_sizes(num_rows, num_cols, bits, act_bits, sm)
    rows, order = _ROWS[bits, act_bits], _REGISTER[bits]
    stored = (_unpack(laid) if bits == 4 else laid).reshape(-1, len(order)) ^ (-128 if bits == 8 else 8)
    values = torch.empty_like(stored)
    values[:, list(order)] = stored
    interleave, tile = act_bits // bits, 1024 // act_bits
    if sm < 90 and interleave > 1:
        values = values.reshape(num_cols // interleave, num_rows // tile, interleave, tile).transpose(1, 2)
    blocks = values.reshape(num_cols, num_rows).T.reshape(-1, len(rows), num_cols)
    natural = torch.empty_like(blocks)
    natural[:, list(rows)] = blocks
    natural = natural.reshape(num_rows, num_cols)
    return (natural ^ 8) - 8 if bits == 4 else natural  # the sign of a nibble


def _check_sizes(num_rows: int, num_cols: int, bits: int, act_bits: int, sm: int) -> None:
    if sm < 75:
        raise CheckpointError(f"no mixed-gemm layout for SM {sm}: 75 is the least")
    row_multiple = 128 // bits if sm >= 90 else max(128 // bits, 1024 // act_bits)
    col_multiple = 8 * 8 // bits
    if num_rows % row_multiple or num_cols % col_multiple:
        wanted = f"in must be a multiple of {row_multiple}, out of {col_multiple}"
        raise CheckpointError(f"no mixed-gemm layout for a weight of in {num_rows}, out {num_cols}: {wanted}")


def _unpack(packed: torch.Tensor) -> torch.Tensor:
    """int8 [K, N/2] -> int8 [K, N] holding 0..15."""
    import torch

    return torch.stack((packed & 15, (packed >> 4) & 15), dim=-1).reshape(packed.shape[0], -1)


def _pack(nibbles: torch.Tensor) -> torch.Tensor:
    """int8 [n] holding 0..15 -> int8 [n/2], low nibble first."""
    return nibbles[0::2] | (nibbles[1::2] << 4)


def two_rows(packed: torch.Tensor) -> torch.Tensor:
    """AWQ's bytes [.., out / 2, in], the even output in the low nibble -> int8 [.., out, in] in -8..7."""
    import torch

    signed = packed.view(torch.int8)
    return torch.stack(((signed << 4) >> 4, signed >> 4), dim=-2).flatten(-3, -2)
