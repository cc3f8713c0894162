"""What a check says of a checkpoint or a repository. PURE."""

from __future__ import annotations

from dataclasses import dataclass, replace

ERROR, WARNING, INFO = "error", "warning", "info"
"""`error`: TensorRT-LLM or Triton refuses it, or answers wrongly. `warning`: probably a mistake, or not fully checked.
`info`: works, but is worth knowing (an older release wrote it so)."""


@dataclass(frozen=True)
class Finding:
    """One fault: which rule, where (a tensor, a field of config.json, a file), what was expected and found."""

    rule: str
    severity: str
    where: str
    expected: str
    found: str
    hint: str = ""
    rank: int | None = None
    folder: str = ""
    """`encoder` or `decoder` where a checkpoint has two halves."""


@dataclass(frozen=True)
class Check:
    """A rule; ids are stable, scripts may name them."""

    severity: str
    text: str


@dataclass(frozen=True)
class Report:
    """All findings of one folder, errors first, and what was looked at."""

    kind: str
    findings: tuple[Finding, ...]
    architecture: str = ""
    family: str = ""
    quant_algo: str = ""
    tp_size: int = 0
    pp_size: int = 0
    num_tensors: int = 0
    data_checked: bool = False

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def strict(self) -> Report:
        """The report with warnings made errors."""
        made = tuple(replace(f, severity=ERROR) if f.severity == WARNING else f for f in self.findings)
        return replace(self, findings=made)


def ordered(findings: list[Finding]) -> tuple[Finding, ...]:
    """Without repetitions, errors first, else in the order found."""
    level = {ERROR: 0, WARNING: 1, INFO: 2}
    return tuple(sorted(dict.fromkeys(findings), key=lambda finding: level[finding.severity]))
