"""What a model is and what is asked of it: frozen and family-neutral. PURE."""

from __future__ import annotations

import math
from collections.abc import Mapping as Dict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trtbuild.layout import Axis

TARGETS: dict[str, str] = {
    "cpu": "the CPU runtime of trtbuild, with every rank as a process",
    "tensorrt": "TensorRT-LLM 1.2 engines, built by trtllm-build on a GPU host",
    "llmapi": "a quantized Hugging Face checkpoint for trtllm-serve (PyTorch backend) and vLLM",
}

AUTO = "auto"
"""`quant` of a command: the method that a quantized model has already, or none."""
SMS = (80, 86, 89, 90, 100, 120)
"""Compute capabilities of the GPUs in TensorRT-LLM 1.2's support matrix."""
_LAYOUTS = {100: 80, 120: 80}
"""Those whose int4 and int8 kernels, where they have any, read the layout of another: all but 90 share one."""
_SCALING_WITHOUT_FACTOR = ("su", "longrope", "llama3")

KV_CACHES: dict[str, str | None] = {"none": None, "int8": "INT8", "fp8": "FP8"}
"""Name on the command line -> kv_cache_quant_algo of config.json."""


@dataclass(frozen=True)
class ModelSpec:
    """A model in the terms of TensorRT-LLM, global sizes (never per rank).

    `config` holds the model's part of a checkpoint's config.json (checkpoint format 1.2 and 1.6): everything but
    dtypes, mapping and quantization. So a Hugging Face model and a ready checkpoint give the same kind of spec.
    """

    config: Dict[str, Any]
    source_dtype: str = "float16"

    @property
    def architecture(self) -> str:
        return str(self.config["architecture"])

    @property
    def hidden_size(self) -> int:
        return int(self.config["hidden_size"])

    @property
    def num_layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def num_heads(self) -> int:
        return int(self.config["num_attention_heads"])

    @property
    def num_kv_heads(self) -> int:
        return int(self.config.get("num_key_value_heads") or self.num_heads)

    @property
    def head_size(self) -> int:
        return int(self.config.get("head_size") or self.hidden_size // self.num_heads)

    @property
    def intermediate_size(self) -> int:
        return int(self.config.get("intermediate_size") or 4 * self.hidden_size)

    @property
    def vocab_size(self) -> int:
        return int(self.config["vocab_size"])

    @property
    def tied_embeddings(self) -> bool:
        return bool(self.config.get("tie_word_embeddings"))

    @property
    def num_experts(self) -> int:
        return int((self.config.get("moe") or {}).get("num_experts", 0))

    def holds(self, when: str) -> bool:
        """Whether every word of `when` holds: "a" a true config field, "a=1" one of that value, "!..." the contrary."""
        for word in when.split():
            name, _, value = word.lstrip("!").partition("=")
            found = self.config.get(name)
            if (str(found) == value if value else bool(found)) == word.startswith("!"):
                return False
        return True

    def axis(self, axis: Axis) -> tuple[int, int]:
        """(units, elements per unit) of an axis; a cut never divides a unit, which is a head for attention."""
        return self._axes[axis]

    @cached_property
    def _axes(self) -> dict[Axis, tuple[int, int]]:
        field = self.config.get
        return {
            Axis.HIDDEN: (self.hidden_size, 1),
            Axis.Q: (self.num_heads, self.head_size),
            Axis.KV: (self.num_kv_heads, self.head_size),
            Axis.INTER: (self.intermediate_size, 1),
            Axis.VOCAB: (self.vocab_size, 1),
            Axis.HEADS: (self.num_heads, 1),
            Axis.HEAD_SIZE: (self.head_size, 1),
            Axis.POSITIONS: (int(field("max_position_embeddings") or 0), 1),
            Axis.EXPERTS: (self.num_experts, 1),
            Axis.EXPERT_INTER: (int(field("moe_intermediate_size") or self.intermediate_size), 1),
            Axis.SHARED_INTER: (int(field("moe_shared_expert_intermediate_size") or 0), 1),
            Axis.BUCKETS: (int(field("num_buckets") or 0), 1),
            Axis.TYPES: (int(field("type_vocab_size") or 0), 1),
            Axis.LABELS: (int(field("num_labels") or 0), 1),
            Axis.ONE: (1, 1),
        }

    def size(self, axis: Axis) -> int:
        """Elements along an axis of the whole model."""
        units, unit = self.axis(axis)
        return units * unit


@dataclass(frozen=True)
class LayerMethod:
    """Linears whose path matches `pattern` (fnmatch, numbers of the whole model) are quantized by `method`.

    `group_size`: of a group-wise method, None for the one of all.
    """

    pattern: str
    method: str
    group_size: int | None = None


@dataclass(frozen=True)
class ConvertOptions:
    """What the user asks of a conversion. `dtype` "auto" follows upstream: float32 becomes float16.

    `moe_tp_size` x `moe_ep_size` = tp_size says how experts are shared; None leaves the other one to decide, and all
    of tp_size to cutting each expert where both are None. `group_size`: inputs that share a scale (group-wise methods).
    `kv_cache`: one of `KV_CACHES`. `sm`: the GPU that the checkpoint is for, None where none was named; what it cannot
    run is refused, and weights that are stored in a kernel's layout (GPTQ) have `layout_sm`'s.
    `quant_layers`: linears that have another method than `quant`; of several patterns that match, the last one counts.
    `quantize_lm_head`: lm_head as the linears of the layers, and patterns may name it; else it stays plain.
    """

    tp_size: int = 1
    pp_size: int = 1
    dtype: str = "auto"
    quant: str = "none"
    target: str = "cpu"
    use_parallel_embedding: bool = False
    embedding_sharding_dim: int = 0
    use_embedding_sharing: bool = False
    moe_tp_size: int | None = None
    moe_ep_size: int | None = None
    group_size: int = 128
    kv_cache: str = "none"
    sm: int | None = None
    quant_layers: tuple[LayerMethod, ...] = ()
    quantize_lm_head: bool = False

    @property
    def layout_sm(self) -> int:
        """The SM for whose kernels weights are laid out: where none is named, the one that most GPUs share."""
        return SMS[0] if self.sm is None else _LAYOUTS.get(self.sm, self.sm)

    @property
    def kv_cache_algo(self) -> str | None:
        """TensorRT-LLM's name; None for a cache in the model's dtype."""
        return KV_CACHES[self.kv_cache]

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size

    @property
    def moe_sizes(self) -> tuple[int, int]:
        """(moe_tp_size, moe_ep_size) as resolved; their product is tp_size where the plan found no problem."""
        if self.moe_ep_size is not None:
            return self.moe_tp_size or self.tp_size // self.moe_ep_size, self.moe_ep_size
        if self.moe_tp_size is not None:
            return self.moe_tp_size, self.tp_size // self.moe_tp_size
        return self.tp_size, 1


SEARCHES = ("fine", "modelopt", "compensate")
"""How a method looks for its scales: as well as it can, or for the numbers of NVIDIA ModelOpt's defaults."""


@dataclass(frozen=True)
class CalibrationOptions:
    """On which text a method that needs calibration watches the model.

    `text`: a .txt or .jsonl file or a folder of them, None for the bundled English. `samples` sequences of `length`
    tokens each, None for a number that suits the method; `seed` chooses them. `chat`: put the text through the model's
    chat template. `search`: one of SEARCHES.
    """

    text: Path | None = None
    samples: int | None = None
    length: int | None = None
    seed: int = 1234
    chat: bool = False
    search: str = SEARCHES[0]


CALIBRATION = CalibrationOptions()
"""What is done where nothing is said."""
CALIBRATION_LENGTH = 512


def calibration_samples(gram: bool) -> int:
    """Sequences by default; fewer for methods that search with second moments (`gram`: AWQ), as in ModelOpt."""
    return 32 if gram else 128


def resolved_dtype(spec: ModelSpec, options: ConvertOptions) -> str:
    """The dtype in which weights are written: the option, or upstream's rule for "auto"."""
    if options.dtype != "auto":
        return options.dtype
    return "float16" if spec.source_dtype == "float32" else spec.source_dtype


def deduced_seq_len(pretrained: Dict[str, Any]) -> int:
    """max_position_embeddings (2048 without) times the rotary scaling factor (engine-build 4.1)."""
    return math.ceil((pretrained.get("max_position_embeddings") or 2048) * rotary_factor(pretrained))


def rotary_factor(pretrained: Dict[str, Any]) -> float:
    """The factor by which rope scaling makes the context longer; 1 where it is in the positions already."""
    scaling = pretrained.get("rotary_scaling") or {}
    kind = scaling.get("type") or scaling.get("rope_type")
    return 1.0 if kind in _SCALING_WITHOUT_FACTOR else float(scaling.get("factor") or 1.0)
