"""Compiles kernels.c for this CPU and loads it; the structures here mirror those of the C file."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path

from trtbuild.errors import ToolError

SOURCE = Path(__file__).with_name("kernels.c")
# No -ffast-math and no contraction: sums keep the order and the roundings that the source spells out.
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-ffp-contract=off", "-fPIC", "-shared", "-fopenmp")
NUM_BUFFERS = 16


class OpStruct(ctypes.Structure):
    _fields_ = (
        *(
            (name, c_int32)
            for name in ("kind", "wtype", "in_", "in2", "out", "n", "k", "layer", "row", "column", "of_rows")
        ),
        *((name, c_int32) for name in ("act", "window", "table")),
        ("eps", c_float),
        ("factor", c_float),
        ("group", c_int32),
        *((name, c_void_p) for name in ("weight", "scale", "zero", "bias")),
    )


class BatchStruct(ctypes.Structure):
    _fields_ = (
        ("buffer", c_void_p * NUM_BUFFERS),
        ("width", c_int32 * NUM_BUFFERS),
        ("num_tokens", c_int32),
        ("num_rows", c_int32),
        *((name, c_void_p) for name in ("token_ids", "positions", "slots", "block_tables", "rows")),
        *(
            (name, c_int32)
            for name in ("max_blocks", "block_tokens", "num_heads", "num_kv_heads", "head_size", "rotary_size")
        ),
        ("score_scale", c_float),
        ("soft_cap", c_float),
        ("cos_table", c_void_p),
        ("sin_table", c_void_p),
        ("table_stride", c_int64),
        ("lengths", c_void_p),
        ("rope_switch", c_int32),
        ("position_bias", c_void_p),
        ("bias_stride", c_int64),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("layer_stride", c_int64),
        ("block_stride", c_int64),
        ("scratch", c_void_p),
        ("scratch_stride", c_int64),
        ("num_threads", c_int32),
        ("work", c_void_p),
    )


def compiler() -> list[str] | None:
    """The C compiler: $CC, else cc, gcc or clang on PATH."""
    if chosen := shlex.split(os.environ.get("CC", "")):
        return chosen if shutil.which(chosen[0]) else None
    return next(([name] for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


def cpu_name(*, every_flag: bool = False) -> str:
    """Model of this CPU and its telling vector extensions, or every flag: what a compiled library is good for."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", "").split())
    if not every_flag:
        flags &= {"avx", "avx2", "fma", "f16c", "avx512f", "avx512_bf16", "amx_int8"}
    return " ".join([platform.machine(), fields.get("model name", ""), *sorted(flags)]).strip()


@lru_cache(maxsize=1)
def load_library() -> ctypes.CDLL:
    """The compiled kernels; compiled on the first call on this machine, about two seconds.

    Raises:
        ToolError: there is no C compiler, or it fails; the torch executor works without.
    """
    # Threads wait actively for about 50 us, longer than an operation takes, then give the core away: on a busy machine
    # a thread that spins keeps off the very one that it waits for. libgomp reads this when it is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    library = ctypes.CDLL(str(_compiled()))
    library.trtbuild_op_size.restype = c_int64
    library.trtbuild_batch_size.restype = c_int64
    sizes = (library.trtbuild_op_size(), library.trtbuild_batch_size())
    assert sizes == (ctypes.sizeof(OpStruct), ctypes.sizeof(BatchStruct)), sizes
    library.trtbuild_run.argtypes = (POINTER(OpStruct), c_int32, POINTER(BatchStruct))
    library.trtbuild_run.restype = None
    return library


def _compiled() -> Path:
    cc = compiler()
    if cc is None:
        raise ToolError("no C compiler found for the native kernels", hint="Install gcc or clang, or set CC.")
    sources = [path.read_text() for path in (SOURCE, *sorted(SOURCE.parent.glob("*.h")))]
    key = hashlib.sha256("\0".join([*sources, *FLAGS, *cc, cpu_name(every_flag=True)]).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtbuild" / "native"
    target = cache / f"kernels-{key}.so"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            output = Path(scratch) / target.name
            command = [*cc, *FLAGS, str(SOURCE), "-o", str(output), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ToolError(
                    f"{' '.join(command)} failed with exit code {done.returncode}",
                    log_tail=done.stderr.splitlines()[-8:],
                )
            output.replace(target)
    return target


if __name__ == "__main__":  # `make install` compiles once, so that the first engine does not wait for it
    try:
        load_library()
    except ToolError as error:
        print(f"native kernels: {error.message}; the torch executor will be used")
