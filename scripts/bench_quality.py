#!/usr/bin/env python
"""What quantization costs: perplexity on the bundled held-out text, relative to float32.

    python scripts/bench_quality.py [--model DIR | --off-grid] [--methods int8,int4_awq] [--samples 32] [--windows 16]
        [--kv-cache int8,fp8] [--checkpoint NAME=DIR ...] [--search modelopt] [--quant-layer '*.11.mlp.proj=none']
        [--ids IDS.npy] [--per-layer] [--json]

Nothing of the cpu runtime takes part: `trtbuild checkpoint` makes each checkpoint, whose linears are put into
transformers' float32 model as they dequantize by the format (inputs rounded where the method says so). `--checkpoint`
adds one-rank checkpoints that something else made of the same model, ModelOpt's for example (`modelopt_worker.py`).
`--save-ids FILE` writes the calibration token ids for it, and leaves. `--per-layer` puts in one layer at a time, and
one module of all layers, and shows where a method loses what it loses: the Kullback-Leibler divergence of the logits
from float32's, in thousandths of a nat a token.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_quantize import calibration_ids
from demo_model import demo_model
from off_grid_model import off_grid_model
from safetensors.torch import load_file

from trtbuild.spec import SEARCHES

ROOT = Path(__file__).resolve().parent.parent
HEAD = "transformer.layers."
LINEARS = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.dense": ("self_attn.o_proj",),
    "mlp.fc": ("mlp.gate_proj",),
    "mlp.gate": ("mlp.up_proj",),
    "mlp.proj": ("mlp.down_proj",),
}
"""Checkpoint module -> transformers' linears that lie stacked in it (Llama)."""
METHODS = ("int8", "int4", "int4_awq", "int8_sq", "int8_sq_token", "fp8", "fp8_rowwise")
SQ_TOKEN = "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"
NORMS = {"input_layernorm": "attention.qkv", "post_attention_layernorm": "mlp.fc"}
"""Transformers' norms of a layer -> the module that reads it."""
CONTEXT = 512
Fields = dict[str, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a Llama folder; default: the demo model")
    parser.add_argument("--off-grid", action="store_true", help="the off-grid twin of the demo model")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--kv-cache", default="int8,fp8")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16, help=f"of {CONTEXT} tokens")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--save-ids", type=Path)
    parser.add_argument("--quant-layer", action="append", default=[], metavar="PATTERN=METHOD")
    parser.add_argument("--ids", type=Path, help="calibrate on these token ids, int64 [samples, tokens] in .npy")
    parser.add_argument("--search", default=SEARCHES[0], choices=SEARCHES)
    parser.add_argument("--per-layer", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = arguments.model or (off_grid_model() if arguments.off_grid else demo_model())
    if arguments.save_ids:
        np.save(arguments.save_ids, calibration_ids(model, arguments.samples, arguments.length))
        return
    if arguments.per_layer:
        if "int8_sq_token" in arguments.methods.split(","):
            parser.error("--per-layer: say --methods without int8_sq_token, whose norms belong to several modules")
        shares = measure_layers(model, arguments)
        print(json.dumps(shares, indent=2) if arguments.json else layer_table(shares))
        return
    figures = measure(model, arguments)
    print(json.dumps(figures, indent=2) if arguments.json else table(figures))


def measure(model: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Perplexity by name."""
    windows = held_out(model, arguments.windows)
    figures = {"float32": perplexity(load(model), windows)}

    def add(name: str, quantized: torch.nn.Module) -> None:
        figures[name] = perplexity(quantized, windows)
        change = 100 * (figures[name] / figures["float32"] - 1)
        print(f"{name}: {figures[name]:.3f} ({change:+.2f} %)", file=sys.stderr, flush=True)

    for entry in arguments.checkpoint:
        name, _, folder = entry.partition("=")
        add(name, with_linears(load(model), Path(folder)))
    for method in filter(None, arguments.methods.split(",")):
        with tempfile.TemporaryDirectory() as scratch:
            add(method, with_linears(load(model), checkpoint(model, Path(scratch) / "out", arguments, method)))
    for kind in filter(None, arguments.kv_cache.split(",")):
        with tempfile.TemporaryDirectory() as scratch:
            made = checkpoint(model, Path(scratch) / "out", arguments, "none", kind)
            add(f"KV cache {kind}", with_cache(load(model), made, kind))
    return figures


def measure_layers(model: Path, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """KL divergence in thousandths of a nat a token, by method and what is quantized."""
    windows = held_out(model, arguments.windows)
    exact, changed = load(model), load(model)
    hidden = [last_hidden(exact, window) for window in windows]
    found: dict[str, dict[str, float]] = {}
    places = {f"layer {i}": (lambda layer, _, i=i: layer == i) for i in range(exact.config.num_hidden_layers)}
    places |= {f"all {name}": (lambda _, module, name=name: module == name) for name in LINEARS}
    places |= dict.fromkeys(("weights alone", "inputs alone", "everything"), lambda _layer, _module: True)
    for method in filter(None, arguments.methods.split(",")):
        with tempfile.TemporaryDirectory() as scratch:
            folder = checkpoint(model, Path(scratch) / "out", arguments, method)
            for place, only in places.items():
                hooks: list[Any] = []
                with_linears(changed, folder, only, place.partition(" alone")[0], hooks)
                found.setdefault(method, {})[place] = 1000 * divergence(exact, changed, windows, hidden)
                print(f"{method}, {place}: {found[method][place]:.2f}", file=sys.stderr, flush=True)
                changed.load_state_dict(exact.state_dict())
                for hook in hooks:
                    hook.remove()
    return found


@torch.no_grad()
def last_hidden(model: Any, window: torch.Tensor) -> torch.Tensor:
    return model.model(window.unsqueeze(0)).last_hidden_state[0, :-1]


@torch.no_grad()
def divergence(exact: Any, changed: Any, windows: torch.Tensor, hidden: list[torch.Tensor]) -> float:
    """Mean KL divergence over tokens; `hidden`: what enters the exact model's head for each window."""
    found = []
    for window, states in zip(windows, hidden, strict=True):
        wanted = exact.lm_head(states).log_softmax(-1)
        found.append((wanted.exp() * (wanted - changed.lm_head(last_hidden(changed, window)).log_softmax(-1))).sum(-1))
    return float(torch.cat(found).double().mean())


def layer_table(shares: dict[str, dict[str, float]]) -> str:
    lines = ["| | " + " | ".join(shares) + " |", "|---" * (1 + len(shares)) + "|"]
    for place in next(iter(shares.values())):
        lines.append(f"| {place} | " + " | ".join(f"{row[place]:.2f}" for row in shares.values()) + " |")
    return "\n".join(lines)


def checkpoint(model: Path, out: Path, arguments: argparse.Namespace, method: str, kv_cache: str | None = None) -> Path:
    """A one-rank checkpoint of ours in float16."""
    from trtbuild.quantize.methods import METHODS as DECLARED

    if arguments.ids and DECLARED[method].needs_calibration:
        return checkpoint_on(np.load(arguments.ids), model, out, method, arguments.search)
    command = [str(Path(sys.executable).with_name("trtbuild")), "checkpoint", "--no-cache", str(model), "-o", str(out)]
    command += ["--quant", method, "--dtype", "float16"]
    if DECLARED[method].group_sizes:
        command += ["--group-size", "64"]  # the demo model's 576 inputs are no multiple of 128
    if kv_cache:
        command += ["--kv-cache", kv_cache]
    else:
        command += [f"--quant-layer={entry}" for entry in arguments.quant_layer]
    if kv_cache or DECLARED[method].needs_calibration:
        command += ["--calib-samples", str(arguments.samples), "--calib-length", str(arguments.length)]
        command += ["--calib-search", arguments.search]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return out


def checkpoint_on(ids: np.ndarray, model: Path, out: Path, method: str, search: str) -> Path:
    """As `checkpoint`, from token ids as they are."""
    from trtbuild import pipeline
    from trtbuild.calibrate import text
    from trtbuild.spec import CalibrationOptions, ConvertOptions

    samples = text.Samples(tuple(map(tuple, ids.tolist())), {})
    text.read_samples = lambda *_rest, **_options: samples
    options = ConvertOptions(dtype="float16", quant=method, group_size=64)
    return pipeline.make_checkpoint(str(model), out, options, calibration=CalibrationOptions(search=search))


def load(model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa").eval()


def held_out(model: Path, windows: int) -> torch.Tensor:
    """Token ids [windows, CONTEXT] of the bundled text that no calibration has seen."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(model)((ROOT / "trtbuild" / "data" / "english.txt").read_text()).input_ids
    return torch.tensor(ids[: windows * CONTEXT]).reshape(windows, CONTEXT)


@torch.no_grad()
def perplexity(model: Any, windows: torch.Tensor) -> float:
    losses = []
    for window in windows:
        hidden = model.model(window.unsqueeze(0)).last_hidden_state[0, :-1]
        log_probs = model.lm_head(hidden).log_softmax(-1)
        losses.append(-log_probs.gather(1, window[1:].unsqueeze(1)).double())
    return float(torch.cat(losses).mean().exp())


def with_linears(
    model: Any,
    folder: Path,
    only: Callable[[int, str], bool] = lambda _layer, _module: True,
    what: str = "",
    hooks: list[Any] | None = None,
) -> Any:
    """The model, its linears (`only` these: layer, module) those of a checkpoint; notes its hooks.

    `what`: "weights" or "inputs" leave the other side as it is.
    """
    hooks = [] if hooks is None else hooks
    whole, table = quantization(folder)
    modules: dict[tuple[int, str], Fields] = {}
    tensors = load_file(folder / "rank0.safetensors")
    if whole["quant_algo"] == SQ_TOKEN and what != "inputs":  # its norms are divided by what its weights have more
        for layer, block in enumerate(model.model.layers):
            for norm in (norm for norm, module in NORMS.items() if only(layer, module)):
                stored = tensors[f"{HEAD}{layer}.{norm.replace('attention_', '')}.weight"]
                block.get_submodule(norm).weight = torch.nn.Parameter(stored.float())
    for name, tensor in tensors.items():
        if name.startswith(HEAD):
            layer, _, rest = name.removeprefix(HEAD).partition(".")
            module, _, suffix = rest.rpartition(".")
            if module in LINEARS and only(int(layer), module):
                modules.setdefault((int(layer), module), {})[suffix] = tensor
    for (layer, module), fields in modules.items():
        own = whole if table is None else table.get(f"{HEAD}{layer}.{module}", {})
        algo = own.get("quant_algo")
        weight = dequantized(fields, algo, own.get("group_size")) if algo else fields["weight"].float()
        p = fields.get("prequant_scaling_factor", torch.ones(1)).float()
        linears = [model.model.layers[layer].get_submodule(part) for part in LINEARS[module]]
        for linear, rows in zip(linears, weight.split([len(linear.weight) for linear in linears]), strict=True):
            if what != "inputs":
                linear.weight = torch.nn.Parameter(rows * p if what == "weights" else rows.clone())
            if what != "weights":
                scale = 1 / p if what == "inputs" else 1.0
                hook = lambda _module, args, f=fields, a=algo, s=scale: (rounded(args[0], f, a) * s,)  # noqa: E731
                hooks.append(linear.register_forward_pre_hook(hook))
    return model


def quantization(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What config.json says of all linears, and of a mixture what quant_cfg.json says of each."""
    whole = json.loads((folder / "config.json").read_text())["quantization"]
    if whole["quant_algo"] != "MIXED_PRECISION":
        return whole, None
    return whole, json.loads((folder / "quant_cfg.json").read_text())["quantized_layers"]


def dequantized(fields: Fields, algo: str, group: int | None) -> torch.Tensor:
    """Weights as the format gives them, before the pre-quant scale."""
    weight = fields["weight"].float()
    if algo in (
        "W8A16",
        "W4A16",
    ):  # plain on disk: the engine build quantizes, round half away, scale amax / 2^(bits-1)
        most = 128.0 if algo == "W8A16" else 8.0
        scale = (weight.abs().amax(dim=1) / most).clamp(min=1e-30).unsqueeze(1)
        return torch.trunc(weight / scale + 0.5 * weight.sign()).clamp(-most, most - 1) * scale.half().float()
    if "per_channel_scale" in fields:
        return weight * fields["per_channel_scale"].float().reshape(-1, 1)
    scale = fields["weights_scaling_factor"].float()
    if algo in ("W4A16_AWQ", "W4A8_AWQ"):  # two rows a byte, the even one in the low nibble
        packed = fields["weight"]
        weight = torch.stack(((packed << 4) >> 4, packed >> 4), dim=1).flatten(0, 1).float()
        return weight * scale.repeat_interleave(group or 128, dim=1)
    return weight * (scale.unsqueeze(1) if scale.dim() == 1 and scale.numel() > 1 else scale)


def rounded(x: torch.Tensor, fields: Fields, algo: str | None) -> torch.Tensor:
    """Inputs of a linear as the method's kernel sees them."""
    if "prequant_scaling_factor" in fields:
        x = x * fields["prequant_scaling_factor"].float()
    if "smoother" in fields:
        x = x / fields["smoother"][0]
    if algo == SQ_TOKEN:
        scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / 127
        return (x / scale).round() * scale
    scale = fields.get("activation_scaling_factor")
    if algo == "W8A8_SQ_PER_CHANNEL":
        return (x / scale).round().clamp(-128, 127) * scale
    if algo in ("FP8", "W4A8_AWQ"):
        return e4m3(x / scale) * scale
    if algo == "FP8_PER_CHANNEL_PER_TOKEN":
        scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / 448
        return e4m3(x / scale) * scale
    return x


def e4m3(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()


def with_cache(model: Any, folder: Path, kind: str) -> Any:
    """The model, its keys (after rotation) and values rounded as a quantized cache holds them."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    tensors = load_file(folder / "rank0.safetensors")

    def attend(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any, **options: Any) -> Any:
        scale = tensors[f"{HEAD}{module.layer_idx}.attention.kv_cache_scaling_factor"]
        if kind == "int8":
            k, v = ((x / scale).round().clamp(-128, 127) * scale for x in (k, v))
        else:
            k, v = (e4m3(x / scale) * scale for x in (k, v))
        return sdpa_attention_forward(module, q, k, v, *rest, **options)

    ALL_ATTENTION_FUNCTIONS.register("rounded_cache", attend)
    model.config._attn_implementation = "rounded_cache"
    return model


def table(figures: dict[str, float]) -> str:
    lines = ["| | perplexity | of float32 |", "|---|---|---|"]
    lines += [
        f"| {name} | {value:.3f} | {100 * (value / figures['float32'] - 1):+.2f} % |" for name, value in figures.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
