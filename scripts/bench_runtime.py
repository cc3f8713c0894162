#!/usr/bin/env python
"""The cpu runtime against transformers, in one run on one machine: decode tokens/s, first token, concurrency.

    python scripts/bench_runtime.py [--model DIR] [--runs 5] [--new-tokens 64] [--json]

Runs alternate between all contenders, so that a slow minute of the machine hits each of them; medians are printed, and
ratios of medians. The bound is what the memory allows: bytes of weights that one token reads, over the read bandwidth
measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from demo_model import demo_model

from trtbuild.engine.options import BuildOptions
from trtbuild.pipeline import make_engine
from trtbuild.runtime.generator import Generator
from trtbuild.runtime.info import RuntimeOptions
from trtbuild.runtime.request import Request
from trtbuild.spec import ConvertOptions

PROMPT = "The history of the printing press begins in"
ENGINES = {
    "float32": {"dtype": "float32"},
    "float16": {"dtype": "float16"},
    "int8 (float32 rest)": {"dtype": "float32", "quant": "int8"},
    "int8 (float16 rest)": {"dtype": "float16", "quant": "int8"},
    "int4 (float16 rest)": {"dtype": "float16", "quant": "int4"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = arguments.model or demo_model()
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(model, Path(scratch), arguments.runs, arguments.new_tokens)
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        show(figures)


def measure(model: Path, scratch: Path, runs: int, new_tokens: int) -> dict[str, dict[str, float]]:
    """Median figures of every contender, by name."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompt = tuple(AutoTokenizer.from_pretrained(model)(PROMPT).input_ids)
    hf = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    contenders: dict[str, Callable[[], dict[str, float]]] = {
        "transformers float32": lambda: hf_run(hf, prompt, new_tokens),
    }
    bytes_per_token: dict[str, int] = {}
    for name, options in ENGINES.items():
        engine = make_engine(str(model), scratch / name.replace(" ", "_"), ConvertOptions(**options), BuildOptions())
        generator = Generator(engine, RuntimeOptions(max_tokens_in_paged_kv_cache=16384))
        bytes_per_token[name] = weight_bytes(generator)
        contenders[name] = lambda g=generator: our_run(g, prompt, new_tokens)  # type: ignore[misc]
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    bandwidth = []
    for turn in range(runs + 1):
        bandwidth.append(read_bandwidth())
        for name, run in contenders.items():
            sample = run()
            if turn:  # the first turn warms up
                samples[name].append(sample)
        print(f"turn {turn} of {runs} done", file=sys.stderr)
    figures = {
        name: {key: statistics.median(s[key] for s in rows) for key in rows[0]} for name, rows in samples.items()
    }
    for name, count in bytes_per_token.items():
        figures[name]["bound_tokens_per_s"] = max(bandwidth) / count
    return figures


def hf_run(model: torch.nn.Module, prompt: tuple[int, ...], new_tokens: int) -> dict[str, float]:
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    model.generate(ids, max_new_tokens=1, **options)  # type: ignore[operator]
    start = time.perf_counter()
    model.generate(ids, max_new_tokens=new_tokens, min_new_tokens=new_tokens, **options)  # type: ignore[operator]
    one = new_tokens / (time.perf_counter() - start)
    start = time.perf_counter()
    model.generate(ids.repeat(8, 1), max_new_tokens=new_tokens // 2, min_new_tokens=new_tokens // 2, **options)  # type: ignore[operator]
    return {"one_stream": one, "eight_streams": 8 * (new_tokens // 2) / (time.perf_counter() - start)}


def our_run(generator: Generator, prompt: tuple[int, ...], new_tokens: int) -> dict[str, float]:
    start = time.perf_counter()
    generator.add(Request("one", prompt, new_tokens))
    generator.step()
    first = time.perf_counter() - start
    while generator.open_requests:
        generator.step()
    one = new_tokens / (time.perf_counter() - start)
    start = time.perf_counter()
    generator.generate([Request(str(i), prompt, new_tokens) for i in range(8)])
    eight = 8 * new_tokens / (time.perf_counter() - start)
    return {"one_stream": one, "eight_streams": eight, "first_token_ms": first * 1e3}


def weight_bytes(generator: Generator) -> int:
    """Bytes of weights that one decoded token reads: all but the embedding table."""
    weights = generator.model.weights
    return sum(w.numel() * w.element_size() for name, w in weights.items() if "vocab_embedding" not in name)


def read_bandwidth() -> float:
    """Bytes per second of summing 512 MB with all threads; the best of three."""
    data = torch.ones(1 << 27)
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        data.sum()
        best = max(best, data.numel() * 4 / (time.perf_counter() - start))
    return best


def show(figures: dict[str, dict[str, float]]) -> None:
    base = figures["transformers float32"]
    print(f"cores {len(os.sched_getaffinity(0))}, torch {torch.__version__}, numpy {np.__version__}")
    print(
        "| | one stream, tokens/s | x transformers | of the memory bound | 8 streams | x one stream | first token, ms |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, row in figures.items():
        bound = f"{row['one_stream'] / row['bound_tokens_per_s']:.0%}" if "bound_tokens_per_s" in row else "-"
        first = f"{row['first_token_ms']:.1f}" if "first_token_ms" in row else "-"
        print(
            f"| {name} | {row['one_stream']:.1f} | {row['one_stream'] / base['one_stream']:.2f} | {bound} "
            f"| {row['eight_streams']:.1f} | {row['eight_streams'] / row['one_stream']:.2f} | {first} |"
        )


if __name__ == "__main__":
    main()
