"""Everything that trtbuild reports to a user, and the exit code of each kind.

    TrtbuildError
    ├── UnsupportedModel   3   an architecture or config value that cannot be honoured
    ├── PlanError          3   options that do not fit the model; carries every problem at once
    ├── RecipeError        3   a recipe that cannot be read; carries every problem at once
    ├── CheckpointError    3   files that are missing, truncated or contradict each other
    ├── CalibrationError   3   a text that quantization cannot be calibrated with
    ├── EngineError        3   an engine or repository that cannot be used here
    ├── VerifyError        3   things that cannot be compared; carries every problem at once
    ├── LockError          3   what --locked names is not what is here; carries every difference
    ├── ArtefactError      3   an artefact that is damaged, incomplete or not trtbuild's; carries every fault
    ├── OutputError        4   the output exists, cannot be written, or the disk is full
    ├── ToolError          5   mpirun, a rank or tritonserver failed; carries the last log lines
    ├── RemoteError        6   an S3 store or folder refused an artefact, or does not have it
    ├── HubError           6   download refused, gated, offline or not found
    ├── ServerError        7   the server is away, not ready, stalls or refuses the request
    ├── RequestError       7   a generation request that the model cannot serve
    ├── QualityError       8   verify measured less than a gate demands; carries every gate that failed
    ├── BenchError         3   a benchmark that cannot be run or compared; carries every problem at once
    └── RegressionError   10   `bench --compare`: slower, or more memory, than a gate allows; carries all of them

Codes 0 (done), 1 (a defect in trtbuild), 2 (wrong usage), 9 (`doctor`: not ready, which is no error), 130 (Ctrl-C) and
143 (SIGTERM) complete the table;
`EXIT_CODES` is what the README and `trtbuild show exit-codes` print.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

EXIT_CODES: dict[int, str] = {
    0: "done",
    1: "unexpected failure: a defect in trtbuild, run again with --debug",
    2: "wrong usage of the command line",
    3: "the model, checkpoint, engine or options cannot be used, or check found errors (nothing was written)",
    4: "the output exists, cannot be written, or the disk is full",
    5: "an external program or a rank failed (mpirun, a rank, tritonserver)",
    6: "the Hugging Face hub or an artefact store refused, is offline, or does not have it",
    7: "the server is away, not ready, stalls or refused the request",
    8: "verify: a quantized model is not as good as a gate demands, or damaged",
    9: "doctor: this machine lacks something that the target needs",
    10: "bench --compare: the new run is worse than a gate allows",
    130: "interrupted by Ctrl-C",
    143: "terminated by SIGTERM",
}
NOT_READY = 9


def some(names: Iterable[object], shown: int = 8) -> str:
    """Names in a sentence, each once: the first `shown` of them, and how many more there are."""
    distinct = list(dict.fromkeys(map(str, names)))
    more = f" and {len(distinct) - shown} more" if len(distinct) > shown else ""
    return ", ".join(distinct[:shown]) + more


class TrtbuildError(Exception):
    """A failure that the user can act on: `message` says what, `hint` says what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Problems(TrtbuildError):
    """A failure with several reasons, told at once: `problems` holds one sentence for each.

    `head`: of the message, where one of the kind (`one`; `many`, with their number) says too little.
    """

    one = "1 problem:"
    many = "{} problems:"

    def __init__(self, problems: Sequence[str], *, hint: str = "", head: str = "") -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = head or (self.one if count == 1 else self.many.format(count))
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]), hint=hint)


class UnsupportedModel(TrtbuildError):
    exit_code = 3


class PlanError(Problems):
    """All problems of a plan together."""

    exit_code = 3
    one = "1 problem in the plan:"
    many = "{} problems in the plan:"


class RecipeError(Problems):
    """Everything that is wrong with a recipe, each with its line."""

    exit_code = 3
    one = "1 problem in the recipe:"
    many = "{} problems in the recipe:"


class CheckpointError(TrtbuildError):
    exit_code = 3


class CalibrationError(TrtbuildError):
    exit_code = 3


class EngineError(TrtbuildError):
    exit_code = 3


class LockError(Problems):
    """Why an artefact cannot be made again as it was: every difference."""

    exit_code = 3
    one = "the lock does not hold:"
    many = "the lock does not hold, {} differences:"


class ArtefactError(Problems):
    """What is wrong with an artefact: every fault."""

    exit_code = 3

    def __init__(self, where: object, problems: Sequence[str], *, hint: str = "") -> None:
        super().__init__(problems, hint=hint, head=f"{where} is no sound artefact:")


class OutputError(TrtbuildError):
    exit_code = 4


class ToolError(TrtbuildError):
    """An external program failed; `log_tail` holds the last lines that it wrote."""

    exit_code = 5

    def __init__(self, message: str, *, log_tail: Sequence[str] = (), hint: str = "") -> None:
        self.log_tail = tuple(log_tail)
        tail = "".join(f"\n  | {line}" for line in self.log_tail)
        super().__init__(message + tail, hint=hint)


class RemoteError(TrtbuildError):
    exit_code = 6


class HubError(TrtbuildError):
    exit_code = 6


class ServerError(TrtbuildError):
    exit_code = 7


class RequestError(TrtbuildError):
    exit_code = 7


class VerifyError(Problems):
    """Why an artefact cannot be compared with a model."""

    exit_code = 3
    one = "cannot verify:"
    many = "cannot verify, {} problems:"


class QualityError(Problems):
    """All gates that failed."""

    exit_code = 8
    one = "1 gate failed:"
    many = "{} gates failed:"


class BenchError(Problems):
    """Why a benchmark cannot be run, or two cannot be compared."""

    exit_code = 3
    one = "cannot benchmark:"
    many = "cannot benchmark, {} problems:"


class RegressionError(Problems):
    """All gates that a new run fails."""

    exit_code = 10
    one = "1 gate failed:"
    many = "{} gates failed:"
