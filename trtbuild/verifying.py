"""How an engine or checkpoint is verified: it and its float32 model run on one text, and gates judge the difference."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.building import make_engine
from trtbuild.converting import reshard_checkpoint
from trtbuild.planning import plan_folder, require_engine, resolve
from trtbuild.progress import Progress, silent, stretch
from trtbuild.spec import ConvertOptions
from trtbuild.staging import check_disk

if TYPE_CHECKING:
    from trtbuild.verify.report import Report
    from trtbuild.verify.task import VerifyOptions


def verify_artifact(
    given: Path,
    model: str,
    options: VerifyOptions,
    *,
    revision: str | None = None,
    progress: Progress = silent,
    allow_pickle: bool = False,
) -> Report:
    """Compare an engine or checkpoint with the float32 model that it was made from, on a text.

    Its real ranks run; an engine of a checkpoint is built in a temporary folder. Nothing is left behind.

    Raises:
        VerifyError: all that keeps them from being compared, before anything runs.
        HubError, CheckpointError, UnsupportedModel, EngineError, OutputError, ToolError: as `make_engine`.
    """
    from trtbuild.engine.options import BuildOptions
    from trtbuild.verify.decoded import decoded
    from trtbuild.verify.gates import gates_of, judged, override
    from trtbuild.verify.run import measure
    from trtbuild.verify.subject import open_subject
    from trtbuild.verify.task import make_task

    subject = open_subject(given)
    source = resolve(model, revision, allow_pickle=allow_pickle)
    plan, index = plan_folder(source.path, ConvertOptions(dtype="float32"), allow_pickle=allow_pickle)
    cut, _ = plan_folder(source.path, subject.options, allow_pickle=allow_pickle)
    require_engine(part.family for part in plan.parts)
    task = make_task(subject, source.path, plan.parts[0], cut.parts[0], index, options)
    with tempfile.TemporaryDirectory(prefix="trtbuild-verify-") as temporary:
        scratch, limits = Path(temporary), BuildOptions(1, None, task.text.length)
        # A quantized model is written out as plain float32.
        check_disk(scratch, scratch, task.disk_bytes + (plan.checkpoint_bytes if plan.imported else 0))
        if plan.imported:
            task = decoded(task, plan.parts[0], index, scratch / "model", silent)
        engine, one_rank = given, None
        if subject.kind == "checkpoint":
            shown = stretch(progress, 0.0, 0.05)
            engine = make_engine(str(given), scratch / "engine", ConvertOptions(), limits, progress=shown)
        if task.one_rank:
            shown = stretch(progress, 0.05, 0.1)
            whole = reshard_checkpoint(given, scratch / "whole", ConvertOptions(), progress=shown)
            one_rank = make_engine(str(whole), scratch / "engine1", ConvertOptions(), limits)
            shutil.rmtree(whole)
        report = measure(task, engine, one_rank, scratch, stretch(progress, 0.1, 1.0))
    return judged(report, override(gates_of(subject.config), options.gates))
