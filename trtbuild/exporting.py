"""How a quantized Hugging Face checkpoint is made: calibrate/ quantizes layers in llmapi/'s form, which lays them out.

The stages do not know each other; `converting.make_checkpoint` calls the functions here for `--target llmapi`.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild.progress import Progress, stretch

if TYPE_CHECKING:
    from trtbuild.calibrate.run import Quantizer
    from trtbuild.checkpoint.journal import Journal
    from trtbuild.layout import TensorInfo
    from trtbuild.plan import Plan


def documents(plan: Plan, index: dict[str, TensorInfo], source: Path) -> dict[str, dict[str, Any]]:
    """config.json and hf_quant_config.json of a plan for the model in `source`."""
    from trtbuild.checkpoint.config import load_config
    from trtbuild.llmapi.documents import hf_documents
    from trtbuild.llmapi.layout import unquantized
    from trtbuild.llmapi.plan import layout_of

    choice = next((choice for choice in plan.choices.values() if choice.method.fields), None)
    excluded = unquantized(layout_of(plan, index), plan.choices)
    return hf_documents(load_config(source), plan.dtype, choice, plan.options.kv_cache_algo, excluded)


def export(
    plan: Plan,
    quantizer: Quantizer | None,
    index: dict[str, TensorInfo],
    source: Path,
    folder: Path,
    workers: int,
    progress: Progress,
    journal: Journal,
    mark: str,
) -> dict[str, str]:
    """Write a plan's files into `folder`; SHA-256 in hex by file name. `source`: the model's folder.

    Raises:
        CheckpointError, OSError: as the quantizer and the converter.
    """
    from trtbuild.checkpoint.writer import write_documents
    from trtbuild.llmapi.shards import copy_files

    if quantizer is None:
        digests = _plain(plan, index, folder, workers, progress, journal)
    else:
        digests = _quantized(plan, quantizer, index, folder, workers, progress, mark)
    write_documents(folder, documents(plan, index, source))
    copy_files(source, folder)
    return digests


def _plain(
    plan: Plan, index: dict[str, TensorInfo], folder: Path, workers: int, progress: Progress, journal: Journal
) -> dict[str, str]:
    """A model that no method touches: its tensors in the plan's dtype."""
    from trtbuild.checkpoint.convert import convert
    from trtbuild.llmapi.layout import file_names
    from trtbuild.llmapi.shards import write_index

    made = convert(plan.ranks, index, folder, workers=workers, progress=progress, journal=journal)
    names = dict(zip(made, file_names(len(plan.ranks)), strict=True))
    for name, final in names.items():
        (folder / name).rename(folder / final)
    write_index(plan.ranks, folder)
    return {names[name]: digest for name, digest in made.items()}


def _quantized(
    plan: Plan,
    quantizer: Quantizer,
    index: dict[str, TensorInfo],
    folder: Path,
    workers: int,
    progress: Progress,
    mark: str,
) -> dict[str, str]:
    """The logical checkpoint in Hugging Face's names, a part a layer, then the files; what was finished is kept."""
    import torch

    from trtbuild.checkpoint.convert import convert
    from trtbuild.checkpoint.logical import LogicalWriter
    from trtbuild.llmapi.form import HfForm
    from trtbuild.llmapi.plan import layout_of
    from trtbuild.llmapi.shards import write_shards
    from trtbuild.quantizing import reader_of

    layout = layout_of(plan, index)
    logical, spool = folder / "logical", folder / "spool"
    spool.mkdir(exist_ok=True)
    writer = LogicalWriter(logical, mark)
    if not writer.has("plain"):
        whole = replace(plan.ranks[0], rank=0, jobs=layout.plain)
        made = convert((whole,), index, spool, workers=workers, progress=stretch(progress, 0, 0.02))
        ((name, digest),) = made.items()
        writer.adopt("plain", spool / name, digest)
    form = HfForm(layout, getattr(torch, plan.dtype))
    quantizer.run(reader_of(plan, index, spool), writer, spool, stretch(progress, 0.02, 0.96), form)
    writer.close()
    digests = write_shards(logical, plan.ranks, folder, stretch(progress, 0.96, 1))
    for place in (logical, spool):
        shutil.rmtree(place)
    return digests
