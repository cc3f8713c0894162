"""What `soak.py` looks at while it runs, and what it makes of that: samples, verdict, curves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.serve_fixture import Running, command_line

EARLY, LATE = (0.3, 0.5), (0.8, 1.0)
"""Parts of the time whose memory is compared."""
GROWTH = 0.01
"""Of all memory, between the two: what is still no leak, as arenas of malloc settle late."""


@dataclass
class Tally:
    """What became of the requests so far."""

    ended: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        self.problems.append(text[:500])


def sample(server: Running, at_s: float, requests: int) -> dict[str, Any]:
    """KV blocks, and for each process of the server its memory (MB), threads and file descriptors.

    `own` memory is anonymous and shared memory without mapped files, whose share moves with other processes.
    """
    processes = {}
    for pid in [server.process.pid, *server.marked()]:
        try:
            folder = Path(f"/proc/{pid}")
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
            rollup = dict(line.split(":", 1) for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
            processes[role(pid)] = {
                "rss": int(status["VmRSS"].split()[0]) / 1024,
                "pss": int(rollup["Pss"].split()[0]) / 1024,
                "own": sum(int(rollup[name].split()[0]) for name in ("Anonymous", "Pss_Shmem")) / 1024,
                "threads": int(status["Threads"]),
                "fds": len(list((folder / "fd").iterdir())),
            }
        except (OSError, KeyError):
            continue  # it has just ended
    return {
        "at_s": round(at_s, 1),
        "requests": requests,
        "kv_used": server.gauge("used"),
        "kv_max": server.gauge("max"),
        "processes": processes,
    }


def role(pid: int) -> str:
    command = command_line(pid)
    for model in ("preprocessing", "tensorrt_llm_bls", "tensorrt_llm", "postprocessing"):
        if "triton_python_backend_stub" in command and f"/{model}/" in command:
            return f"stub {model}"
    for word, name in (("trtbuild.runtime.rank", "rank"), ("mpirun", "mpirun"), ("tritonserver", "tritonserver")):
        if word in command:
            return f"rank {pid}" if name == "rank" else name
    return "supervisor" if " serve " in command else f"other {pid}"


def judge(
    idle: dict[str, Any], samples: list[dict[str, Any]], at_end: dict[str, Any], tally: Tally, seconds: float
) -> dict[str, Any]:
    """What holds, as sentences, and what does not."""
    wrong = list(tally.problems)
    if at_end["kv_used"]:
        wrong.append(f"{at_end['kv_used']} KV blocks are not free at the end")
    for name, before in idle["processes"].items():
        after = at_end["processes"].get(name)
        if after is None:
            wrong.append(f"{name} is gone")
            continue
        wrong += [
            f"{name} has {after[what]} {what}, {before[what]} before"
            for what, spare in (("threads", 4), ("fds", 4))
            if after[what] > before[what] + spare
        ]
    early, late = (
        [s for s in samples if first * seconds <= s["at_s"] <= last * seconds] for first, last in (EARLY, LATE)
    )
    growth = {}
    for name in idle["processes"]:
        ends = [[s["processes"][name]["own"] for s in part if name in s["processes"]] for part in (early, late)]
        if all(ends):
            growth[name] = round(median(ends[1]) - median(ends[0]), 2)
    whole = sum(process["own"] for process in idle["processes"].values())
    if seconds >= 300 and sum(growth.values()) > GROWTH * whole:
        wrong.append(f"memory grows by {sum(growth.values()):.1f} of {whole:.0f} MB: {growth}")
    return {
        "holds": not wrong,
        "wrong": dict(Counter(wrong).most_common(50)),
        "seconds": seconds,
        "requests": dict(tally.ended),
        "tokens": tally.tokens,
        "kv_used_at_most": max(s["kv_used"] for s in samples),
        "kv_used_at_end": at_end["kv_used"],
        "memory_mb": round(whole, 1),
        "memory_growth_mb": growth,
        "requests_between": late[-1]["requests"] - early[0]["requests"] if early and late else 0,
        "idle_before": idle,
        "idle_after": at_end,
        "samples": samples,
    }


def draw(report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    samples, names = report["samples"], list(report["idle_before"]["processes"])
    times = [s["at_s"] / 60 for s in samples]
    figure, axes = plt.subplots(2, 2, figsize=(12, 8))
    for axis, what in zip(axes.flat, ("own", "fds", "threads"), strict=False):
        for name in names:
            values = [s["processes"].get(name, {}).get(what) for s in samples]
            axis.plot(times, values, label=name)
        axis.set_title({"own": "memory without mapped files, MB", "fds": "file descriptors"}.get(what, what))
    axes[0, 0].legend(fontsize=7)
    axes[1, 1].plot(times, [s["kv_used"] for s in samples])
    axes[1, 1].set_title(f"KV blocks used of {report['idle_before']['kv_max']}")
    for axis in axes.flat:
        axis.set_xlabel("minutes")
        axis.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
