"""InputStats and LinearGroups of a Llama, taken by hooks on transformers' own modules: nothing of trtbuild runs it."""

from __future__ import annotations

from pathlib import Path

import torch

from trtbuild.quantize.method import InputStats, LinearGroup

GROUPS = {
    "self_attn.q_proj": {"attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")},
    "self_attn.o_proj": {"attention.dense": ("self_attn.o_proj",)},
    "mlp.gate_proj": {"mlp.fc": ("mlp.gate_proj",), "mlp.gate": ("mlp.up_proj",)},
    "mlp.down_proj": {"mlp.proj": ("mlp.down_proj",)},
}
"""Module whose input is watched -> the fuse group's modules and their parts."""


def calibrate(source: Path, ids: torch.Tensor) -> dict[int, list[tuple[LinearGroup, InputStats]]]:
    """Layer -> its groups and their statistics; `ids` [samples, tokens], each sample a batch, float32."""
    found = watched(source, ids, fine=False)
    return {number: [(group, stats) for group, stats, _ in groups] for number, groups in found.items()}


def watched(
    source: Path, ids: torch.Tensor, *, fine: bool
) -> dict[int, list[tuple[LinearGroup, InputStats, torch.Tensor]]]:
    """As `calibrate`, with the inputs [tokens, in]; `fine`: these and the gram as the search of that name has them."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    seen: dict[tuple[int, str], list[torch.Tensor]] = {}
    layers = model.model.layers
    for number, layer in enumerate(layers):
        for name in GROUPS:
            key = (number, name)
            layer.get_submodule(name).register_forward_pre_hook(
                lambda _module, args, key=key: seen.setdefault(key, []).append(args[0].reshape(-1, args[0].shape[-1]))
            )
    with torch.no_grad():
        for sample in ids:
            model(sample.unsqueeze(0))
    found: dict[int, list[tuple[LinearGroup, InputStats, torch.Tensor]]] = {}
    for (number, name), batches in seen.items():
        tokens = torch.cat(batches)
        # A token beyond the median length of its batch counts by its length, not its square.
        lengths = [batch.norm(dim=1, keepdim=True) for batch in batches]
        even = torch.cat(
            [x * (size.median() / size).clamp(max=1).sqrt() for x, size in zip(batches, lengths, strict=True)]
        )
        met = even if fine else tokens
        stats = InputStats(
            tokens=len(tokens),
            amax=tokens.abs().amax(dim=0),
            abs_mean=torch.stack([batch.abs().mean(dim=0) for batch in batches]).mean(dim=0),
            gram=met.T @ met / len(met),
        )
        modules = {
            module: tuple(layers[number].get_submodule(part).weight.detach().float() for part in parts)
            for module, parts in GROUPS[name].items()
        }
        found.setdefault(number, []).append((LinearGroup(modules), stats, met))
    return found
