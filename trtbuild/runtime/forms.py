"""What a quantized weight looks like in an engine: one table from TensorRT-LLM's algorithms to forms. PURE.

`form_of` says how one module of a model is held; everything else (program, engine build, executors, the check at load)
follows from the `Form`. n outputs, k inputs, g inputs of a group. An engine holds for a linear X, beside its bias:

X.weight             int8 [n, k]; float8_e4m3fn [n, k]; or uint8 [n, k / 2]: int4 in the order of int4.py
X.per_channel_scale  float32 [n], or [n, k / g]; one scale for the whole tensor is written once for every output
X.zero               float32 [n, k / g]: weight = q * scale + zero
X.prequant           float32 [k]: inputs are multiplied by it
X.act_scale          float32 [1]: the step of the grid to which inputs are rounded

Stacked experts have one more dim in front of the first three; their inputs are prepared alike.
Source of algorithms and of the names below: checkpoint format 1.4 and 4 (tensorrt_llm/quantization/mode.py, layers.py).
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from trtbuild.errors import EngineError
from trtbuild.quantization import LAYERS, MIXED, layer_table, module_quantization

Config = Dict[str, Any]
Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Name -> dtype ("" where it is the model's) and shape."""


class Round(IntEnum):
    """How the inputs of a linear are rounded; the values are those of native/."""

    NONE = 0
    INT8_STATIC = 1
    INT8_TOKEN = 2  # the step is that of each token's greatest magnitude
    FP8_STATIC = 3
    FP8_TOKEN = 4


@dataclass(frozen=True)
class Form:
    """`dtype` of the weight in the engine: int8, uint8 (two int4) or float8_e4m3fn.

    `per`: what has a scale: a "row", a "group" of `group` inputs, or the "tensor". `plain`: the checkpoint holds plain
    weights and the engine build quantizes them. `experts`: whether stacked experts can have it.
    """

    algo: str
    dtype: str
    per: str = "row"
    group: int = 0
    zero: bool = False
    prequant: bool = False
    round: Round = Round.NONE
    plain: bool = False
    experts: bool = True

    @property
    def bits(self) -> int:
        return 4 if self.dtype == "uint8" else 8

    @property
    def prepares(self) -> bool:
        """Whether inputs are changed before the product."""
        return self.prequant or self.round is not Round.NONE

    @property
    def own_input(self) -> bool:
        """Whether the change comes from numbers of this linear, so that others with the same input differ."""
        return self.prequant or self.own_round

    @property
    def own_round(self) -> bool:
        """Whether the step of the inputs' grid is a number of this linear."""
        return self.round in (Round.INT8_STATIC, Round.FP8_STATIC)


FP8 = "float8_e4m3fn"
SQ_TOKEN = "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"
_SMOOTHED = ("dense", "proj")  # the inputs of the others were smoothed by the norm before them
FORMS: dict[str, Form] = {
    form.algo: form
    for form in (
        Form("W8A16", "int8", plain=True),
        Form("W4A16", "uint8", plain=True),
        Form("W4A16_AWQ", "uint8", "group", prequant=True),
        # int4 in the checkpoint, but the product is one of fp8 numbers, and those the engine holds.
        Form("W4A8_AWQ", FP8, "tensor", prequant=True, round=Round.FP8_STATIC),
        Form("W4A16_GPTQ", "uint8", "group", zero=True, experts=False),
        Form("W8A16_GPTQ", "int8", "group", zero=True, experts=False),
        Form("FP8", FP8, "tensor", round=Round.FP8_STATIC),
        Form("FP8_PER_CHANNEL_PER_TOKEN", FP8, round=Round.FP8_TOKEN, experts=False),
        Form("W8A8_SQ_PER_CHANNEL", "int8", prequant=True, round=Round.INT8_STATIC),
        Form(SQ_TOKEN, "int8", round=Round.INT8_TOKEN, experts=False),
    )
}
KV_ROUND = {"INT8": Round.INT8_STATIC, "FP8": Round.FP8_STATIC}
_SCALED = {"W4A16_AWQ": "pre_quant_scale", "W4A16_GPTQ": "has_zero_point", "W8A16_GPTQ": "has_zero_point"}
"""Fields of the config that say whether tensors of a form are there."""

_PLAIN_HEAD = ("W8A16", "W4A16", "FP8_PER_CHANNEL_PER_TOKEN", SQ_TOKEN)
"""Algorithms under which lm_head stays as it is, whatever exclude_modules says."""


def form_of(config: Config, module: str) -> Form | None:
    """The form of a module ("lm_head", "transformer.layers.3.mlp.fc": number in the whole model); None for plain.

    `config` is as `quantization.module_quantization` takes it, and without `config_problems`.
    """
    quantization = module_quantization(config, module)
    if quantization["quant_algo"] is None and LAYERS in config:
        # The experts of a layer are one module of TensorRT-LLM, without names for their two linears.
        quantization = module_quantization(config, module.rpartition(".")[0])
    form = FORMS.get(quantization["quant_algo"] or "")
    if form is None or (module == "lm_head" and form.algo in _PLAIN_HEAD) or _by_recipe(config, quantization, module):
        return None
    if form.per == "group":
        form = replace(form, group=int(quantization["group_size"] or 128))
    if form.algo == "W4A16_AWQ":
        form = replace(form, prequant=bool(quantization["pre_quant_scale"]))
    if form.algo == SQ_TOKEN:
        form = replace(form, prequant=module.endswith(_SMOOTHED))
    return form


def config_problems(config: Config) -> list[str]:
    """What the cpu runtime cannot execute of a config's quantization, each with what it can."""
    quantization = config.get("quantization") or {}
    algo, kv = quantization.get("quant_algo"), quantization.get("kv_cache_quant_algo")
    found = _problems(quantization, "quantization.") if algo != MIXED else []
    if kv not in (None, *KV_ROUND):
        found.append(f"quantization.kv_cache_quant_algo {kv!r} (supported: {', '.join(KV_ROUND)})")
    if algo == MIXED:
        layers = layer_table(config)
        if not layers:
            found.append(f"quantization.quant_algo {MIXED} without {LAYERS} in quant_cfg.json")
        by_layer = (problem for layer in layers.values() for problem in _problems(layer, "quant_cfg.json: "))
        found += dict.fromkeys(by_layer)
    return found


def layout_sm(config: Config) -> int:
    """The compute capability whose weight layout a checkpoint's finished tensors have.

    Raises:
        EngineError: the checkpoint does not say.
    """
    sm = config.get("trtbuild_sm")
    if not isinstance(sm, int):
        raise EngineError(
            "the checkpoint holds weights in the layout of one GPU generation, and does not say of which",
            hint='Add "trtbuild_sm" to its config.json: the compute capability that it was converted for, as a whole '
            "number (80 for A100, 86 for A10, 89 for L4 and L40, 90 for H100).",
        )
    return sm


def engine_tensors(name: str, shape: tuple[int, ...], form: Form | None) -> Tensors:
    """What an engine holds for the weight `name` ("X.weight"), [.., n, k], of a form."""
    if form is None:
        return {name: ("", shape)}
    *lead, n, k = shape
    base = name.removesuffix("weight")
    per_row = (*lead, n)
    scales = (*per_row, k // form.group) if form.group else per_row
    tensors: Tensors = {
        name: (form.dtype, (*per_row, k // 2 if form.bits == 4 else k)),
        f"{base}per_channel_scale": ("float32", scales),
    }
    if form.zero:
        tensors[f"{base}zero"] = ("float32", scales)
    if form.prequant:
        tensors[f"{base}prequant"] = ("float32", (k,))
    if form.own_round:
        tensors[f"{base}act_scale"] = ("float32", (1,))
    return tensors


def _by_recipe(config: Config, quantization: Config, module: str) -> bool:
    """Whether FP8 rowwise leaves a module plain by `use_meta_recipe` (checkpoint format 4.7)."""
    if not quantization.get("use_meta_recipe"):
        return False
    ends = (f"transformer.layers.{layer}." for layer in (0, config["num_hidden_layers"] - 1))
    return ".attention." in module or module.startswith(tuple(ends))


def _problems(quantization: Config, at: str) -> list[str]:
    """Of a whole config's `quantization`, or of one layer's."""
    algo, found = quantization.get("quant_algo"), []
    if algo not in (None, "NO_QUANT", *FORMS):
        why = ", which only TensorRT's plugins compute" if str(algo).endswith("_PLUGIN") else ""
        found.append(f"{at}quant_algo {algo!r}{why} (supported: {', '.join(FORMS)}, {MIXED})")
    wanted = _SCALED.get(str(algo))
    for field in ("pre_quant_scale", "has_zero_point"):
        if algo in FORMS and quantization.get(field) and field != wanted and algo != "W4A8_AWQ":
            found.append(f"{at}{field} true with {algo}")
    if wanted == "has_zero_point" and not quantization.get(wanted):
        found.append(f"{at}has_zero_point false with {algo}")
    group = quantization.get("group_size")
    if algo in FORMS and FORMS[algo].per == "group" and group is not None and (group < 2 or group % 2):
        found.append(f"{at}group_size {group} with {algo} (supported: even ones)")
    if quantization.get("clamp_val") is not None:
        found.append(f"{at}clamp_val {quantization['clamp_val']} (supported: None)")
    return found
