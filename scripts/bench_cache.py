#!/usr/bin/env python
"""A hit of the artefact cache beside the build that filled it: the whole process of `trtbuild checkpoint` and `engine`.

    python scripts/bench_cache.py [MODEL] [--runs 5] [--quant int8] [--json] [--gate SECONDS]

MODEL: a folder, by default the demo model. The cache and all outputs are in a temporary place. The first build hashes
the model and builds; the hits are the same command into another directory. --gate (1 without a number): exit code 10
where the median hit of a stage takes longer.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DEMO = Path("~/.cache/trtbuild/models/SmolLM2-135M-Instruct").expanduser()
REGRESSION = 10  # the exit code of `trtbuild bench --compare` for the same
PROGRAM = "import sys; sys.argv[0] = 'trtbuild'; from trtbuild.cli.app import main; main()"


def timed(words: list[str], environment: dict[str, str]) -> tuple[float, float, str]:
    """(seconds, seconds of processor time, stderr) of a command that must succeed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stderr


def measure(stage: str, model: Path, quant: str, runs: int, place: Path) -> dict[str, float | str]:
    environment = {**os.environ, "TRTBUILD_CACHE": str(place / f"cache-{stage}")}
    environment.pop("TRTBUILD_NO_CACHE", None)
    words = [stage, str(model), "--quant", quant, "-o"]
    first, _, said = timed([*words, str(place / "first")], environment)
    assert "from the cache" not in said, said
    walls, busy = [], []
    for _ in range(runs):
        wall, processor, said = timed([*words, str(place / "hit")], environment)
        assert f"{stage} from the cache" in said, said
        walls.append(wall)
        busy.append(processor)
        shutil.rmtree(place / "hit")
    shutil.rmtree(place / "first")
    hit = statistics.median(walls)
    times = {
        "first_s": first,
        "hit_s": hit,
        "hit_worst_s": max(walls),
        "hit_cpu_s": statistics.median(busy),
        "hit_cpu_best_s": min(busy),
    }
    return {"stage": stage, **times, "ratio": first / hit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", type=Path, default=DEMO)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quant", default="int8")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--gate", nargs="?", type=float, const=1.0, metavar="SECONDS")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-cache-") as place:
        rows = [measure(s, asked.model, asked.quant, asked.runs, Path(place)) for s in ("checkpoint", "engine")]
    if asked.json:
        print(json.dumps(rows, indent=2))
    for row in [] if asked.json else rows:
        text = (
            "{stage}: first {first_s:.2f} s, hit {hit_s:.2f} s (worst {hit_worst_s:.2f}, processor {hit_cpu_s:.2f}), "
        )
        print((text + "{ratio:.0f} times as fast").format(**row))
    slow = [row for row in rows if asked.gate is not None and float(row["hit_s"]) > asked.gate]
    for row in slow:
        print(f"gate: a hit of {row['stage']} takes {row['hit_s']:.2f} s, the limit is {asked.gate:g}", file=sys.stderr)
    if slow:
        sys.exit(REGRESSION)


if __name__ == "__main__":
    main()
