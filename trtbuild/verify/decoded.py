"""A model that is quantized already, as the float32 model that its numbers stand for."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import replace
from pathlib import Path

from trtbuild.checkpoint.imported import Importing, write_logical
from trtbuild.checkpoint.logical import read_logical
from trtbuild.fields import Quantized, shard_fields
from trtbuild.layout import TensorInfo
from trtbuild.plan import Plan
from trtbuild.progress import Progress
from trtbuild.verify.task import Task


def decoded(task: Task, whole: Plan, index: Dict[str, TensorInfo], folder: Path, progress: Progress) -> Task:
    """The task with the model written out into `folder`, which must have room for it; `whole`: its plan on one rank.

    Raises:
        CheckpointError: numbers that cannot be, or files that cannot be read. OSError: the file system refuses.
    """
    assert whole.imported is not None
    assert whole.whole is not None, "a plan without problems"
    write_logical(Importing(whole.whole, index, whole.imported, {}), folder, "verify", progress)

    made = shard_fields(whole.family, whole.spec, whole.options, "float32", Quantized())
    ranks = shard_fields(whole.family, whole.spec, task.subject.options, "float32", Quantized())
    return replace(task, whole=made[0], ranks=ranks, index=read_logical(folder))
