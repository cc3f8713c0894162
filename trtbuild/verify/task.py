"""Brings subject, model and text together, and says everything that is wrong with them before anything runs."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtbuild.errors import CheckpointError, VerifyError
from trtbuild.layout import RankJobs, TensorInfo
from trtbuild.plan import Plan
from trtbuild.verify.report import Text
from trtbuild.verify.subject import Subject, contradictions, differences
from trtbuild.verify.text import read_samples

if TYPE_CHECKING:
    import torch

_BYTES = 4  # float32


@dataclass(frozen=True)
class VerifyOptions:
    """`text`: a UTF-8 file, or .json with token ids; None for the bundled English. `tokens` in all, in sequences of
    `length`. `one_rank`: also against the same weights on one rank, where there are several. `gates`: limits by the
    names of `Gates`, None for the default of the quantization."""

    text: Path | None = None
    tokens: int = 2048
    length: int = 512
    one_rank: bool = True
    gates: Dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What is compared. `config`: the model's, as TensorRT-LLM has it, plain and on one rank; `whole` and `ranks`: its
    float32 plan on one rank and in the subject's layout; `ids`: int32 [samples, T]."""

    subject: Subject
    model: str
    config: dict[str, Any]
    whole: RankJobs
    ranks: tuple[RankJobs, ...]
    index: Dict[str, TensorInfo]
    ids: torch.Tensor
    text: Text
    notes: tuple[str, ...]
    one_rank: bool

    @property
    def disk_bytes(self) -> int:
        """Of the temporary files beside engines: hidden states and logits."""
        hidden = (int(self.config["num_hidden_layers"]) + 1) * int(self.config["hidden_size"])
        logits = int(self.config["vocab_size"]) * (2 if self.one_rank else 1)
        return _BYTES * self.text.tokens * (hidden + logits)


def make_task(
    subject: Subject, model: Path, whole: Plan, cut: Plan, index: Dict[str, TensorInfo], options: VerifyOptions
) -> Task:
    """`whole` and `cut`: the float32 plans of the model in `model` on one rank and in the subject's layout.

    Raises:
        VerifyError: everything that keeps them from being compared. EngineError: the model has no tokenizer.
    """
    from trtbuild.checkpoint.config import trtllm_config

    config = trtllm_config(whole.family, whole.spec, whole.options, None)
    problems = [*contradictions(subject, config)]
    if not problems:
        problems += [*whole.problems, *(problem for problem in cut.problems if problem not in whole.problems)]
    longest = int(config.get("max_position_embeddings") or options.length)
    try:
        ids, text = read_samples(
            model, options.text, options.tokens, min(options.length, longest), config["vocab_size"]
        )
    except VerifyError as error:
        problems += error.problems
    if problems:
        hint = "Give the model that it was made from." if any(contradictions(subject, config)) else ""
        raise VerifyError(problems, hint=hint)
    notes = [*differences(subject, whole.spec.config)]
    if text.tokens < options.tokens:
        notes.append(f"{text.tokens} tokens of {text.name} were run, not {options.tokens}")
    one_rank = options.one_rank and subject.options.world_size > 1
    if one_rank and (why := _not_recut(subject)):
        one_rank = False
        notes.append(f"not compared with one rank: {why}")
    return Task(subject, model.name, config, whole.ranks[0], cut.ranks, index, ids, text, tuple(notes), one_rank)


def _not_recut(subject: Subject) -> str:
    """Why a subject cannot be put on one rank, or nothing."""
    from trtbuild.lint.plain import read_plain

    if subject.kind == "engine":
        return "an engine cannot be cut anew; verify its checkpoint"
    try:
        read_plain(subject.folder)
    except CheckpointError as error:
        return error.message
    return ""
