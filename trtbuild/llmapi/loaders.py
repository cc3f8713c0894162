"""Which loader takes which model and method, as facts of their sources; and what keeps a plan from being loaded. PURE.

Sources, read at the newest stored version:
- TensorRT-LLM tensorrt_llm/_torch/modules/linear.py (get_quant_method: FP8, FP8_PER_CHANNEL_PER_TOKEN, W4A16_AWQ,
  W4A8_AWQ; nothing for W8A8_SQ_PER_CHANNEL), modules/fused_moe/fused_moe_cutlass.py (experts: FP8; int4 in
  groups is W4A8 with scales of its own), models/modeling_*.py (architectures; modeling_phi3.py hands on weights alone),
  llmapi/llm_utils.py ("Pre-quantized checkpoint must have quant_algo").
- vLLM vllm/model_executor/layers/quantization/modelopt.py (QUANT_ALGOS, KV_CACHE_QUANT_ALGOS).
"""

from __future__ import annotations

from collections.abc import Sequence

from trtbuild.families.rules import Family
from trtbuild.layout import Axis
from trtbuild.mixed import Choices
from trtbuild.quantize.method import Method
from trtbuild.shard import rules_of
from trtbuild.spec import ConvertOptions, ModelSpec

TRTLLM, VLLM = "TensorRT-LLM (PyTorch backend)", "vLLM"

ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "LlamaForCausalLM": (TRTLLM, VLLM),
    "MistralForCausalLM": (TRTLLM, VLLM),
    "MixtralForCausalLM": (TRTLLM, VLLM),
    "Qwen2ForCausalLM": (TRTLLM, VLLM),
    "Qwen2MoeForCausalLM": (TRTLLM, VLLM),
    "Qwen3ForCausalLM": (TRTLLM, VLLM),
    "Qwen3MoeForCausalLM": (TRTLLM, VLLM),
    "GemmaForCausalLM": (VLLM,),
    "Gemma2ForCausalLM": (VLLM,),
    "Gemma3ForCausalLM": (TRTLLM, VLLM),
    "Phi3ForCausalLM": (VLLM,),
}
"""Hugging Face architecture -> loaders that read ModelOpt's form of it."""
METHODS: dict[str, tuple[str, ...]] = {
    "none": (TRTLLM, VLLM),
    "fp8": (TRTLLM, VLLM),
    "fp8_rowwise": (TRTLLM, VLLM),
    "int4_awq": (TRTLLM,),
    "w4a8_awq": (TRTLLM,),
}
"""Method -> loaders that have kernels for it."""
EXPERT_METHODS = ("none", "fp8")
"""Methods that both loaders have for mixtures of experts in this form."""
_REFUSED = {
    "int8_sq": "neither TensorRT-LLM's PyTorch backend nor vLLM's ModelOpt loader has W8A8_SQ_PER_CHANNEL",
    "int8_sq_token": "neither TensorRT-LLM's PyTorch backend nor vLLM's ModelOpt loader has the plugin's form of it",
    "int8": "weight-only int8 is quantized by TensorRT-LLM's engine build, and ModelOpt's layout has no form of it",
    "int4": "weight-only int4 is quantized by TensorRT-LLM's engine build, and ModelOpt's layout has no form of it",
}
_MULTIPLE = {"fp8": 16, "fp8_rowwise": 16, "int4_awq": 64, "w4a8_awq": 64}
"""Both dims of a linear must be multiples: torch._scaled_mm and cuBLASLt fp8; the mixed-gemm layout of int4."""
_WORKS = "fp8 works with both loaders, int4_awq and w4a8_awq with TensorRT-LLM's"


def loaders_of(architecture: str, methods: Sequence[Method]) -> tuple[str, ...]:
    """Who loads a model with these methods."""
    found = ARCHITECTURES.get(architecture, ())
    return tuple(name for name in found if all(name in METHODS.get(method.name, ()) for method in methods))


def loader_problems(
    architecture: str, family: Family, spec: ModelSpec, options: ConvertOptions, dtype: str, choices: Choices
) -> list[str]:
    """All that keeps every loader from reading the checkpoint, with what works instead."""
    methods = {choice.method.name: choice.method for choice in choices.values()}
    found = _option_problems(options)
    if architecture not in ARCHITECTURES:
        found.append(f"--target llmapi is not confirmed for {architecture}; it is for {', '.join(ARCHITECTURES)}")
    for name in methods:
        if name not in METHODS:
            why = _REFUSED.get(name, f"no loader has {name}")
            found.append(f"--target llmapi has no {name}: {why}; {_WORKS}")
        elif spec.num_experts and name not in EXPERT_METHODS and name != "fp8_rowwise":
            found.append(f"no loader takes {name} experts in this form; fp8 works")
    if found:
        return found
    quantized = [method for method in methods.values() if method.fields]
    if len(quantized) > 1:
        names = " and ".join(method.name for method in quantized)
        found.append(f"--target llmapi has one method beside plain linears, not {names}")
    if not loaders_of(architecture, list(methods.values())):
        who = " and ".join(ARCHITECTURES[architecture])
        found.append(f"{architecture} is loaded by {who} only, which has no {' or '.join(methods)}; fp8 works")
    for method in quantized:
        found += _method_problems(method, family, spec, dtype)
    if options.kv_cache == "fp8" and not quantized:
        found.append(
            "an fp8 KV cache without quantized weights has no form that a loader takes (both demand a quant_algo): "
            "leave --kv-cache out, and serve the plain model with --kv-cache-dtype fp8 (vLLM) or --kv_cache_dtype fp8 "
            "(trtllm-serve), or take --quant fp8"
        )
    return found


def _option_problems(options: ConvertOptions) -> list[str]:
    found = []
    if options.quantize_lm_head:
        found.append("--target llmapi keeps lm_head plain: leave --quantize-lm-head out")
    if options.world_size > 1 or options.moe_tp_size is not None or options.moe_ep_size is not None:
        found.append(
            "--target llmapi writes the whole model, and the loader cuts it: leave --tp, --pp, --moe-tp and --moe-ep "
            "out, and give --tp_size to trtllm-serve or --tensor-parallel-size to vllm serve"
        )
    if options.use_parallel_embedding or options.use_embedding_sharing:
        found.append(
            "--use-parallel-embedding and --use-embedding-sharing are of TensorRT-LLM checkpoints; leave them out"
        )
    if options.kv_cache == "int8":
        found.append("--target llmapi has no int8 KV cache: ModelOpt's layout and its loaders have fp8")
    return found


def _method_problems(method: Method, family: Family, spec: ModelSpec, dtype: str) -> list[str]:
    found = []
    if dtype not in method.dtypes:
        found.append(f"{method.name} needs dtype {' or '.join(method.dtypes)}, not {dtype}")
    multiple = _MULTIPLE.get(method.name, 1)
    odd: dict[str, int] = {}
    for rule in rules_of(family, spec):
        cols = rule.sources[0].cols
        if not rule.target.startswith("transformer.layers.") or cols is None or Axis.EXPERTS in rule.sources[0].rows:
            continue
        for axis in (cols, *(axis for source in rule.sources for axis in source.rows)):
            if axis is not Axis.ONE and spec.size(axis) % multiple:
                odd[axis.value] = spec.size(axis)
    if odd:
        said = ", ".join(f"{size} ({axis})" for axis, size in odd.items())
        found.append(
            f"{method.name} kernels of the loaders need both dims of a linear in multiples of {multiple}; {said}"
        )
    return found
