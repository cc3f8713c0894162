#!/usr/bin/env python
"""`trtbuild plan` of Llama-3.1-405B from its config.json and index alone: wall and processor time of the whole process.

    python scripts/bench_plan.py [--runs 5] [--json]

The folder is made up in a temporary place: config.json, and model.safetensors.index.json with the model's 1137 names.
`python -c pass` and `trtbuild --version` are timed in turn with it: what Python and the command line take of it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from trtbuild.checkpoint.config import read_specs
from trtbuild.sizing.described import described_index

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16384, "intermediate_size": 53248,
    "num_hidden_layers": 126, "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
SHARDS = 191
FP8 = ("--quant", "fp8", "--kv-cache", "fp8", "--gpu", "H100")
PLANS: dict[str, tuple[str, ...]] = {
    "plan --tp 8": ("--tp", "8"),
    "plan --tp 8 --pp 2": ("--tp", "8", "--pp", "2"),
    "plan --tp 8 --quant fp8 --kv-cache fp8 --gpu H100": ("--tp", "8", *FP8),
    "plan --tp 8 --quant fp8 --kv-cache fp8 --gpu H100 --json": ("--tp", "8", *FP8, "--json"),
    "plan --tp 8 --quant int4_awq": ("--tp", "8", "--quant", "int4_awq"),
    "plan --fit --gpu H100 --gpus 8": ("--fit", "--gpu", "H100", "--gpus", "8"),
}


def write_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    names = list(described_index(read_specs(CONFIG)))
    shards = {n: f"model-{1 + i * SHARDS // len(names):05d}-of-{SHARDS:05d}.safetensors" for i, n in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def seconds(*args: str) -> tuple[float, float]:
    """(wall, processor) time; the second is what a busy machine does not stretch much."""
    start, before = time.perf_counter(), processor()
    subprocess.run([sys.executable, *args], check=True, capture_output=True)
    return time.perf_counter() - start, processor() - before


def processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        write_model(Path(place))
        script = "from trtbuild.cli.app import main; import sys; sys.argv = ['trtbuild', *sys.argv[1:]]; main()"
        commands = {
            "python -c pass": ("-c", "pass"),
            "trtbuild --version": ("-c", script, "--version"),
            **{name: ("-c", script, "plan", place, *options) for name, options in PLANS.items()},
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(asked.runs):
            for name, command in commands.items():
                taken[name].append(seconds(*command))
    medians = {name: tuple(map(statistics.median, zip(*times, strict=True))) for name, times in taken.items()}
    if asked.json:
        print(json.dumps({"runs": asked.runs, "seconds": medians}, indent=2))
        return
    print("  wall  processor")
    for name, (wall, cpu) in medians.items():
        print(f"{wall:6.2f} s {cpu:6.2f} s  {name}")


if __name__ == "__main__":
    main()
