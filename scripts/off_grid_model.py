"""Make a model equal to the demo model whose weights lie on no 4-bit grid: the honest ground for 4-bit quantizers.

    python scripts/off_grid_model.py [--out DIR] [--seed 0]

Prints the folder's path on stdout. The demo model's weights come from a 4-bit file, so a 4-bit quantizer may find that
grid again and look better than it is. Here every RMSNorm gain of a layer is folded into the linears that read it, and
the channel pairs v/o and up/down are multiplied by random factors in [1/2, 2] that cancel. The function is the same up
to rounding, which is checked. (The last norm stays: only the head, which is not quantized, reads it.) Works for every
Llama-shaped folder with one safetensors file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from demo_model import demo_model

if TYPE_CHECKING:
    import torch

READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
"""Norm -> linears that read it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder to make; default: beside the demo model")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(off_grid_model(arguments.out, arguments.seed))


def off_grid_model(out: Path | None = None, seed: int = 0) -> Path:
    """The folder `out`, by default beside the demo model's, which is made where it is missing."""
    source = demo_model()
    return made(source, Path(os.path.abspath(out or source.with_name(f"{source.name}-off-grid-{seed}"))), seed)


def made(source: Path, out: Path, seed: int = 0) -> Path:
    """The folder `out`, written from `source` where it is missing."""
    if (out / "model.safetensors").is_file():
        return out
    from safetensors.torch import load_file, save_file

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temp:
        folder = Path(temp) / "model"
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        config = json.loads((source / "config.json").read_text())
        weights = load_file(source / "model.safetensors")
        save_file(off_grid(weights, config, seed), folder / "model.safetensors", metadata={"format": "pt"})
        difference = largest_difference(source, folder)
        print(f"off-grid model: logits differ by {difference:.1e} at most, of their largest", file=sys.stderr)
        if difference > 1e-4:
            sys.exit(f"error: the changed model is another function: its logits differ by {difference:.1e}")
        folder.rename(out)
    return out


def off_grid(weights: dict[str, torch.Tensor], config: dict[str, int], seed: int) -> dict[str, torch.Tensor]:
    """New weights of the same function; `weights` as transformers names them, float32."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    found = {name: weight.clone() for name, weight in weights.items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for norm, readers in READERS.items():
            gain = found[f"{at}{norm}.weight"]
            for reader in readers:
                found[f"{at}{reader}.weight"] *= gain
            found[f"{at}{norm}.weight"] = torch.ones_like(gain)
        v, o = f"{at}self_attn.v_proj.weight", f"{at}self_attn.o_proj.weight"
        factor = _factors(found[v].shape[0], generator)
        found[v] *= factor.unsqueeze(1)
        # The query heads of a group read the same value head, one after the other.
        found[o] /= factor.reshape(kv_heads, -1).repeat_interleave(heads // kv_heads, dim=0).flatten()
        up, down = f"{at}mlp.up_proj.weight", f"{at}mlp.down_proj.weight"
        factor = _factors(found[up].shape[0], generator)
        found[up] *= factor.unsqueeze(1)
        found[down] /= factor
    return found


def _factors(count: int, generator: torch.Generator) -> torch.Tensor:
    """Random factors, even in the logarithm from 1/2 to 2."""
    import torch

    return torch.exp2(2 * torch.rand(count, generator=generator) - 1)


def largest_difference(source: Path, changed: Path) -> float:
    """Greatest difference of logits over 64 tokens, relative to the greatest logit."""
    import torch
    from transformers import AutoModelForCausalLM

    found = []
    for folder in (source, changed):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        ids = torch.randint(0, model.config.vocab_size, (1, 64), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            found.append(model(ids).logits)
    return float((found[0] - found[1]).abs().max() / found[0].abs().max())


if __name__ == "__main__":
    main()
