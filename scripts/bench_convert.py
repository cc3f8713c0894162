#!/usr/bin/env python
"""`trtbuild checkpoint` against `cp` of the same bytes: wall time of the whole process, and its anonymous memory.

    python scripts/bench_convert.py [--runs 5] [--only CASE] [--layers 22] [--json]
    python scripts/bench_convert.py --remove

The model is made up once in the cache folder (TinyLlama's shape, 1.1 billion bfloat16 parameters in 5 files, 2.2 GB)
and lies in the page cache. cp, SHA-256 of its output, and conversion take turns, so that a slow minute of the machine
hits all; each output is removed before the next run. A file's SHA-256 is one chain, which no second core can speed up,
so hashing alone is the bound of a conversion to one rank. RssAnon is sampled from /proc; page cache, which the kernel
can take back, is not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from trtbuild.manifest import sha256_file

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtbuild" / "bench"
CASES: dict[str, tuple[str, ...]] = {
    "bf16, tp 1": (),
    "bf16, tp 2": ("--tp", "2"),
    "bf16, tp 2 x pp 2": ("--tp", "2", "--pp", "2"),
    "bf16 to fp16, tp 1": ("--dtype", "float16"),
    "bf16 to fp16, tp 2": ("--tp", "2", "--dtype", "float16"),
}
HIDDEN, INTER, VOCAB, HEADS, KV_HEADS, FILES = 2048, 5632, 32000, 32, 4, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--layers", type=int, default=22, help="another number of layers is another model size")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--remove", action="store_true", help="remove the cached model and leave")
    arguments = parser.parse_args()
    if arguments.remove:
        shutil.rmtree(CACHE, ignore_errors=True)
        return
    model = made(CACHE / f"llama-{arguments.layers}", arguments.layers)
    cases = {name: options for name, options in CASES.items() if (arguments.only or "") in name}
    figures = measure(model, cases, arguments.runs)
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        show(figures)


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama as transformers saves them."""
    kv = HIDDEN // HEADS * KV_HEADS
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "lm_head.weight": (VOCAB, HIDDEN),
    }
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name, rows in {"q": HIDDEN, "k": kv, "v": kv, "o": HIDDEN}.items():
            found[f"{at}self_attn.{name}_proj.weight"] = (rows, HIDDEN)
        found |= {f"{at}mlp.{name}_proj.weight": (INTER, HIDDEN) for name in ("gate", "up")}
        found[f"{at}mlp.down_proj.weight"] = (HIDDEN, INTER)
        found |= {f"{at}{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    return {**found, "model.norm.weight": (HIDDEN,)}


def made(folder: Path, layers: int) -> Path:
    """The made-up model, from the cache where it was made before."""
    if folder.is_dir():
        for path in folder.glob("*.safetensors"):  # into the page cache
            subprocess.run(["cat", str(path)], stdout=subprocess.DEVNULL, check=True)
        return folder
    print(f"making {folder}", file=sys.stderr)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    wanted = shapes(layers)
    each = sum(2 * int(np.prod(shape)) for shape in wanted.values()) // FILES + 1
    files: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name in sorted(wanted):
        if size >= each:
            files.append({})
            size = 0
        files[-1][name] = wanted[name]
        size += 2 * int(np.prod(wanted[name]))
    noise = np.random.default_rng(0).standard_normal(1 << 24, np.float32) * np.float32(0.02)
    values = (noise.view(np.uint32) >> 16).astype(np.uint16)
    weight_map = {}
    for number, tensors in enumerate(files):
        name = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        write_file(partial / name, tensors, values)
        weight_map |= dict.fromkeys(tensors, name)
    (partial / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
              "torch_dtype": "bfloat16", "hidden_size": HIDDEN, "intermediate_size": INTER,
              "num_hidden_layers": layers, "vocab_size": VOCAB,
              "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": 2048,
              "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False}  # fmt: skip
    (partial / "config.json").write_text(json.dumps(config))
    partial.rename(folder)
    return folder


def write_file(path: Path, tensors: dict[str, tuple[int, ...]], values: np.ndarray) -> None:
    """A safetensors file whose tensors take their values from `values` in turn."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 8)
    with path.open("wb") as sink:
        sink.write(len(text).to_bytes(8, "little") + text)
        for shape in tensors.values():
            left = int(np.prod(shape))
            while left:
                sink.write(values[:left].tobytes() if left < values.size else values.data)
                left -= min(left, values.size)


def measure(model: Path, cases: dict[str, tuple[str, ...]], runs: int) -> dict[str, dict[str, float]]:
    """Figures of every case; the first turn warms up."""
    out = model.parent / "out"
    source_bytes = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    samples: dict[str, list[tuple[float, ...]]] = {name: [] for name in cases}
    for turn in range(runs + 1):
        for name, options in cases.items():
            copy, digest = timed_copy(model, out)
            seconds, memory = timed_conversion(model, out, options)
            if turn:
                samples[name].append((copy, digest, seconds, memory))
    figures = {"interpreter": {"rss_anon_mb": interpreter_memory()}}
    for name, rows in samples.items():
        copies, digests, conversions, memories = zip(*rows, strict=True)
        figures[name] = {
            "gigabytes": source_bytes / 1e9,
            "cp_s": statistics.median(copies),
            "sha256_s": statistics.median(digests),
            "convert_s": statistics.median(conversions),
            "convert_min_s": min(conversions),
            "convert_max_s": max(conversions),
            "ratio": statistics.median(conversions) / statistics.median(copies),
            "rss_anon_mb": max(memories),
        }
    return figures


def timed_copy(model: Path, out: Path) -> tuple[float, float]:
    """Seconds of cp, and of hashing what it made."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    files = [str(path) for path in sorted(model.glob("*.safetensors"))]
    start = time.perf_counter()
    subprocess.run(["cp", *files, str(out)], check=True)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    for path in sorted(out.iterdir()):
        sha256_file(path)
    digest = time.perf_counter() - start
    shutil.rmtree(out)
    return seconds, digest


def timed_conversion(model: Path, out: Path, options: tuple[str, ...]) -> tuple[float, float]:
    """(seconds of the whole process, peak RssAnon in MB)."""
    program = Path(sys.executable).with_name("trtbuild")
    found = timed([str(program), "checkpoint", str(model), "-o", str(out), *options])
    shutil.rmtree(out)
    return found["wall_s"], found["rss_anon_mb"]


def timed(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds of a whole process, and its peak RssAnon in MB."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRTBUILD_NO_CACHE": "1"}
    before = os.times()
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        memory = 0.0
        while process.poll() is None:
            memory = max(memory, rss_anon(process.pid))
            time.sleep(0.005)
        seconds = time.perf_counter() - start
        if process.returncode:
            log.seek(0)
            raise SystemExit(log.read().decode(errors="replace")[-4000:])
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_s": seconds, "cpu_s": cpu, "rss_anon_mb": memory}


def rss_anon(pid: int) -> float:
    """Anonymous resident memory of a process, MB."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    line = next((line for line in status.splitlines() if line.startswith("RssAnon")), "RssAnon: 0 kB")
    return int(line.split()[1]) * 1024 / 1e6


def interpreter_memory() -> float:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"])
    time.sleep(0.5)
    memory = rss_anon(process.pid)
    process.wait()
    return memory


def show(figures: dict[str, dict[str, float]]) -> None:
    print(
        f"cores {len(os.sched_getaffinity(0))}, bare interpreter {figures['interpreter']['rss_anon_mb']:.0f} MB RssAnon"
    )
    print("| | cp, s | SHA-256, s | convert, s (min to max) | x cp | x both | peak RssAnon, MB |")
    print("|---|---|---|---|---|---|---|")
    for name, row in figures.items():
        if name == "interpreter":
            continue
        spread = f"{row['convert_s']:.2f} ({row['convert_min_s']:.2f} to {row['convert_max_s']:.2f})"
        both = row["convert_s"] / (row["cp_s"] + row["sha256_s"])
        print(
            f"| {name} | {row['cp_s']:.2f} | {row['sha256_s']:.2f} | {spread} | {row['ratio']:.2f} | {both:.2f} "
            f"| {row['rss_anon_mb']:.0f} |"
        )


if __name__ == "__main__":
    main()
