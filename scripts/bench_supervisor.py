"""What the supervisor of a TensorRT build costs: the same stand-in build bare under mpirun, and under trtbuild.

    python scripts/bench_supervisor.py [--seconds 20] [--ranks 2] [--times 3] [--gate PERCENT]

Bare is `mpirun -n RANKS trtllm-build ...`; trtbuild runs the same line (mode command) and its own ranks (in-process),
with log watching, hang detection, hashes and checks. Prints the median of each and what trtbuild adds. Of `plan`, the
part before anything starts, the time is shown apart: it reads and checks the checkpoint, which bare does not.
--gate (2 without a number): exit code 10 where trtbuild adds more to either.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.tiny import make_llama  # noqa: E402
from tests.trt import SITE, fake_environment  # noqa: E402
from trtbuild.engine.options import BuildOptions, LaunchOptions  # noqa: E402
from trtbuild.engine.tensorrt.build import build_config_of, build_engine, look, prepare, prepare_job  # noqa: E402
from trtbuild.engine.tensorrt.ranks import Workplace  # noqa: E402
from trtbuild.pipeline import make_checkpoint, plan_engine  # noqa: E402
from trtbuild.spec import ConvertOptions  # noqa: E402

LIMITS = BuildOptions(8, 128, 512)
REGRESSION = 10  # the exit code of `trtbuild bench --compare` for the same


def seconds_of(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--gate", nargs="?", type=float, const=2.0, metavar="PERCENT")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trtbuild-bench-") as temporary:
        scratch = Path(temporary)
        os.environ.update(fake_environment(scratch / "cache"))
        os.environ |= {"TRTBUILD_FAKE_SECONDS": str(chosen.seconds), "TRTBUILD_FAKE_GPUS": str(chosen.ranks)}
        sys.path.insert(0, str(SITE))
        model = make_llama(scratch / "model")
        options = ConvertOptions(chosen.ranks, 1, "float16", target="tensorrt")
        checkpoint = make_checkpoint(str(model), scratch / "checkpoint", options)
        config = json.loads((checkpoint / "config.json").read_text())

        def prepared(mode: str):  # type: ignore[no-untyped-def]
            launch = LaunchOptions(mode="command" if mode == "command" else "in-process")
            return prepare(config, LIMITS, launch, look(os.environ), os.environ)

        def supervised(mode: str, out: Path) -> None:
            out.mkdir()
            build_engine(prepared(mode), checkpoint, out, identity={})

        def bare(mode: str, out: Path) -> None:
            place = Workplace(out)
            place.open("bare", keep=False)
            made = prepared(mode)
            job = prepare_job(made, checkpoint, place, range(chosen.ranks), os.environ)
            place.build_config.write_text(json.dumps(build_config_of(made, place)))
            if mode == "in-process":
                from trtbuild.engine.tensorrt.build import write_inputs

                write_inputs(made, checkpoint, place, job)
            shell = job.argv.index("/bin/sh")  # -c SCRIPT LOGS TICKS SECONDS: who writes the logs is not bare
            argv = [*job.argv[:shell], *job.argv[shell + 6 :]]
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        planned = seconds_of(
            lambda: plan_engine(str(checkpoint), ConvertOptions(target="tensorrt"), LIMITS, LaunchOptions())
        )
        print(f"plan: {planned:.3f} s")
        failed = []
        for mode in ("command", "in-process"):
            times: dict[str, list[float]] = {"bare": [], "trtbuild": []}
            for number in range(chosen.times):
                for name, run in (("bare", bare), ("trtbuild", supervised)):
                    out = scratch / f"{mode}{name}{number}"
                    if name == "bare":
                        out.mkdir()
                    times[name].append(seconds_of(lambda run=run, mode=mode, out=out: run(mode, out)))
            low, high = (statistics.median(times[name]) for name in ("bare", "trtbuild"))
            added = (high / low - 1) * 100
            print(f"{mode}: bare {low:.2f} s, under trtbuild {high:.2f} s: {added:+.2f} %")
            if chosen.gate is not None and added > chosen.gate:
                failed.append(f"gate: {mode}: trtbuild adds {added:.2f} %, the limit is {chosen.gate:g}")
        if failed:
            print("\n".join(failed), file=sys.stderr)
            sys.exit(REGRESSION)


if __name__ == "__main__":
    main()
