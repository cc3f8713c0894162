"""Executes a quantized layout: fields of a logical checkpoint are cut, then packed, then written as rank files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Mapping as Dict
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild.checkpoint.config import trtllm_config
from trtbuild.checkpoint.logical import read_logical
from trtbuild.checkpoint.writer import write_documents, write_file
from trtbuild.errors import CheckpointError
from trtbuild.fields import HEAD, shard_fields
from trtbuild.layout import DTYPE_BYTES, KV_SCALES, Job, Piece, RankJobs, TensorInfo
from trtbuild.mixed import Choice, Choices, choices_of, mixed_quantization, only_choice, quant_cfg, quantized_of
from trtbuild.progress import Progress, silent
from trtbuild.quantization import EXCLUDED
from trtbuild.spec import ConvertOptions, ModelSpec, resolved_dtype

if TYPE_CHECKING:
    from trtbuild.families.rules import Family

SM_KEY = "trtbuild_sm"
"""Key of config.json: the GPU (80, 86, 89 or 90) whose kernels read the weights as they lie."""
_SHOWN = 8


def pack_checkpoint(
    logical: Path,
    family: Family,
    spec: ModelSpec,
    options: ConvertOptions,
    out: Path,
    progress: Progress = silent,
) -> dict[str, str]:
    """Cut a logical checkpoint for the ranks of `options` and write config.json and rankN.safetensors into `out`.

    `progress` counts bytes written. Returns SHA-256 in hex by file name. A method without fields (its engine build
    quantizes) gives plain weights and its quant_algo; a mixture has its quant_cfg.json.

    Raises:
        CheckpointError: the logical checkpoint is incomplete, or not of this model, method or dtype.
        PlanError: a layout that would cut groups or packed bytes.
        OSError: a file cannot be read or written.
    """
    choices = choices_of(family, spec, options)
    quantized = replace(quantized_of(choices), kv_scales=KV_SCALES if options.kv_cache_algo else ())
    dtype = resolved_dtype(spec, options)
    index = read_logical(logical)
    whole = shard_fields(family, spec, ConvertOptions(dtype=dtype), dtype, quantized)
    _require_model(logical, index, whole[0].jobs)
    cuts = shard_fields(family, spec, options, dtype, quantized)
    stored = shard_fields(family, spec, options, dtype, quantized.stored)
    total, done = sum(rank.nbytes for rank in stored), 0
    digests: dict[str, str] = {}

    def tensors(rank: RankJobs, packed: RankJobs) -> Iterator[memoryview]:
        nonlocal done
        for job, target in zip(rank.jobs, packed.jobs, strict=True):
            progress(done, total, job.group)
            data = pack(cut_bytes(job, index), job, target, options.layout_sm).data
            assert data.nbytes == target.nbytes, (target, data.nbytes)
            yield data
            done += target.nbytes

    for rank, packed in zip(cuts, stored, strict=True):
        name = f"rank{rank.rank}.safetensors"
        digests[name] = write_file(out / name, packed.jobs, tensors(rank, packed))
    progress(done, total, "")
    write_documents(out, configs_of(family, spec, options, choices))
    return digests


def configs_of(family: Family, spec: ModelSpec, options: ConvertOptions, choices: Choices) -> dict[str, dict[str, Any]]:
    """config.json, and quant_cfg.json of a mixture (checkpoint format 1.1 and 1.4)."""
    only, kv_algo = only_choice(choices), options.kv_cache_algo
    if only is not None:
        return {"config.json": _quantized_config(family, spec, options, only)}
    config = trtllm_config(family, spec, options, None)
    return {
        "config.json": {**config, "quantization": mixed_quantization(kv_algo)},
        "quant_cfg.json": quant_cfg(choices, kv_algo),
    }


def _quantized_config(family: Family, spec: ModelSpec, options: ConvertOptions, choice: Choice) -> dict[str, Any]:
    """config.json of a checkpoint of one method (checkpoint format 1.4)."""
    method = choice.method
    config = trtllm_config(family, spec, options, method.quant_algo)
    config["quantization"] |= {**method.config, "kv_cache_quant_algo": options.kv_cache_algo}
    if method.group_sizes:
        config["quantization"]["group_size"] = choice.group_size
    if options.quantize_lm_head:
        # A list replaces the built-in one, of which all the rest must stay (checkpoint format 1.4).
        config["quantization"]["exclude_modules"] = [pattern for pattern in EXCLUDED if not fnmatchcase(HEAD, pattern)]
    if any(field.kernel_bits for field in method.fields):
        # Not TensorRT-LLM's: it takes any layout, and a wrong one gives garbage without an error.
        config[SM_KEY] = options.layout_sm
    return config


def cut_bytes(job: Job, index: Dict[str, TensorInfo]) -> Any:
    """The bytes of a cut tensor, numpy uint8 [rows of pieces, bytes of a row], zeros added up to the job's shape."""
    import numpy as np

    size = DTYPE_BYTES[job.dtype]
    unit = job.columns
    made = np.zeros((job.elements // unit, unit * size), np.uint8)
    at = 0
    for piece in job.pieces:
        matrix = _matrix(piece, index, unit * size) if piece.source else None
        cols = slice(None) if piece.cols is None else slice(piece.cols[0] * size, piece.cols[1] * size)
        for start, stop in piece.rows:
            if matrix is not None:
                made[at : at + stop - start] = matrix[start:stop, cols]
            at += stop - start
    return made


def pack(values: Any, job: Job, target: Job, sm: int = 80) -> Any:
    """Bytes of a cut tensor -> bytes as stored: where `target` has half the rows, two of them share each byte.

    The even row is in the low nibble (checkpoint format 4.3: b = (q[2i] & 15) | (q[2i + 1] & 15) << 4). A target of
    another dtype is int4 or int8 weights in the layout of `sm`, one of another shape is the transpose.
    """
    if job.dtype != target.dtype:
        return _laid_out(values, 8 * target.nbytes // job.elements, sm)
    if job.nbytes == target.nbytes:
        swapped = len(job.shape) > 1 and job.shape != target.shape
        return _transposed(values, DTYPE_BYTES[job.dtype]) if swapped else values
    assert (job.nbytes, job.dtype) == (2 * target.nbytes, "I8"), (job, target)
    return (values[0::2] & 15) | (values[1::2] << 4)


def _laid_out(values: Any, bits: int, sm: int) -> Any:
    """Bytes of int8 weights [out, in] -> their bytes in the mixed-gemm layout, [in, out * bits / 8]."""
    import torch

    from trtbuild.quantize.packing import preprocess_weights_for_mixed_gemm

    weight = torch.from_numpy(values).view(torch.int8).T
    # Pairs along the outputs, the even one in the low nibble.
    paired = weight if bits == 8 else (weight[:, 0::2] & 15) | (weight[:, 1::2] << 4)
    return preprocess_weights_for_mixed_gemm(paired.contiguous(), bits, 16, sm).numpy()


def _transposed(values: Any, size: int) -> Any:
    """Bytes [rows, columns * size] -> bytes [columns, rows * size]."""
    import numpy as np

    return np.ascontiguousarray(values.view(f"u{size}").T)


def _matrix(piece: Piece, index: Dict[str, TensorInfo], width: int) -> Any:
    """A tensor as a memory map, uint8 [rows, bytes of a row]; `width`: bytes of a row where columns are not cut."""
    import numpy as np

    info = index[piece.source]
    if piece.cols is not None:
        width = info.shape[-1] * DTYPE_BYTES[info.dtype]
    return np.memmap(info.file, np.uint8, "r", info.start, (info.nbytes,)).reshape(-1, width)


def _require_model(folder: Path, index: Dict[str, TensorInfo], jobs: Sequence[Job]) -> None:
    """Raise CheckpointError where a logical checkpoint has not the tensors of the whole model."""
    problems = []
    for job in jobs:
        info = index.get(job.name)
        if info is None:
            problems.append(f"{job.name} is missing")
        elif (info.dtype, info.shape) != (job.dtype, job.shape):
            held = f"{info.dtype} {list(info.shape)}"
            problems.append(f"{job.name} is {held}, but {job.dtype} {list(job.shape)} is needed")
    names = {job.name for job in jobs}
    problems += [f"{name} has no place in this model" for name in index if name not in names]
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        lines = "\n".join(f"  - {text}" for text in [*problems[:_SHOWN], *more])
        raise CheckpointError(
            f"the logical checkpoint {folder} cannot be used:\n{lines}", hint="Run the quantization again."
        )
