"""Speed that must not be lost unnoticed: a hit of the cache, and scripts that fail where a bar is missed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.tiny import ROOT

REGRESSION = 10


def script(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def test_a_hit_takes_less_than_a_second_of_processor_time(llama_folder: Path) -> None:
    """Of the whole process, which a busy machine stretches less than its time by the clock; a gate of 0 s is missed."""
    done = script("bench_cache.py", llama_folder, "--runs", 3, "--json", "--gate", 0)
    assert done.returncode == REGRESSION, done.stderr
    rows = json.loads(done.stdout)
    assert [row["stage"] for row in rows] == ["checkpoint", "engine"]
    assert all(row["hit_cpu_best_s"] < 1.0 for row in rows), rows
    assert "gate: a hit of engine takes" in done.stderr


def test_what_the_supervisor_adds_has_a_gate() -> None:
    words = ("--seconds", 0.2, "--ranks", 1, "--times", 1)
    missed = script("bench_supervisor.py", *words, "--gate", -100)
    assert missed.returncode == REGRESSION, missed.stderr
    assert "gate: command: trtbuild adds" in missed.stderr
    assert "gate: in-process: trtbuild adds" in missed.stderr
