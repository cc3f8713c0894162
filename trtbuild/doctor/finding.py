"""What the doctor says. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "info", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    `check` is a stable name (`topic.thing`); `fail` means that the target cannot work, `warn` that it may not or only
    slowly, `info` what is good to know. `remedy` is a command where there is one.
    """

    level: Level
    check: str
    found: str
    why: str = ""
    remedy: str = ""

    @property
    def topic(self) -> str:
        return self.check.partition(".")[0]


@dataclass(frozen=True)
class Wish:
    """What the machine shall do. `gpus` counts GPUs of tensorrt and llmapi, ranks (processes) of cpu."""

    target: str = "cpu"
    gpus: int = 1

    @property
    def on_gpu(self) -> bool:
        return self.target == "tensorrt"


@dataclass(frozen=True)
class Report:
    wish: Wish
    findings: tuple[Finding, ...]

    @property
    def ready(self) -> bool:
        return not self.count("fail")

    def count(self, level: Level) -> int:
        return sum(finding.level == level for finding in self.findings)
