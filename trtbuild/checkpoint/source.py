"""Headers of a model folder -> TensorInfo by name. Reads no weight, and for safetensors imports no array library."""

from __future__ import annotations

import json
import re
from math import prod
from pathlib import Path
from typing import Any

from trtbuild.checkpoint import pickled
from trtbuild.errors import CheckpointError
from trtbuild.layout import DTYPE_BYTES, TensorInfo

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MAX_HEADER = 100_000_000  # the limit of the safetensors library


def read_index(folder: Path, *, allow_pickle: bool = False) -> dict[str, TensorInfo]:
    """All tensors of `folder`, from the headers alone; every contradiction between the files is looked for.

    Safetensors win; PyTorch's .bin files are read where there are none and `allow_pickle` permits it.

    Raises:
        CheckpointError: no weights, missing, truncated or corrupt files; one message names them all.
    """
    problems: list[str] = []
    single, index = _names(folder, allow_pickle)
    weight_map = _weight_map(folder, single, index)
    files = sorted(set(weight_map.values())) if weight_map is not None else [single]
    found: dict[str, TensorInfo] = {}
    for name in files:
        path = folder / name
        if not path.is_file():
            count = sum(1 for shard in (weight_map or {}).values() if shard == name)
            problems.append(f"{name} is missing ({index} places {count} tensors in it)")
            continue
        try:
            tensors = pickled.read_tensors(path) if path.suffix == ".bin" else read_header(path)
        except CheckpointError as error:
            problems.append(error.message)
            continue
        for info in tensors:
            if info.name in found:
                problems.append(f"tensor {info.name} is in both {found[info.name].file.name} and {name}")
            found[info.name] = info
    if weight_map is not None and not problems:
        problems += _compare(weight_map, found, index)
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise CheckpointError(f"the weights in {folder} cannot be used:\n{lines}", hint="Fetch the files again.")
    return found


def weight_files(folder: Path, *, allow_pickle: bool = False) -> list[str]:
    """Names of the files that `read_index` would read, its index among them; raises CheckpointError as it does."""
    single, index = _names(folder, allow_pickle)
    weight_map = _weight_map(folder, single, index)
    return [single] if weight_map is None else [index, *sorted(set(weight_map.values()))]


def read_header(path: Path) -> list[TensorInfo]:
    """Tensors of one safetensors file, in file order.

    Raises:
        CheckpointError: the header is corrupt, or the file is shorter or longer than the header says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise CheckpointError(
                    f"{path.name} is truncated or no safetensors file ({size} bytes, no whole header)"
                )
            text = handle.read(length)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror or error}") from error
    try:
        header = json.loads(text, object_pairs_hook=_unique)
        data = 8 + length
        items = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        tensors = [_tensor(path, name, entry, data) for name, entry in items]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path.name} has a corrupt header: {error}") from error
    end = 8 + length
    for info in sorted(tensors, key=lambda t: (t.start, t.stop)):
        if info.start != end:
            raise CheckpointError(f"{path.name} has a corrupt header: gap or overlap before {info.name}")
        end = info.stop
    if end > size:
        raise CheckpointError(f"{path.name} is truncated: {size} bytes, but its header describes {end}")
    if end < size:
        raise CheckpointError(f"{path.name} has {size - end} bytes more than its header describes")
    return tensors


def bare_index(folder: Path) -> dict[str, str] | None:
    """Tensor -> shard of an index of which no shard is here: enough to plan with, and nothing to convert; else None.

    Raises:
        CheckpointError: the index is corrupt.
    """
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return None
    table = _weight_map(folder, SINGLE, INDEX)
    return None if table is None or any((folder / name).is_file() for name in table.values()) else table


def describe_files(folder: Path, index: dict[str, TensorInfo]) -> dict[str, int]:
    """Sizes in bytes of the weight files that `index` was read from."""
    return {
        name: (folder / name).stat().st_size
        for name in sorted({file.name for info in index.values() for file in info.files})
    }


def hub_digests(folder: Path, index: dict[str, TensorInfo]) -> dict[str, str]:
    """SHA-256 of the weight files as the hub states it: its cache keeps a file under that name. Empty elsewhere."""
    found = {}
    for name in describe_files(folder, index):
        blob = (folder / name).resolve()
        if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
            found[name] = blob.name
    return found


def _names(folder: Path, allow_pickle: bool) -> tuple[str, str]:
    """(single file, index) to look for."""
    safe = any((folder / name).is_file() for name in (SINGLE, INDEX))
    pickles = any((folder / name).is_file() for name in (pickled.SINGLE, pickled.INDEX))
    return (pickled.SINGLE, pickled.INDEX) if allow_pickle and pickles and not safe else (SINGLE, INDEX)


def _weight_map(folder: Path, single: str, index: str) -> dict[str, str] | None:
    """The index's tensor -> shard table; None for a single file, which wins as it does in transformers."""
    if (folder / single).is_file():
        return None
    path = folder / index
    if not path.is_file():
        raise _no_weights(folder)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not table or not all(isinstance(v, str) and Path(v).name == v for v in table.values()):
            raise ValueError("weight_map must name files of this folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is corrupt: {error}", hint="Fetch the file again.") from error
    return dict(table)


def _no_weights(folder: Path) -> CheckpointError:
    loose = sorted(path.name for path in folder.glob("*.safetensors"))
    if loose:
        message = f"{folder} has {', '.join(loose[:3])}, but neither {SINGLE} nor {INDEX}"
        return CheckpointError(message, hint="Fetch the model again, with its index.")
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")) or any(folder.glob("*.pt")):
        hint = (
            f"If you trust where they come from, --allow-pickle reads {pickled.SINGLE} and its shards; or load the "
            "model with transformers and save it with save_pretrained(), which writes safetensors."
        )
        return CheckpointError(f"{folder} holds pickled weights only; trtbuild reads safetensors", hint=hint)
    return CheckpointError(f"{folder} has no weights ({SINGLE} or {INDEX})")


def _compare(weight_map: dict[str, str], found: dict[str, TensorInfo], index: str) -> list[str]:
    """What the index and the shards say differently."""
    absent = [name for name, shard in weight_map.items() if name not in found or found[name].file.name != shard]
    extra = [name for name in found if name not in weight_map]
    problems = [f"{index} places {name} in {weight_map[name]}, which does not hold it" for name in absent[:8]]
    problems += [f"{found[name].file.name} holds {name}, which {index} does not list" for name in extra[:8]]
    rest = max(0, len(absent) - 8) + max(0, len(extra) - 8)
    return problems + ([f"and {rest} more such tensors"] if rest else [])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is there twice")
    return table


def _tensor(path: Path, name: str, entry: Any, data: int) -> TensorInfo:
    dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
        raise ValueError(f"{name} has a shape or offsets that are no whole numbers")
    if dtype in DTYPE_BYTES and stop - start != prod(shape) * DTYPE_BYTES[dtype]:
        raise ValueError(f"{name} has {stop - start} bytes for {dtype} {list(shape)}")
    return TensorInfo(name, str(dtype), shape, path, data + start, data + stop)
