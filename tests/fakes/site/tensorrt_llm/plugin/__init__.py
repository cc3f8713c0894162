"""PluginConfig: fields, what each may be, and the checks of 1.2. Written from the description, by groups of fields."""

import copy
from typing import Any

_DTYPES = {"auto", "float16", "float32", "bfloat16", "int32", None}
_FIELDS: dict[str, tuple[Any, set[Any]]] = {
    # on with the model's dtype
    **{f"{n}_plugin": ("auto", _DTYPES) for n in ("bert_attention", "gpt_attention", "moe", "mamba_conv1d", "nccl")},
    # off, any dtype
    **{f"{n}_plugin": (None, _DTYPES) for n in ("lora", "fp8_rowwise_gemm", "qserve_gemm", "identity")},
    **{f"weight_only_{n}_plugin": (None, _DTYPES) for n in ("groupwise_quant_matmul", "quant_matmul")},
    **{f"{n}_plugin": (None, _DTYPES) for n in ("smooth_quant_gemm", "layernorm_quantization", "rmsnorm_quantization")},
    "gemm_plugin": (None, _DTYPES | {"fp8", "nvfp4"}),
    **{n: (None, {"fp8", None}) for n in ("gemm_swiglu_plugin", "low_latency_gemm_plugin")},
    "low_latency_gemm_swiglu_plugin": (None, {"fp8", None}),
    "gemm_allreduce_plugin": (None, {"float16", "bfloat16", None}),
    # switches that are on
    **{n: (True, {True, False}) for n in ("context_fmha", "remove_input_padding", "use_paged_context_fmha")},
    **{
        n: (True, {True, False})
        for n in ("use_fp8_context_fmha", "paged_state", "use_fused_mlp", "smooth_quant_plugins")
    },
    # switches that are off
    **{n: (False, {True, False}) for n in ("dora_plugin", "bert_context_fmha_fp32_acc", "fuse_fp4_quant")},
    **{n: (False, {True, False}) for n in ("multiple_profiles", "streamingllm", "norm_quant_fusion", "reduce_fusion")},
    **{n: (False, {True, False}) for n in ("user_buffer", "pp_reduce_scatter", "manage_weights")},
    **{n: (False, {True, False}) for n in ("quantize_per_token_plugin", "quantize_tensor_plugin")},
    "paged_kv_cache": (None, {True, False, None}),
}
_NO_OPTION = {
    *("qserve_gemm_plugin", "identity_plugin", "weight_only_groupwise_quant_matmul_plugin", "smooth_quant_plugins"),
    *("weight_only_quant_matmul_plugin", "smooth_quant_gemm_plugin", "layernorm_quantization_plugin"),
    *("rmsnorm_quantization_plugin", "quantize_per_token_plugin", "quantize_tensor_plugin", "manage_weights"),
    "paged_kv_cache",
}
_NOT_ON_SM_100 = (
    *("gemm_swiglu_plugin", "fp8_rowwise_gemm_plugin", "low_latency_gemm_plugin", "low_latency_gemm_swiglu_plugin"),
    "bert_context_fmha_fp32_acc",
)


class PluginConfig:
    def __init__(self, **values: Any) -> None:
        self.dtype = "float16"
        self.tokens_per_block = 32
        self._explicitly_disable_gemm_plugin = values.get("gemm_plugin") == "disable"
        for name, (default, _) in _FIELDS.items():
            setattr(self, name, default)
        for name, value in values.items():
            if name in _FIELDS or name == "tokens_per_block":
                self.put(name, value)

    def put(self, name: str, value: Any) -> None:
        """Assign as pydantic would: enable and disable become what the field has for them, others must fit exactly."""
        if name == "dtype":
            self.dtype = value
            return
        if name == "tokens_per_block":
            if type(value) is not int:
                raise ValueError(f"1 validation error for PluginConfig\n{name}: {value!r}")
            self.tokens_per_block = value
            return
        _default, allowed = _FIELDS[name]
        switch = True in allowed
        if value in ("enable", "disable"):
            value = (value == "enable") if switch else None
        if switch and value is not None and type(value) is not bool:
            raise ValueError(f"1 validation error for PluginConfig\n{name}: {value!r} is no boolean")
        if value not in allowed:
            raise ValueError(f"1 validation error for PluginConfig\n{name}: {value!r}")
        setattr(self, name, value)

    def overlaid(self, given: dict[str, Any]) -> "PluginConfig":
        """A copy under what JSON says; unknown keys are an error here, so that trtbuild writes none."""
        unknown = given.keys() - _FIELDS.keys() - {"dtype", "tokens_per_block"}
        if unknown:
            raise ValueError(f"1 validation error for PluginConfig\nunknown {sorted(unknown)}")
        made = copy.copy(self)
        for name, value in given.items():
            if value in ("enable", "disable"):
                raise ValueError(
                    f"1 validation error for PluginConfig\n{name}: the overlay is not converted: {value!r}"
                )
            made.put(name, value)
        return made

    def validate(self) -> None:
        from tensorrt_llm._utils import get_sm_version

        sm = get_sm_version()
        for name in _NOT_ON_SM_100 if sm == 100 else ():
            if getattr(self, name):
                raise NotImplementedError(f"{name}={getattr(self, name)} is not supported on SM {sm}.")

    def to_dict(self) -> dict[str, Any]:
        names = ["dtype", *_FIELDS, "tokens_per_block"]
        return {name: getattr(self, name) for name in names}


def add_plugin_argument(parser: Any) -> None:
    """Every option takes a value."""
    for name, (default, allowed) in _FIELDS.items():
        if name in _NO_OPTION:
            continue
        if True in allowed:
            usual, choices = "enable" if default else "disable", ["enable", "disable"]
        else:
            usual = default or (None if name == "gemm_plugin" else "disable")
            choices = [*sorted(value for value in allowed if value), "disable"]
        parser.add_argument(f"--{name}", type=str, default=usual, choices=choices)
    parser.add_argument("--tokens_per_block", type=int, default=32)
