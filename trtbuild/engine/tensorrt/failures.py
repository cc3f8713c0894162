"""A log that ended badly -> one sentence and a remedy. PURE.

Each row names where the text was seen: engine-build is our collection of facts, NVIDIA/TensorRT-LLM#N and others are
threads of GitHub. The first row that matches counts, so what is more telling stands higher: TensorRT says "could not
find any implementation" also when nothing but memory was missing, and "Engine building failed" after everything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trtbuild.engine.tensorrt.failure_hardware import Failure
from trtbuild.engine.tensorrt.failure_table import FAILURES

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_OPTIONAL, _GROUP = re.compile(r"\[([^\]]*)\]"), re.compile(r"\{(\w+)\}")
_ERROR_LINE = re.compile(r"\[TRT(?:-LLM)?\] \[E\]|\[ERROR\]|^\w*(?:Error|Exception)\b.*|Assertion failed", re.M)
_SIGNALS = {
    "signal 9": "it was killed (SIGKILL), as the kernel does when the host's memory is used up",
    "signal 7": "it got SIGBUS: a file or /dev/shm that it had mapped ran out of room",
    "signal 11": "it crashed (SIGSEGV)",
    "signal 6": "it aborted (SIGABRT)",
    "signal 15": "it was ended from outside (SIGTERM)",
}
_HOST_MEMORY = "Build fewer ranks at once (--processes), raise the container's memory limit, or add swap"
_SIGNAL_REMEDIES = {
    "signal 9": f"{_HOST_MEMORY}: a build needs about twice the weights of a rank in host memory, for each process.",
    "signal 7": "Give the container more shared memory (docker run --shm-size=2g), and the output's disk room.",
    "signal 11": "TensorRT, TensorRT-LLM and the driver must be of one container; `trtbuild doctor` compares them.",
}


@dataclass(frozen=True)
class Diagnosis:
    """`name` of the row, "signal" or "unknown"; `sentence` without the rank; what to do; where it is known from."""

    name: str
    sentence: str
    remedy: str
    source: str = ""


def classify(text: str, how: str = "", *, oom_kill: bool = False) -> Diagnosis:
    """What a log says; `how` the process ended ("signal 9 (Killed)", "exit code 1"), as far as it is known.

    `oom_kill`: the kernel counted a process that it killed for memory while this ran.
    """
    clean = _ANSI.sub("", text)
    for failure in FAILURES:
        found = _matched(failure, clean)
        if found is not None:
            return Diagnosis(failure.name, _sentence(failure.sentence, found), failure.remedy, failure.source)
    signal = re.match(r"signal \d+", how)
    if signal:
        sentence = _SIGNALS.get(signal[0], f"it was ended by {how}")
        if signal[0] == "signal 9" and oom_kill:
            sentence = "the kernel killed it because the host's memory was used up"
        name = "host-memory" if signal[0] == "signal 9" else "signal"
        return Diagnosis(
            name, sentence, _SIGNAL_REMEDIES.get(signal[0], "The log has what came before."), _SOURCE_KILLED
        )
    line = last_error(clean)
    return Diagnosis("unknown", line or "it failed, and its log does not say why", "Read the whole log.")


def telling(texts: Sequence[str]) -> int | None:
    """Which of several logs says why: the first that a row of the table knows, else the first with an error."""
    for number, text in enumerate(texts):
        if classify(text).name != "unknown":
            return number
    return next((number for number, text in enumerate(texts) if last_error(text)), None)


def last_error(text: str) -> str:
    """The last line that reads like an error, without its time; "" where there is none."""
    lines = [line.strip() for line in text.splitlines() if _ERROR_LINE.search(line)]
    return re.sub(r"^\[[\d/:. -]+\]\s*", "", lines[-1])[:300] if lines else ""


def telling_lines(text: str, count: int) -> list[str]:
    """The last lines of a log without the frames of a Python traceback."""
    lines = [line.rstrip() for line in _ANSI.sub("", text).splitlines()]
    return [line for line in lines if line and not line.startswith("  ")][-count:]


def gave_up(text: str) -> bool:
    """Whether a process of trtllm-build has failed and only waits for the others (engine-build 5).

    It prints the traceback at once and aborts after a barrier, which may be an hour later.
    """
    return bool(_GAVE_UP.search(text))


_GAVE_UP = re.compile(
    r'Traceback \(most recent call last\):.*commands/build\.py", line \d+, in parallel_build.*?^\w', re.S | re.M
)
_SOURCE_KILLED = "engine-build 9.1; NVIDIA/TensorRT-LLM#102, #538, #743, #1543"


def _matched(failure: Failure, text: str) -> dict[str, str] | None:
    """The named groups of all patterns, of the last match of each that has any, or None where a pattern is absent."""
    groups: dict[str, str] = {}
    for pattern in failure.patterns:
        matches = list(re.finditer(pattern, text, re.M))
        if not matches:
            return None
        told = [found for found in (match.groupdict(default="") for match in matches) if any(found.values())]
        groups.update({name: value.strip() for name, value in (told[-1] if told else {}).items() if value})
    return groups


def _sentence(template: str, groups: dict[str, str]) -> str:
    """A row's sentence; see `Failure` for the brackets."""

    def optional(part: re.Match[str]) -> str:
        return part[1] if set(_GROUP.findall(part[1])) <= groups.keys() else ""

    return _GROUP.sub(lambda name: groups.get(name[1], ""), _OPTIONAL.sub(optional, template))
