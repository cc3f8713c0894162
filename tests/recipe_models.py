"""The recipes' models as folders without weights: the real config.json, and headers of all tensors.

Of three models the tensors' names are those of a public model.safetensors.index.json (`"tensors": "index"` in
sources.json). Of the other fourteen (`"meta"`) no index was found: names, shapes and dtypes are those of the class that
transformers makes of the config, without weights, and only their size in bytes is the published one. A tensor that such
a model has beside, under a name that transformers does not know, would not be seen.

A folder holds one model.safetensors whose header is whole and whose data is a hole in the file, so that everything that
reads headers only works on it as on the model itself, however large that is.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from itertools import dropwhile
from math import prod
from pathlib import Path
from typing import Any

from tests.tiny import ROOT
from trtbuild.fields import LINEAR
from trtbuild.plan import ModelPlan
from trtbuild.planning import make_plan
from trtbuild.recipe.contents import Recipe
from trtbuild.recipe.on_gpu import on_gpu
from trtbuild.recipe.shelf import shipped

DATA = ROOT / "tests" / "data" / "recipes"
BYTES = {"BF16": 2, "F16": 2, "F32": 4}


def sources() -> dict[str, dict[str, Any]]:
    """Folder of DATA -> hub id, where its config and its tensors are from, total_size as published."""
    document: dict[str, dict[str, Any]] = json.loads((DATA / "sources.json").read_text())
    return document


def tensors_of(name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape) of a model's tensors."""
    found = json.loads(gzip.decompress((DATA / name / "tensors.json.gz").read_bytes()))
    return {tensor: (dtype, tuple(shape)) for tensor, (dtype, shape) in found.items()}


def model_folder(hub_id: str, folder: Path) -> Path:
    """Make the folder of a hub model in `folder`; it takes no more disk than its header."""
    name = folder_of(hub_id)
    made = folder / name
    if made.is_dir():
        return made
    made.mkdir(parents=True)
    shutil.copyfile(DATA / name / "config.json", made / "config.json")
    header, offset = {}, 0
    for tensor, (dtype, shape) in tensors_of(name).items():
        size = prod(shape) * BYTES[dtype]
        header[tensor] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with (made / "model.safetensors").open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.truncate(8 + len(text) + offset)
    return made


GIB = 1 << 30


def kv_token_bytes(config: dict[str, Any], tp: int, element: int) -> int:
    """Bytes that one token takes in the KV cache of one rank (engine-build 9.2), from a Hugging Face config.json."""
    heads = config.get("num_key_value_heads") or config.get("num_kv_heads") or config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(config["num_hidden_layers"] * 2 * max(1, -(-heads // tp)) * size * element)


def engine_bytes(plan: ModelPlan) -> int:
    """Weights of the largest rank of an engine: as in its file, but for two things that the build itself changes.

    Weight-only int8 becomes one byte an element and a scale of 2 bytes an output; scales of AWQ groups are float32 in
    the file, and of 16 bits in the engine (checkpoint format 5).
    """
    largest = 0
    for part in plan.parts:
        for rank in part.ranks:
            size = rank.nbytes
            for job in rank.jobs:
                if part.method.name == "int8" and LINEAR.search(job.name):
                    size -= job.nbytes - prod(job.shape) - 2 * job.shape[-2]
                elif part.method.name == "int4_awq" and job.dtype == "F32" and len(job.shape) > 1:
                    size -= job.nbytes // 2
            largest = max(largest, size)
    return largest


def header(name: str, recipe: Recipe, plan: ModelPlan) -> str:
    """The comment that a recipe begins with: how it is run, what it takes, and where that is from."""
    lines = ["yaml-language-server: $schema=recipe.schema.json", f"trtbuild run {name} -o work"]
    sizing = on_gpu(recipe, plan)
    if sizing and recipe.gpu:
        verdict, gpu = sizing.verdict, sizing.target.gpu
        rank = next(rank for rank in verdict.ranks if rank.rank == verdict.deciding)
        lines += [
            f"GPU: {recipe.gpu.count} x {recipe.gpu.type}, {gpu.memory_gib:.1f} GiB for CUDA each: "
            f"{rank.weights / GIB:.1f} GiB of weights, {(rank.fixed - rank.weights) / GIB:.1f} GiB of activations and",
            f"buffers, and a KV cache of {rank.kv_token_bytes / 1024:g} KiB a token: {verdict.sequences} sequences of "
            f"{sizing.target.context} tokens at once.",
        ]
    elif recipe.gpu:
        lines.append(f"GPU: {recipe.gpu.count} x {recipe.gpu.type}, to serve it; it is made without one.")
    else:
        lines.append("GPU: none.")
    disk = plan.checkpoint_bytes + plan.scratch_bytes
    lines.append(
        f"Host: {plan.memory_bytes / 1e9:.1f} GB of memory, {disk / 1e9:.1f} GB of disk beside the model's "
        f"{plan.source_bytes / 1e9:.1f} GB."
    )
    lines.append("From: `trtbuild plan`, of the model's own config.json and tensors; checked by tests/test_recipes.py.")
    return "".join(f"# {line}\n" for line in lines)


def folder_of(hub_id: str) -> str:
    """The folder of DATA that holds a hub model."""
    return next(name for name, about in sources().items() if about["hub"] == hub_id)


def main() -> None:
    """Write the comment of every shipped recipe anew: python -m tests.recipe_models."""
    with tempfile.TemporaryDirectory() as folder:
        for one in shipped():
            plan = make_plan(str(model_folder(one.recipe.model, Path(folder))), one.recipe.options)
            plan.require()
            lines = one.path.read_text().splitlines(keepends=True)
            rest = "".join(dropwhile(lambda line: line.startswith("#"), lines))
            one.path.write_text(header(one.name, one.recipe, plan) + rest)


if __name__ == "__main__":
    main()
