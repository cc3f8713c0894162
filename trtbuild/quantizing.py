"""How a checkpoint is quantized: calibrate/ makes a logical checkpoint of a model, checkpoint/ cuts and packs it.

The stages do not know each other; `converting.make_checkpoint` calls the two functions here for a plan whose method has
fields, or whose KV cache has scales.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild.errors import PlanError
from trtbuild.fields import DIVIDED
from trtbuild.progress import Progress, stretch
from trtbuild.spec import CALIBRATION, CalibrationOptions, ConvertOptions

if TYPE_CHECKING:
    import torch

    from trtbuild.calibrate.run import Quantizer, Weights
    from trtbuild.hub.snapshot import ModelSource
    from trtbuild.layout import Job, TensorInfo
    from trtbuild.plan import Plan


def prepared(
    plan: Plan, source: ModelSource, calibration: CalibrationOptions
) -> tuple[Quantizer | None, dict[str, Any]]:
    """(what quantizes the layers of a plan, what the calibration set is for the manifest); None for plain weights.

    Raises:
        CalibrationError, EngineError: the calibration set or the model cannot be used.
        PlanError: a calibration set is given, and nothing needs one.
    """
    options = plan.options
    if plan.imported is not None:
        if calibration != CALIBRATION:
            raise PlanError(["the model is quantized already and needs no calibration; leave --calib... out"])
        return None, {}
    calibrated = options.kv_cache_algo is not None or any(method.needs_calibration for method in plan.methods)
    needed = plan.whole is not None and calibrated
    if not needed and calibration != CALIBRATION:
        names = " and ".join(method.name for method in plan.methods) or plan.method.name
        raise PlanError([f"{names} without a quantized KV cache needs no calibration; leave --calib... out"])
    if plan.whole is None:
        return None, {}
    from trtbuild.calibrate.run import Quantizer, Task
    from trtbuild.calibrate.text import read_samples
    from trtbuild.checkpoint.config import trtllm_config
    from trtbuild.quantize.method import QuantOptions

    config = trtllm_config(plan.family, plan.spec, ConvertOptions(dtype="float32"), None)
    ways = {
        module: (choice.method, QuantOptions(choice.group_size, search=calibration.search))
        for module, choice in plan.choices.items()
    }
    task = Task(ways, plan.dtype, options.kv_cache_algo, calibration.search)
    if not needed:
        return Quantizer(config, task, ()), {}
    samples = read_samples(
        source.path,
        calibration,
        gram=any(calibration.search in method.gram_for for method in plan.methods),
        max_length=plan.spec.config.get("max_position_embeddings") or 0,
        vocab_size=plan.spec.vocab_size,
    )
    return Quantizer(config, task, samples.ids), {"calibration": {**samples.described, "search": calibration.search}}


def quantize(
    plan: Plan,
    quantizer: Quantizer,
    index: dict[str, TensorInfo],
    mark: str,
    folder: Path,
    workers: int,
    progress: Progress,
) -> dict[str, str]:
    """Make the logical checkpoint of a plan inside `folder`, then its rank files; SHA-256 in hex by file name."""
    from trtbuild.checkpoint.convert import convert
    from trtbuild.checkpoint.logical import LogicalWriter
    from trtbuild.checkpoint.pack import pack_checkpoint

    assert plan.whole is not None
    logical, spool = folder / "logical", folder / "spool"
    spool.mkdir(exist_ok=True)
    whole = plan.whole
    writer = LogicalWriter(logical, mark)
    if not writer.has("plain"):
        made_of_fields = {f"{module}.weight" for module, choice in plan.choices.items() if choice.method.fields}
        divided = any(method.norm_scales for method in plan.methods)
        jobs = tuple(
            job for job in whole.jobs if job.name not in made_of_fields and not (divided and DIVIDED.search(job.name))
        )
        made = convert((replace(whole, jobs=jobs),), index, spool, workers=workers, progress=stretch(progress, 0, 0.02))
        ((name, digest),) = made.items()
        writer.adopt("plain", spool / name, digest)
    quantizer.run(reader_of(plan, index, spool), writer, spool, stretch(progress, 0.02, 0.96))
    writer.close()
    digests = pack_checkpoint(logical, plan.family, plan.spec, plan.options, folder, stretch(progress, 0.96, 1))
    for place in (logical, spool):
        shutil.rmtree(place)
    return digests


def reader_of(plan: Plan, index: dict[str, TensorInfo], spool: Path) -> Weights:
    """What reads the float32 weights of a block of a plan; embedding tables lie in `spool`."""
    from trtbuild.checkpoint.layer import read_tensors

    assert plan.whole is not None
    wide = replace(plan.whole, jobs=tuple(replace(job, dtype="F32") for job in plan.whole.jobs))

    def weights(block: int | str) -> dict[str, torch.Tensor]:
        def wanted(job: Job) -> bool:
            if isinstance(block, int):
                return job.name.startswith(f"transformer.layers.{block}.")
            tables = "embedding" in job.name
            outside = not job.name.startswith("transformer.layers.") and not (tables and block == "head")
            return outside and (block == "head" or not job.name.startswith("lm_head."))

        return read_tensors(wide, index, wanted, spool / "embedding" if block == "embedding" else None)

    return weights
