"""Whether an engine, before it is built, could serve on the GPUs that are there: a prompt and answer of full length.

What `estimate` does for a plan and a board of the table, by a checkpoint's config.json and what nvidia-smi says. It
refuses only what cannot be: nvidia-smi's total is more than a process gets, and all that is free is taken for the KV
cache (engine-build 12.6). PURE.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trtbuild.layout import DTYPE_BYTES, DTYPES
from trtbuild.mapping import Mapping
from trtbuild.quantization import LAYERS
from trtbuild.quantize.methods import METHODS
from trtbuild.sizing.estimate import room_problems
from trtbuild.sizing.geometry import geometry_of
from trtbuild.sizing.memory import RankMemory, is_fused, memories_of, rope_bytes
from trtbuild.sizing.target import Limits
from trtbuild.spec import ModelSpec

_PACKED_BY_THE_BUILD = {"W8A16": 2, "W4A16": 4}
"""quant_algo -> how much smaller than its rank file a rank's weights may become, where that has them unquantized."""


def engine_room(
    pretrained: Dict[str, Any], weights: Sequence[int], built: Dict[str, Any], gpu: str, memory_bytes: int
) -> tuple[list[str], list[str]]:
    """(problems, warnings) of a decoder-only model on GPUs named `gpu` with `memory_bytes` each, both mostly empty.

    `pretrained`: config.json of its checkpoint. `weights`: bytes of each rank's weights in the engine. `built`: the
    build_config as TensorRT-LLM will save it. Nothing is said of engines whose weights or KV cache may lie elsewhere.
    """
    if built["kv_cache_type"] != "paged" or built["weight_streaming"]:
        return [], []
    limits = Limits(
        max_batch_size=built["max_batch_size"],
        max_num_tokens=built["max_num_tokens"],
        max_seq_len=built["max_seq_len"],
        tokens_per_block=built["plugin_config"]["tokens_per_block"],
    )
    ranks = _memories(pretrained, weights, limits)
    problems = room_problems(ranks, gpu, memory_bytes, limits.max_seq_len, 1, replace(limits, kv_fraction=1.0))
    usual = room_problems(ranks, gpu, memory_bytes, limits.max_seq_len, 1, limits)
    share = f"of what is free, the KV cache usually gets {limits.kv_fraction:.0%}: "
    return problems, [share + text for text in usual] if not problems else []


def file_weights(pretrained: Dict[str, Any], files: Sequence[int]) -> list[int]:
    """Bytes of weights in the engine, at least, by the sizes of a checkpoint's rank files."""
    algo = (pretrained.get("quantization") or {}).get("quant_algo") or ""
    return [size // _PACKED_BY_THE_BUILD.get(algo, 1) for size in files]


def _memories(pretrained: Dict[str, Any], weights: Sequence[int], limits: Limits) -> tuple[RankMemory, ...]:
    spec, layout = ModelSpec(pretrained), Mapping.of_config(pretrained["mapping"])
    quantization = pretrained.get("quantization") or {}
    geometry = geometry_of(spec)
    entries = [quantization, *(pretrained.get(LAYERS) or {}).values()]
    algos = {entry["quant_algo"] for entry in entries if entry.get("quant_algo")}
    ranks = [
        (layout.at(rank), len(layout.at(rank).layers(spec.num_layers)), size + rope_bytes(geometry))
        for rank, size in enumerate(weights)
    ]
    return memories_of(
        geometry,
        limits,
        ranks,
        element=DTYPE_BYTES[DTYPES[pretrained["dtype"]]],
        kv_cache_algo=quantization.get("kv_cache_quant_algo"),
        fused=is_fused(method for method in METHODS.values() if method.quant_algo in algos),
    )
