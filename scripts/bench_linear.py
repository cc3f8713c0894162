#!/usr/bin/env python
"""Microseconds of one matrix product of the native kernels, by form of the weights, tokens and vector width.

    python scripts/bench_linear.py [--shapes 1536x576,5632x2048] [--tokens 1,8,64] [--megabytes 256] [--narrow]

The weight is there many times, --megabytes of int8 together, and each is used in turn, as the layers of a model are:
so the figures hold what the memory costs. Forms alternate in slices of about a millisecond, and the best slice counts:
that works on a busy machine too. --narrow compiles for 256-bit vectors.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import tempfile
import time
from collections.abc import Callable

import torch

from trtbuild.runtime.int4 import pack_int4
from trtbuild.runtime.native.library import BatchStruct, OpStruct, compiler, load_library
from trtbuild.runtime.ops import Kind

FORMS = {  # name: (weight type, group, zero)
    "int8": (3, 0, False),
    "int4": (4, 0, False),
    "int4 g128": (4, 128, False),
    "int4 g64": (4, 64, False),
    "int4 g64 zero": (4, 64, True),
    "int4 g32": (4, 32, False),
    "int8 g128 zero": (3, 128, True),
    "fp8": (5, 0, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="1536x576,5632x2048")
    parser.add_argument("--tokens", default="1,8,64")
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--narrow", action="store_true")
    arguments = parser.parse_args()
    if arguments.narrow:
        os.environ["CC"] = " ".join([*(compiler() or []), "-mno-avx512f"])
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        library = load_library()
    counts = [int(count) for count in arguments.tokens.split(",")]
    width = "256-bit" if arguments.narrow else "widest"
    print(f"{arguments.threads} threads, {width} vectors, read {bandwidth():.1f} GB/s")
    for shape in arguments.shapes.split(","):
        n, k = (int(size) for size in shape.split("x"))
        copies = max(1, arguments.megabytes * 1_000_000 // (n * k))
        runs = {
            (form, count): product(library, form, n, k, copies, count, arguments.threads)
            for form in arguments.forms.split(",")
            if k % (FORMS[form][1] or 1) == 0
            for count in counts
        }
        best = dict.fromkeys(runs, float("inf"))
        for _ in range(arguments.rounds):
            for key, run in runs.items():
                best[key] = min(best[key], run())
        print(f"\n| {n} x {k} | " + " | ".join(f"M={count}" for count in counts) + " |\n|---|" + "---|" * len(counts))
        for form in dict.fromkeys(form for form, _ in runs):
            print(f"| {form} | " + " | ".join(f"{best[form, count]:.1f}" for count in counts) + " |")


_weights: dict[tuple[str, int, int], list[torch.Tensor]] = {}


def product(
    library: ctypes.CDLL, form: str, n: int, k: int, copies: int, tokens: int, threads: int
) -> Callable[[], float]:
    """A call that multiplies `tokens` rows by the next of `copies` weights [n, k], and returns the microseconds."""
    wtype, group, zero = FORMS[form]
    if (form, n, k) not in _weights:
        weight = torch.randint(-8, 8, (n, k), dtype=torch.int8)
        weight = pack_int4(weight) if wtype == 4 else weight.view(torch.int8)
        scale = torch.rand(copies, n, *([k // group] if group else []))
        _weights[form, n, k] = [weight.repeat(copies, 1, 1), scale]
    weight, scale = _weights[form, n, k]
    x, out = torch.randn(tokens, k), torch.zeros(tokens, n)
    scratch = torch.zeros(threads, 5 * k + 64)
    ops = (OpStruct * copies)()
    for index, op in enumerate(ops):
        op.kind, op.wtype, op.in_, op.out, op.in2, op.n, op.k, op.group = Kind.LINEAR, wtype, 0, 1, -1, n, k, group
        op.weight, op.scale = weight[index].data_ptr(), scale[index].data_ptr()
        if zero:
            op.zero = op.scale
    batch = BatchStruct(num_tokens=tokens, num_threads=threads, scratch=scratch.data_ptr())
    batch.scratch_stride = scratch.shape[1]
    for buffer, tensor in enumerate((x, out)):
        batch.buffer[buffer], batch.width[buffer] = tensor.data_ptr(), tensor.shape[1]

    count = min(copies, max(1, 16_000_000 * threads // (n * k * (1 + 3 * tokens // 4))))
    slices = itertools.cycle(range(0, copies - count + 1, count))
    address, size = ctypes.addressof(ops), ctypes.sizeof(OpStruct)

    def run(_keep: tuple[object, ...] = (x, out, scratch, ops)) -> float:
        first = ctypes.cast(address + next(slices) * size, ctypes.POINTER(OpStruct))
        start = time.perf_counter()
        library.trtbuild_run(first, count, ctypes.byref(batch))
        return (time.perf_counter() - start) * 1e6 / count

    return run


def bandwidth() -> float:
    """Gigabytes a second of summing 512 MB with all threads; the best of three."""
    data, best = torch.ones(1 << 27), 0.0
    for _ in range(3):
        start = time.perf_counter()
        data.sum()
        best = max(best, data.numel() * 4e-9 / (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    main()
