"""What `trtbuild check` judges: a checkpoint by the linter, a Triton repository against its engine and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.progress import Progress, silent

if TYPE_CHECKING:
    from trtbuild.finding import Report


def check_artifact(folder: Path, *, read_data: bool = True, target: str = "", progress: Progress = silent) -> Report:
    """All faults of a TensorRT-LLM checkpoint or a Triton repository, whoever made it; another folder is one of them.

    `read_data` False leaves out numbers and tokenizers. `target`: whose demands count, "" for what the files say.

    Raises:
        ServerError: a repository, and tritonclient is not installed.
    """
    from trtbuild.lint.read import kind_of

    if kind_of(folder) == "repository":
        from trtbuild.repo.check.run import check_repository

        return check_repository(folder, read_tokenizers=read_data)
    from trtbuild.lint.check import check

    return check(folder, read_data=read_data, target=target, progress=progress)
