"""The table of the linter's rules. PURE."""

from __future__ import annotations

from trtbuild.finding import ERROR, INFO, WARNING, Check, Finding, Report, ordered

__all__ = ["ERROR", "INFO", "RULES", "WARNING", "Finding", "Report", "find", "ordered"]

RULES: dict[str, Check] = {
    # what the folder is
    "not-a-checkpoint": Check(ERROR, "the folder holds something else, or nothing"),
    "config-unreadable": Check(ERROR, "config.json is missing, not JSON, or not an object"),
    "rank-file-missing": Check(ERROR, "every rank of the mapping has a file"),
    "rank-file-extra": Check(WARNING, "no file of a rank that the mapping does not have"),
    "rank-file-unreadable": Check(ERROR, "every rank file is whole and its header consistent"),
    "manifest-digest": Check(ERROR, "files are as trtbuild.json recorded them"),
    # config.json
    "config-missing": Check(ERROR, "the fields that TensorRT-LLM's class needs are there"),
    "config-type": Check(ERROR, "every field has the type and range of its class"),
    "config-value": Check(ERROR, "words are among those that TensorRT-LLM knows"),
    "config-family": Check(WARNING, "fields have the values that this architecture always has"),
    "config-too-large": Check(ERROR, "sizes are those of a model"),
    "config-forbidden": Check(ERROR, "no field that TensorRT-LLM does not honour, or that switches its checks off"),
    "architecture-unknown": Check(ERROR, "the architecture is one of TensorRT-LLM's"),
    "architecture-unchecked": Check(WARNING, "trtbuild knows the tensors of the architecture"),
    "rope-scaling": Check(ERROR, "rotary_scaling is complete"),
    "moe-config": Check(ERROR, "num_experts and top_k are both set or both zero"),
    "mapping-world-size": Check(ERROR, "world_size is tp_size x pp_size x cp_size"),
    "mapping-moe": Check(ERROR, "moe_tp_size x moe_ep_size is tp_size"),
    "mapping-key": Check(ERROR, "no key that the Mapping class does not have"),
    "mapping-cp": Check(WARNING, "cp_size is 1: the order of cp ranks changed between releases"),
    "layout-heads": Check(ERROR, "tp divides the heads, and kv heads can be shared or repeated evenly"),
    "layout-axis": Check(ERROR, "the ranks can share every axis that is cut"),
    "layout-pipeline": Check(ERROR, "stages are not empty, and the class has stages"),
    "quantization-key": Check(ERROR, "no key that the QuantConfig class does not have"),
    "quantization-algo": Check(ERROR, "quant_algo and kv_cache_quant_algo are names that TensorRT-LLM knows"),
    "quantization-field": Check(ERROR, "group_size, has_zero_point, pre_quant_scale fit the algorithm"),
    "quantization-unchecked": Check(WARNING, "trtbuild knows the tensors of the algorithm"),
    "quantization-dims": Check(ERROR, "quantized dims are multiples of what the kernels take"),
    "quantization-dtype": Check(ERROR, "the kernels of the algorithm take the dtype"),
    "exclude-modules": Check(ERROR, "exclude_modules is null or complete"),
    "quant-cfg": Check(ERROR, "MIXED_PRECISION has a readable quant_cfg.json that names real modules"),
    # tensors
    "tensor-missing": Check(ERROR, "every tensor that the class needs is there"),
    "lm-head-missing": Check(ERROR, "lm_head.weight is there, or the class can share the table"),
    "tensor-extra": Check(WARNING, "no tensor that the class has no place for"),
    "tensor-unused": Check(ERROR, "no tensor that config.json switches off: the model would run without it"),
    "tensor-renamed": Check(INFO, "tensors have the names of the 1.x classes"),
    "tensor-shape": Check(ERROR, "every tensor has the shape that config.json implies"),
    "tensor-dtype": Check(ERROR, "every tensor has the dtype that config.json implies"),
    "config-dtype": Check(ERROR, "the tensors have config.json's dtype"),
    "weight-uint8": Check(ERROR, "packed weights are int8: the loader skips uint8"),
    "weight-only-modelopt": Check(ERROR, "weight-only int8 is TensorRT-LLM's form, not ModelOpt's"),
    "layer-numbering": Check(ERROR, "layers are numbered from 0 inside each stage"),
    "layer-count": Check(ERROR, "each stage holds the layers that num_hidden_layers and pp give it"),
    "ranks-differ": Check(ERROR, "the ranks of a stage hold the same names, shapes and dtypes"),
    # values
    "tensor-nonfinite": Check(ERROR, "no NaN and no infinity"),
    "fp8-nan": Check(ERROR, "no NaN byte in an fp8 weight"),
    "scale-not-positive": Check(ERROR, "scales are positive"),
    "tensor-zero": Check(WARNING, "no weight is all zeros"),
    "copies-differ": Check(ERROR, "what several ranks hold is the same on each"),
    "bias-not-zero": Check(ERROR, "a bias that is summed once is zero on the other ranks"),
    "padding-not-zero": Check(WARNING, "rows that pad the vocabulary are zero"),
    "tied-lm-head": Check(ERROR, "a tied lm_head equals the vocabulary table"),
    "norm-offset": Check(WARNING, "norms hold weight + 1 where the class wants it (Gemma)"),
    "fp8-gate-scale": Check(WARNING, "fc and gate have equal fp8 scales, else they are rounded twice"),
    "prequant-experts": Check(ERROR, "all experts have one prequant scale: the loader keeps the first"),
}


def find(
    rule: str, where: str, expected: str, found: str, hint: str = "", rank: int | None = None, severity: str = ""
) -> Finding:
    """A finding with the rule's own severity, unless another is given."""
    return Finding(rule, severity or RULES[rule].severity, where, expected, found, hint, rank)
