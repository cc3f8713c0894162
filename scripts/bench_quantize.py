#!/usr/bin/env python
"""Calibration and int4_awq quantization beside NVIDIA ModelOpt's: wall time, CPU time and anonymous memory.

    python scripts/bench_quantize.py [--modelopt-python PYTHON] [--samples 16] [--length 256] [--json]

Both quantize the demo model in float32 from the same token ids, on the same cores, one after the other, as whole
processes that start from the model folder and end with a TensorRT-LLM checkpoint on disk. `--modelopt-python` is the
Python of an environment that `modelopt_worker.py` describes; without it only our side runs. The last row is a made-up
Llama of 1.1 billion parameters in bfloat16 (`--large-layers 0` leaves it out, fewer layers make a smaller one). RssAnon
is sampled from /proc; page cache, which the kernel can take back, is not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from bench_convert import CACHE, made, timed
from demo_model import demo_model

GROUP = "64"  # the demo model's 576 inputs are no multiple of 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="default: the demo model")
    parser.add_argument("--modelopt-python", type=Path)
    parser.add_argument("--method", default="int4_awq", choices=["int4_awq", "int8_sq", "fp8"])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--large-layers", type=int, default=22)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(arguments, Path(scratch))
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        show(figures)


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, dict[str, float]]:
    """Figures of every contender, by name."""
    model = arguments.model or demo_model()
    group = ["--group-size", GROUP] if arguments.method == "int4_awq" else []
    figures = {"trtbuild": ours(arguments, model, scratch / "ours", group)}
    if arguments.modelopt_python:
        ids = calibration_ids(model, arguments.samples, arguments.length)
        np.save(scratch / "ids.npy", ids)
        worker = [str(arguments.modelopt_python), str(Path(__file__).with_name("modelopt_worker.py")), str(model)]
        options = ["--ids", str(scratch / "ids.npy"), "--method", arguments.method, "--out", str(scratch / "theirs")]
        figures["ModelOpt"] = timed([*worker, *options, *group])
    if arguments.large_layers:
        large = made(CACHE / f"llama-{arguments.large_layers}", arguments.large_layers)
        linked = with_tokenizer(large, scratch / "large")
        wide = ["--group-size", "128"] if arguments.method == "int4_awq" else []
        figures["trtbuild, 1.1B parameters"] = ours(arguments, linked, scratch / "out-large", wide)
    return figures


def calibration_ids(model: Path, samples: int, length: int) -> np.ndarray:
    """The token ids that `trtbuild checkpoint` calibrates on, int64 [samples, length]."""
    from trtbuild.calibrate.text import read_samples
    from trtbuild.spec import CalibrationOptions

    options = CalibrationOptions(samples=samples, length=length)
    return np.array(read_samples(model, options, gram=True, max_length=0, vocab_size=1 << 30).ids, np.int64)


def with_tokenizer(model: Path, folder: Path) -> Path:
    """A folder of links to the made-up model, with a tokenizer whose ids it has: one token for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).symlink_to(path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def ours(arguments: argparse.Namespace, model: Path, out: Path, options: list[str]) -> dict[str, float]:
    program = Path(sys.executable).with_name("trtbuild")
    command = [
        str(program),
        "checkpoint",
        str(model),
        "-o",
        str(out),
        "--quant",
        arguments.method,
        "--dtype",
        "float16",
    ]
    sizes = ["--calib-samples", str(arguments.samples), "--calib-length", str(arguments.length)]
    found = timed([*command, *sizes, *options])
    shutil.rmtree(out)
    return found


def show(figures: dict[str, dict[str, float]]) -> None:
    print(f"cores {len(os.sched_getaffinity(0))}")
    print("| | wall, s | CPU, s | peak RssAnon, MB |")
    print("|---|---|---|---|")
    for name, row in figures.items():
        print(f"| {name} | {row['wall_s']:.1f} | {row['cpu_s']:.1f} | {row['rss_anon_mb']:.0f} |")
    if "ModelOpt" in figures:
        us, them = figures["trtbuild"], figures["ModelOpt"]
        ratios = {key: them[key] / us[key] for key in us}
        print(f"\nModelOpt / trtbuild: wall {ratios['wall_s']:.1f}, CPU {ratios['cpu_s']:.1f}, "
              f"memory {ratios['rss_anon_mb']:.2f} (wanted: wall 3 or more, memory 3 or more)")  # fmt: skip


if __name__ == "__main__":
    main()
